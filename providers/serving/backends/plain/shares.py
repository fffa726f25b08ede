"""Shares by replicas: how many pods make one, and which one the ready endpoints make."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
    is_deleting,
    items,
    mapping,
    metadata,
    name_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nighttrain.providers.plain_json import Json


def replicas_for_share(percent: int, stable: int) -> int:
    """The smallest number of pods, at least one, whose share is nearest to the percent.

    :param percent: 1 to 99
    :param stable: pods of the stable version beside them, at least one
    """
    asked = Fraction(percent, 100)
    below = int(asked * stable / (1 - asked))

    def distance(replicas: int) -> Fraction:
        return abs(Fraction(replicas, replicas + stable) - asked)

    return min((max(1, below), below + 1), key=lambda replicas: (distance(replicas), replicas))


def ready_endpoints(
    service: Json,
    pods: Sequence[Json],
    slices: Sequence[Json] | None,
    version_of: Callable[[Json], str],
) -> Mapping[str, int] | None:
    """How many endpoints of each version a Service sends requests to.

    :param slices: the Service's EndpointSlices; ``None`` where they cannot be read: then the pods alone count
    :return: ``None`` while slices and pods tell different things, as shortly after every change
    """
    selector = mapping(mapping(service.get("spec")).get("selector"))
    ready = {name_of(pod): version_of(pod) for pod in pods if _is_selected(pod, selector) and is_ready(pod)}
    if slices is not None and _in_slices(slices) != ready.keys():
        return None
    return Counter(ready.values())


def share(ready: Mapping[str, int] | None, candidate: str) -> float | None:
    """The candidate's percentage of the ready endpoints; ``None`` where it cannot be seen."""
    if ready is None:
        return None
    own = ready.get(candidate, 0)
    return 100 * own / sum(ready.values()) if own else 0.0


def _is_selected(pod: Json, selector: Json) -> bool:
    return bool(selector) and selector.items() <= mapping(metadata(pod).get("labels")).items()


def is_ready(pod: Json) -> bool:
    """True if a pod takes requests, as far as its status tells."""
    return not is_deleting(pod) and any_condition(pod, "Ready").get("status") == "True"


def has_ready(slices: Sequence[Json]) -> bool:
    """True if a Service has an endpoint that takes requests."""
    return bool(_in_slices(slices))


def _in_slices(slices: Sequence[Json]) -> set[str]:
    found = set()
    for each in slices:
        for endpoint in items(each.get("endpoints")):
            # The API takes an endpoint for ready whose condition nobody wrote.
            if mapping(endpoint.get("conditions")).get("ready") is not False:
                found.add(text(mapping(endpoint.get("targetRef")).get("name")))
    return found
