"""Create, replace, patch and delete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.http import bodies, parameters
from nighttrain.providers.local.cluster.http.eviction import evict as evict_pod
from nighttrain.providers.local.cluster.http.patches import apply_patch, check_patch_type
from nighttrain.providers.local.cluster.kinds.decoding import (
    cannot_be_handled,
    decode,
    decode_part,
    parse_json,
)
from nighttrain.providers.local.cluster.rules.dependents import disown
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.store import Object, Store, copy_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.http.routing import Target
    from nighttrain.providers.local.cluster.store.resources import ResourceType

_PROTOBUF = "application/vnd.kubernetes.protobuf"
_NO_PROTOBUF = (
    "the embedded cluster does not read protobuf: send JSON (with kubectl, write the object with "
    "--dry-run=client -o yaml and send it with kubectl apply -f -)"
)


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to a write: status code, body, and warnings for the client's user."""

    code: int
    body: Object
    warnings: list[str] = field(default_factory=list)


def read_body(raw: bytes, content_type: str) -> Any:
    """:raises ApiError: 400 when it does not parse, 415 for a media type that is not read"""
    media = content_type.split(";")[0].strip()
    if media == _PROTOBUF:
        raise errors.unsupported_media_type(_NO_PROTOBUF)
    if media not in ("", "application/json", "*/*") and not media.endswith("+json"):
        raise errors.unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json"
        )
    try:
        return bodies.checked(raw, parse_json(raw))
    except RecursionError:
        raise bodies.too_deep() from None
    except ValueError as error:
        raise errors.bad_request(f"couldn't get version/kind; json parse error: {error}") from None


def create(store: Store, target: Target, body: Any, query: Mapping[str, str]) -> Written:
    """:raises ApiError: 400, 404, 409, 422"""
    resource = target.resource
    obj, warnings = _decoded(resource, body, query)
    _place(target, obj)
    obj["metadata"].pop("managedFields", None)
    if resource.has_status:
        obj.pop("status", None)
    return Written(201, store.create(resource, obj, dry_run=parameters.dry_run(query)), warnings)


def replace(store: Store, target: Target, body: Any, query: Mapping[str, str]) -> Written:
    """:raises ApiError: 400, 404, 409, 422"""
    obj, warnings = _decoded(target.resource, body, query)
    _place(target, obj)
    _require_version(target.resource, obj)
    return _updated(store, target, obj, query, warnings)


def patch(store: Store, target: Target, content_type: str, change: Any, query: Mapping[str, str]) -> Written:
    """:raises ApiError: 400, 404, 409, 415, 422"""
    check_patch_type(content_type, custom=target.resource.custom is not None)
    if "force" in query:
        cause = errors.forbidden_value("force", "may not be specified for non-apply patch")
        raise errors.invalid_options("PatchOptions", cause)
    current = store.get(target.resource, target.namespace, target.name)
    current = {**current, "apiVersion": target.resource.api_version}
    patched = apply_patch(content_type, current, change)
    obj, warnings = _decoded(target.resource, patched, query)
    _place(target, obj)
    return _updated(store, target, obj, query, warnings)


def _updated(
    store: Store, target: Target, obj: Object, query: Mapping[str, str], warnings: list[str]
) -> Written:
    obj["metadata"].pop("managedFields", None)
    stored = store.update(
        target.resource,
        obj,
        status=target.subresource == "status",
        dry_run=parameters.dry_run(query),
    )
    return Written(200, stored, warnings)


def _decoded(resource: ResourceType, body: Any, query: Mapping[str, str]) -> tuple[Object, list[str]]:
    validation = parameters.field_validation(query)
    _check_kind(resource, body)
    obj, fields = decode(resource, body)
    unknown = [f'unknown field "{path}"' for path in fields]
    if unknown and validation == "Strict":
        listed = ", ".join(unknown)
        raise errors.bad_request(f"{cannot_be_handled(resource)}: strict decoding error: {listed}")
    return obj, unknown if validation == "Warn" else []


def _check_kind(resource: ResourceType, body: Any) -> None:
    if not isinstance(body, dict):
        return
    kind, version = body.get("kind"), body.get("apiVersion")
    if kind and kind != resource.kind:
        raise errors.bad_request(cannot_be_handled(resource, str(kind)))
    if version and version != resource.api_version:
        raise errors.bad_request(
            f"the API version in the data ({version}) does not match the expected API version "
            f"({resource.api_version})"
        )


def _place(target: Target, obj: Object) -> None:
    """The URL says where the object belongs; the object may leave it out but not contradict it."""
    metadata = obj.setdefault("metadata", {})
    if target.resource.namespaced:
        if metadata.get("namespace", target.namespace) != target.namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        metadata["namespace"] = target.namespace
    if target.name:
        name = metadata.setdefault("name", target.name)
        if name != target.name:
            raise errors.bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({target.name})"
            )


def _require_version(resource: ResourceType, obj: Object) -> None:
    """A Lease is a lock: replacing one without saying which version was seen would break it."""
    if resource.kind == "Lease" and not obj["metadata"].get("resourceVersion"):
        cause = errors.invalid_value("metadata.resourceVersion", "", "must be specified for an update")
        raise errors.invalid(resource, obj["metadata"]["name"], [cause])


def delete(store: Store, target: Target, body: Any, query: Mapping[str, str]) -> Written:
    """:raises ApiError: 404, 409, 422"""
    resource = target.resource
    options = delete_options(body)
    preconditions = options.get("preconditions") or {}
    found = store.get(resource, target.namespace, target.name)
    uid = found["metadata"]["uid"]
    propagation, dry_run = _propagation(resource, options, query), _dry_run(options, query)
    if resource.custom is not None and propagation is Propagation.ORPHAN and not dry_run:
        disown(store, found)
    last = store.delete(
        resource,
        target.namespace,
        target.name,
        grace_period_seconds=_grace(options, query),
        propagation=propagation,
        preconditions_uid=preconditions.get("uid"),
        preconditions_rv=preconditions.get("resourceVersion"),
        dry_run=dry_run,
    )
    still = store.find(resource, target.namespace, target.name)
    lingers = still is not None and still["metadata"]["uid"] == uid
    if lingers or resource.graceful:
        return Written(200, {**last, "apiVersion": resource.api_version})
    return Written(200, _success(resource, target.name, uid))


def evict(store: Store, target: Target, body: Any, query: Mapping[str, str]) -> Written:
    """:raises ApiError: 400, 404, 409"""
    return Written(201, evict_pod(store, target, body, dry_run=parameters.dry_run(query)))


def delete_options(body: Any) -> Object:
    """The body of a deletion; there may be none.

    :raises ApiError: 400 for a value of a wrong type, 422 for one that is not known
    """
    options = {} if body is None else decode_part("DeleteOptions", body)
    if options.get("dryRun") not in (None, ["All"]):
        cause = errors.unsupported_value("dryRun", options["dryRun"], ("All",))
        raise errors.invalid_options("DeleteOptions", cause)
    return options


def _grace(options: Object, query: Mapping[str, str]) -> int | None:
    value: int | None = options.get("gracePeriodSeconds")
    return parameters.number(query, "gracePeriodSeconds") if value is None else value


def _propagation(resource: ResourceType, options: Object, query: Mapping[str, str]) -> Propagation:
    asked = options.get("propagationPolicy") or query.get("propagationPolicy")
    if not asked:
        # For compatibility with its first clients, a Job leaves its pods behind unless told otherwise.
        return Propagation.ORPHAN if resource.kind == "Job" else Propagation.BACKGROUND
    if asked not in list(Propagation):
        cause = errors.unsupported_value("propagationPolicy", asked, list(Propagation))
        raise errors.invalid_options("DeleteOptions", cause)
    return Propagation(asked)


def _dry_run(options: Object, query: Mapping[str, str]) -> bool:
    return bool(options.get("dryRun")) or parameters.dry_run(query)


def _success(resource: ResourceType, name: str, uid: str) -> Object:
    details = {**errors.details_of(resource, name), "uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def scale(obj: Object) -> Object:
    """The ``Scale`` view of a Deployment or a ReplicaSet."""
    metadata, spec = obj["metadata"], obj["spec"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": spec["replicas"]} if spec.get("replicas") else {},
        "status": {
            "replicas": (obj.get("status") or {}).get("replicas", 0),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        },
    }


def write_scale(
    store: Store, target: Target, content_type: str | None, body: Any, query: Mapping[str, str]
) -> Written:
    """Replace (``content_type`` None) or patch the ``Scale`` view.

    :raises ApiError: 400, 404, 409, 422
    """
    resource = target.resource
    current = store.get(resource, target.namespace, target.name)
    wanted = body if content_type is None else apply_patch(content_type, scale(current), body)
    wanted = decode_part("Scale", wanted)
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    new = copy_object(current)
    new["spec"]["replicas"] = replicas
    version = (wanted.get("metadata") or {}).get("resourceVersion")
    if version:
        new["metadata"]["resourceVersion"] = version
    stored = store.update(resource, new, dry_run=parameters.dry_run(query))
    return Written(200, scale(stored))
