"""The interface of a source of measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.backends.traffic import Addresses

Memory = Mapping[str, Any]
"""What a source has to remember from one measurement to the next, e.g. counters: plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is to be measured.

    :param at: the end of the interval, seconds since 1970
    :param seconds: its length, since the last measurement; 0 asks only where counters stand now, so that the
        next interval does not count requests from before a change of the share
    :param interval_seconds: how often is measured; asking for longer would hold up what others have found
    :param candidate: the version that is rolled out
    :param stable: the version that it is compared with; ``None`` where nothing serves yet
    :param addresses: the ways to both
    :param golden: requests that may be sent; ``None`` where there are none
    """

    endpoint: str
    namespace: str
    model_name: str
    candidate: str
    stable: str | None
    at: float
    seconds: float
    interval_seconds: float
    addresses: Addresses
    golden: Golden | None = None


class Source(Protocol):
    """Something that measures. What it could not measure is a sample with an error, never an exception."""

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Measure one metric over one interval.

        :param memory: what the last call returned; empty at the first
        """
        ...
