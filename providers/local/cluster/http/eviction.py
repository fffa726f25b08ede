"""What ``pods/eviction`` does: a pod is marked as disrupted, then deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.decoding import decode_part
from nighttrain.providers.local.cluster.kinds.disruption import disrupt
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import PODS

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.http.routing import Target
    from nighttrain.providers.local.cluster.store.store import Object, Store


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
        disrupt(store, pod, "EvictionByEvictionAPI", "Eviction API: evicting")
        store.delete(PODS, target.namespace, target.name, **checked)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


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
