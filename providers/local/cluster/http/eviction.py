"""Evictions: a pod is marked as ended for no fault of its own, then deleted."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.decoding import decode_part
from nighttrain.providers.local.cluster.kinds.pods import is_active
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import PODS
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.http.routing import Target


def evict(store: Store, target: Target, body: Any, *, dry_run: bool) -> Object:
    """Answer a ``POST .../pods/NAME/eviction``: the Status that says it is under way.

    There are no PodDisruptionBudgets, so nothing holds an eviction back.

    :raises ApiError: 400 no Eviction of this pod, 404, 409 a precondition does not hold
    """
    body = _read(target, body)
    pod = store.get(PODS, target.namespace, target.name)
    options = body.get("deleteOptions") or {}
    preconditions = options.get("preconditions") or {}
    grace = options.get("gracePeriodSeconds")
    dry_run = dry_run or bool(options.get("dryRun"))
    checked: dict[str, Any] = {
        "grace_period_seconds": grace,
        "preconditions_uid": preconditions.get("uid"),
    }
    version = preconditions.get("resourceVersion")
    store.delete(PODS, target.namespace, target.name, dry_run=True, preconditions_rv=version, **checked)
    if not dry_run:
        _evict(store, pod, **checked)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def evict_by_name(store: Store, pattern: str) -> None:
    """Evict the pods on the node whose names match, unless they have ended or are on their way out."""
    for pod in store.list(PODS)[0]:
        if fnmatchcase(pod["metadata"]["name"], pattern) and pod["spec"].get("nodeName") and is_active(pod):
            _evict(store, pod)


def _evict(store: Store, pod: Object, **options: Any) -> None:
    metadata = pod["metadata"]
    if is_active(pod):
        store.mutate(PODS, metadata["namespace"], metadata["name"], lambda new: _mark(new, store))
    store.delete(PODS, metadata["namespace"], metadata["name"], **options)


def _mark(pod: Object, store: Store) -> None:
    status = pod.get("status") or {}
    others = [each for each in status.get("conditions") or [] if each["type"] != "DisruptionTarget"]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": timestamp(store.clock()),
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    pod["status"] = {**status, "conditions": [*others, condition]}


def _read(target: Target, body: Any) -> Object:
    if not isinstance(body, dict) or body.get("kind", "Eviction") != "Eviction":
        raise errors.bad_request("the body of an eviction must be an Eviction of policy/v1")
    if body.get("apiVersion", "policy/v1") != "policy/v1":
        raise errors.bad_request(f"{body['apiVersion']} is not served: an Eviction is of policy/v1")
    eviction = decode_part("Eviction", body)
    name = (eviction.get("metadata") or {}).get("name", target.name)
    if name != target.name:
        raise errors.bad_request(
            f"name in URL does not match name in Eviction object: {target.name} and {name}"
        )
    return eviction
