"""The three kinds of patch: JSON (RFC 6902), merge (RFC 7386) and strategic merge."""

from __future__ import annotations

import json
from typing import Any

import jsonpatch

from nighttrain.providers.local.cluster.http import bodies
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.store import copy_object

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
APPLY_REFUSED = (
    "the embedded cluster has no server-side apply: with kubectl, leave out --server-side; other clients "
    f"send {MERGE_PATCH} or {STRATEGIC_PATCH}"
)

# Lists whose items are merged one by one, and the field that tells the items apart. Others are replaced.
_MERGE_KEYS = {
    "addresses": ("type",),
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "hostIPs": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "podIPs": ("ip",),
    "ports": ("containerPort", "port"),
    "schedulingGates": ("name",),
    "secrets": ("name",),
    "taints": ("key",),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_MERGED_SCALARS = frozenset(("finalizers",))
# In an EndpointSlice "ports" and "endpoints" are plain lists.
_PLAIN_KINDS = frozenset(("EndpointSlice",))


# The API server's limit.
_MAX_OPERATIONS = 10_000


def apply_patch(content_type: str, obj: dict[str, Any], patch: Any) -> dict[str, Any]:
    """A patched copy of ``obj``.

    :raises ApiError: 400 for a patch that is not one, 415 for an unknown type, 422 when it does not fit
    """
    media = check_patch_type(content_type)
    if media == JSON_PATCH:
        return _json_patch(obj, patch)
    if not isinstance(patch, dict):
        raise errors.bad_request("error decoding patch: json: cannot unmarshal the patch into an object")
    if media == MERGE_PATCH:
        merged: dict[str, Any] = merge(obj, patch)
        return merged
    strategic: dict[str, Any] = strategic_merge(obj, patch, plain=obj.get("kind") in _PLAIN_KINDS)
    return strategic


def check_patch_type(content_type: str, *, custom: bool = False) -> str:
    """The media type of a patch that is served.

    :param custom: for an object of a custom kind, whose lists have no merge keys
    :raises ApiError: 415
    """
    media = content_type.split(";")[0].strip()
    if custom and media == STRATEGIC_PATCH:
        accepted = f"{JSON_PATCH}, {MERGE_PATCH}"
        message = (
            f"the body of the request was in an unknown format - accepted media types include: {accepted}"
        )
        raise errors.ApiError(415, "UnsupportedMediaType", message)
    if media not in (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH):
        raise errors.unsupported_media_type()
    return media


def _json_patch(obj: dict[str, Any], patch: Any) -> dict[str, Any]:
    if not isinstance(patch, list):
        raise errors.bad_request(
            "error decoding patch: json: cannot unmarshal object into a list of operations"
        )
    if len(patch) > _MAX_OPERATIONS:
        message = f"The allowed maximum operations in a JSON patch is {_MAX_OPERATIONS}, got {len(patch)}"
        raise errors.ApiError(413, "RequestEntityTooLarge", message, {})
    patched = copy_object(obj)
    try:
        for operation in patch:
            patched = jsonpatch.JsonPatch([operation]).apply(patched, in_place=True)
            if isinstance(operation, dict) and operation.get("op") == "copy":
                # A few copies of copies are more than any machine holds.
                bodies.check_depth(patched)
                if len(json.dumps(patched)) > bodies.MAX_BODY_BYTES:
                    message = f"Unable to complete the copy, exceeding the limit {bodies.MAX_BODY_BYTES}"
                    raise errors.ApiError(422, "Invalid", message, {})
    except (jsonpatch.InvalidJsonPatch, TypeError, KeyError, AttributeError) as error:
        raise errors.bad_request(f"error decoding patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        message = "the server rejected our request due to an error in our request"
        raise errors.ApiError(422, "Invalid", message, {}) from error
    if not isinstance(patched, dict):
        raise errors.bad_request("the patched object is not an object any more")
    bodies.check_depth(patched)
    return patched


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null removes, everything else is replaced."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic_merge(target: Any, patch: dict[str, Any], *, plain: bool = False) -> Any:
    """Like :func:`merge`, but lists with a merge key are merged item by item, and ``$patch``,
    ``$retainKeys``, ``$deleteFromPrimitiveList/...`` and ``$setElementOrder/...`` are obeyed."""
    directive = patch.get("$patch")
    if directive == "delete":
        return {}
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        kept = patch["$retainKeys"]
        if not isinstance(kept, list):
            raise errors.bad_request("invalid patch format of retainKeys")
        merged = {key: value for key, value in merged.items() if key in kept}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.split("/", 1)[1]
            if not isinstance(value, list):
                raise errors.bad_request("invalid patch format of primitive list")
            merged[field] = [item for item in _list(merged.get(field)) if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None or value == {"$patch": "delete"}:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = strategic_merge(merged.get(key), value, plain=plain)
        elif isinstance(value, list) and not plain:
            order = patch.get(f"$setElementOrder/{key}")
            merged[key] = _merge_list(key, _list(merged.get(key)), value, order)
        else:
            merged[key] = value
    _reorder(merged, patch)
    return merged


def _reorder(merged: dict[str, Any], patch: dict[str, Any]) -> None:
    """Lists of which the patch says nothing but their order."""
    for key, order in patch.items():
        field = key.removeprefix("$setElementOrder/")
        if field != key and field not in patch and isinstance(merged.get(field), list):
            merged[field] = _merge_list(field, merged[field], [], order)


def _list(value: Any) -> list[Any]:
    """The list to merge with: another kind of value is replaced."""
    return value if isinstance(value, list) else []


def _identity(item: dict[str, Any], key: str) -> str:
    """The text that tells an item from others, whatever was sent as its key; its type is checked later."""
    return json.dumps(item[key], sort_keys=True)


def _merge_list(field: str, target: list[Any], patch: list[Any], order: Any) -> list[Any]:
    if order is not None and not isinstance(order, list):
        raise errors.bad_request("invalid patch format of setElementOrder list")
    if field in _MERGED_SCALARS:
        return [*target, *(item for item in patch if item not in target)]
    key = _merge_key(field, [*patch, *(order or []), *target])
    if key is None:
        return [_without_directives(item) for item in patch]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    items = {_identity(item, key): item for item in target if isinstance(item, dict) and key in item}
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise errors.bad_request(f"map: {item} does not contain declared merge key: {key}")
        identity = _identity(item, key)
        if item.get("$patch") == "delete":
            items.pop(identity, None)
        else:
            items[identity] = strategic_merge(items.get(identity), item)
    if order:
        wanted = [_identity(each, key) for each in order if isinstance(each, dict) and key in each]
        rank = {value: index for index, value in enumerate(wanted)}
        return [items[each] for each in sorted(items, key=lambda each: rank.get(each, len(rank)))]
    return list(items.values())


def _merge_key(field: str, items: list[Any]) -> str | None:
    for key in _MERGE_KEYS.get(field, ()):
        if any(isinstance(item, dict) and key in item for item in items):
            return key
    return None


def _without_directives(item: Any) -> Any:
    return strategic_merge({}, item) if isinstance(item, dict) else item
