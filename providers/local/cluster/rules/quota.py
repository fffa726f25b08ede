"""ResourceQuotas: how many objects a namespace may hold, and how much its pods may request together."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.resources import (
    PERSISTENTVOLUMECLAIMS,
    PODS,
    RESOURCEQUOTAS,
    ResourceType,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.local.cluster.store.store import Object, Store

_COUNT = "count/"
_STORAGE = "requests.storage"

# What a pod's containers request or are limited to, as a quota names it; the bare names are requests.
_AMOUNTS = {
    "cpu": ("requests", "cpu"),
    "memory": ("requests", "memory"),
    "requests.cpu": ("requests", "cpu"),
    "requests.memory": ("requests", "memory"),
    "limits.cpu": ("limits", "cpu"),
    "limits.memory": ("limits", "memory"),
}


def check_quota(store: Store, resource: ResourceType, obj: Object) -> None:
    """Refuse a new object that would take more than a quota of its namespace leaves.

    :raises ApiError: 403, in the words of the API
    """
    if not resource.namespaced or resource is RESOURCEQUOTAS:
        return
    space = obj["metadata"].get("namespace", "default")
    for quota in store.list(RESOURCEQUOTAS, space)[0]:
        hard = quota.get("spec", {}).get("hard") or {}
        if resource is PODS:
            _check_says(obj, quota["metadata"]["name"], hard)
        asked = _of(resource, obj, hard)
        if not any(asked.values()):
            continue
        used = usage(store, space, asked)
        over = [
            name for name, amount in asked.items() if amount and used[name] + amount > quantity(hard[name])
        ]
        if over:
            text = "exceeded quota: {}, requested: {}, used: {}, limited: {}".format(
                quota["metadata"]["name"],
                ",".join(f"{name}={as_text(asked[name])}" for name in over),
                ",".join(f"{name}={as_text(used[name])}" for name in over),
                ",".join(f"{name}={hard[name]}" for name in over),
            )
            raise errors.forbidden(resource, obj["metadata"].get("name", ""), text)


def _check_says(pod: Object, quota: str, hard: Iterable[str]) -> None:
    """What a quota adds up, every container has to say.

    :raises ApiError: 403
    """
    spec = pod["spec"]
    silent: dict[str, list[str]] = {}
    for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
        resources = container.get("resources") or {}
        for name in sorted(_AMOUNTS.keys() & set(hard)):
            kind, what = _AMOUNTS[name]
            if what not in _given(resources, kind):
                silent.setdefault(name, []).append(container["name"])
    if silent:
        texts = (f"{name} for: {','.join(sorted(containers))}" for name, containers in sorted(silent.items()))
        why = f"failed quota: {quota}: must specify {'; '.join(texts)}"
        raise errors.forbidden(PODS, pod["metadata"].get("name", ""), why)


def _given(resources: Object, kind: str) -> Object:
    """Requests or limits; who gives a limit alone requests as much."""
    return {**(resources.get("limits") or {}), **(resources.get(kind) or {})}


def usage(store: Store, space: str, names: Iterable[str]) -> dict[str, Decimal]:
    """What a namespace holds of each name that a quota may limit."""
    names = list(names)
    total = dict.fromkeys(names, Decimal(0))
    for resource in store.resources():
        if not resource.namespaced or not any(_concerns(resource, name) for name in names):
            continue
        for obj in store.list(resource, space)[0]:
            for name, amount in _of(resource, obj, names).items():
                total[name] += amount
    return total


def _concerns(resource: ResourceType, name: str) -> bool:
    if name.startswith(_COUNT):
        return name == f"{_COUNT}{resource.qualified}"
    if name in ("pods", *_AMOUNTS):
        return resource is PODS
    if name == _STORAGE:
        return resource is PERSISTENTVOLUMECLAIMS
    return not resource.group and name == resource.plural


def _of(resource: ResourceType, obj: Object, names: Iterable[str]) -> dict[str, Decimal]:
    """What one object takes. A pod that has ended takes nothing but its place among the objects."""
    ended = resource is PODS and (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    found = {}
    for name in names:
        if not _concerns(resource, name):
            continue
        if name in _AMOUNTS:
            found[name] = Decimal(0) if ended else _amount(obj, *_AMOUNTS[name])
        elif name == _STORAGE:
            requests = (obj["spec"].get("resources") or {}).get("requests") or {}
            found[name] = quantity(requests.get("storage", "0"))
        else:
            found[name] = Decimal(0 if ended and name == "pods" else 1)
    return found


def _amount(pod: Object, kind: str, name: str) -> Decimal:
    total = Decimal(0)
    for container in pod["spec"].get("containers") or []:
        total += quantity(_given(container.get("resources") or {}, kind).get(name, "0"))
    return total


def as_text(amount: Decimal) -> str:
    if amount == amount.to_integral_value():
        return str(int(amount))
    return f"{int(amount * 1000)}m"
