"""Priorities of pods, and who has to make room for whom."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import PODS, PRIORITYCLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nighttrain.providers.local.cluster.store.store import Object, Store

# The classes that every cluster has, for what keeps it alive.
_SYSTEM = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

_PREEMPT = "PreemptLowerPriority"


def apply_priority(store: Store, pod: Object) -> None:
    """Give a new pod the number and the policy of its PriorityClass.

    :raises ApiError: 403 no such class, or a number or policy that is not the class's
    """
    spec = pod.setdefault("spec", {})
    name = spec.get("priorityClassName") or ""
    value, policy = _SYSTEM.get(name, 0), _PREEMPT
    class_ = store.find(PRIORITYCLASSES, None, name) if name else _default(store)
    if class_ is not None:
        value, policy = int(class_.get("value", 0)), class_.get("preemptionPolicy") or _PREEMPT
        spec["priorityClassName"] = class_["metadata"]["name"]
    elif name and name not in _SYSTEM:
        why = f"no PriorityClass with name {name} was found"
        raise errors.forbidden(PODS, pod["metadata"].get("name", ""), why)
    if spec.get("priority") not in (None, value):
        why = (
            f"the integer value of priority ({spec['priority']}) must not be provided in pod spec; priority "
            f"admission controller computed {value} from the given PriorityClass name"
        )
        raise errors.forbidden(PODS, pod["metadata"].get("name", ""), why)
    if spec.get("preemptionPolicy") not in (None, policy):
        why = (
            f"the string value of PreemptionPolicy ({spec['preemptionPolicy']}) must not be provided in pod "
            f"spec; priority admission controller computed {policy} from the given PriorityClass name"
        )
        raise errors.forbidden(PODS, pod["metadata"].get("name", ""), why)
    spec["priority"] = value
    spec["preemptionPolicy"] = policy


def _default(store: Store) -> Object | None:
    found = [each for each in store.list(PRIORITYCLASSES)[0] if each.get("globalDefault")]
    return min(found, key=lambda each: int(each.get("value", 0)), default=None)


def priority(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def victims(
    pod: Object,
    running: Sequence[tuple[Object, Mapping[str, Decimal]]],
    missing: Mapping[str, Decimal],
) -> list[Object] | None:
    """The pods to end so that ``pod`` fits: as few and as unimportant as possible.

    :param running: pods of the node with what each requests
    :param missing: by how much the pod does not fit, for each resource
    :return: None where all pods of lower priority together would not free enough
    """
    if pod["spec"].get("preemptionPolicy") == "Never":
        return None
    lower = [each for each in running if priority(each[0]) < priority(pod)]
    # The least important first, and of equals the youngest: it has done the least.
    lower.sort(key=lambda each: (priority(each[0]), -int(each[0]["metadata"]["resourceVersion"])))
    left = dict(missing)
    chosen: list[tuple[Object, Mapping[str, Decimal]]] = []
    for each in lower:
        if not any(amount > 0 for amount in left.values()):
            break
        if any(left.get(name, Decimal(0)) > 0 and amount > 0 for name, amount in each[1].items()):
            chosen.append(each)
            left = {name: amount - each[1].get(name, Decimal(0)) for name, amount in left.items()}
    if any(amount > 0 for amount in left.values()):
        return None
    # The most important of them is spared if the others are enough.
    for each in reversed(list(chosen)):
        if all(amount + each[1].get(name, Decimal(0)) <= 0 for name, amount in left.items()):
            chosen.remove(each)
            left = {name: amount + each[1].get(name, Decimal(0)) for name, amount in left.items()}
    return [victim for victim, _requests in chosen]
