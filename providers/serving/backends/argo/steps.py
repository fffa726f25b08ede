"""The steps of a Rollout: an indefinite pause at each share, so that it goes on only when it is told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import items, mapping, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.plain_json import Json

PAUSE: Json = {"pause": {}}


def steps_for(shares: Sequence[int], *, routed: bool) -> list[Json]:
    """The steps of a strategy.

    The first pause holds the candidate up without a request. With a router, its pods are scaled by
    themselves for that, then follow the weight; and the last pause is at 100 percent, where the stable
    version is at full size still. By replicas it is one pod, which the endpoint's Service does not select,
    and there is no pause at 100 percent: the stable version would have no pods there either way.
    """
    if not routed:
        return [step for share in (1, *shares) for step in ({"setWeight": share}, PAUSE)]
    first, *others = (*shares, 100)
    found: list[Json] = [{"setCanaryScale": {"weight": first}}, PAUSE, {"setWeight": first}, PAUSE]
    if others:
        found.append({"setCanaryScale": {"matchTrafficWeight": True}})
    return found + [step for share in others for step in ({"setWeight": share}, PAUSE)]


def steps_of(rollout: Json) -> list[Json]:
    """The steps that a Rollout has."""
    return items(mapping(mapping(mapping(rollout.get("spec")).get("strategy")).get("canary")).get("steps"))


def weight_at(steps: Sequence[Json], index: int) -> int:
    """The candidate's weight at a step: what was set last. Past the last step it is everything."""
    if index >= len(steps):
        return 100
    weights = [whole(step.get("setWeight")) for step in steps[: index + 1]]
    return next((weight for weight in reversed(weights) if weight is not None), 0)


def is_open_pause(steps: Sequence[Json], index: int) -> bool:
    """True if the step waits until it is told to go on."""
    if index >= len(steps) or "pause" not in steps[index]:
        return False
    return not mapping(steps[index].get("pause")).get("duration")
