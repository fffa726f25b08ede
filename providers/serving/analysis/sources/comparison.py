"""Golden requests to both versions: whether their predictions agree, and how their distributions differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import (
    check_requests,
    golden_task,
    interval_of,
    sample,
    unmeasured,
)
from nighttrain.providers.serving.analysis.values import Counts

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.asker import Asker
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.values import Sample

KINDS = frozenset({Kind.DISAGREEMENT, Kind.DISTANCE})
PARAMETERS = frozenset({"requests_per_interval"})


class Comparison:
    """Compares the predictions of both versions on the same golden requests.

    Only requests that both answered are compared: a version that does not answer says nothing about
    agreement, and is an error where errors are measured.
    """

    def __init__(self, ask: Asker) -> None:
        self._ask = ask

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Send this interval's requests.

        The bins of a distance come from the stable version's first answers, which themselves count for
        nothing.
        """
        if not window.seconds:
            return sample(metric, window), memory
        try:
            task, after = golden_task(metric, window, memory)
            if metric.kind is Kind.DISTANCE:
                return await self._distances(metric, window, task, after)
            tolerance = window.golden.tolerance if window.golden else 0.0
            want = {"want": "disagreement", "tolerance": tolerance}
            counted = await self._ask(interval_of(window), task, want)
        except CannotTell as error:
            return unmeasured(metric, window, error), memory
        counts = Counts(requests=counted["requests"], bad=counted["candidate"])
        return sample(metric, window, candidate=counts), after

    async def _distances(
        self, metric: Metric, window: Window, task: dict[str, Any], memory: Memory
    ) -> tuple[Sample, Memory]:
        bins = memory.get("bins")
        counted = await self._ask(interval_of(window), task, {"want": "bins", "bins": bins})
        if bins is None:
            return sample(metric, window), {**memory, "bins": counted["bins"]}
        measured = {f"{side}_bins": tuple(counted[side]) for side in ("candidate", "stable")}
        return sample(metric, window, **measured), memory


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    check_requests(where, metric, golden)
