"""Golden requests to both versions: errors, wrong answers, and how long they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import (
    REQUESTS_PER_INTERVAL,
    check_requests,
    golden_task,
    interval_of,
    paired,
    sample,
    unmeasured,
)

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.asker import Asker
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.values import Sample

KINDS = frozenset({Kind.ERRORS, Kind.WRONG, Kind.LATENCY})
PARAMETERS = frozenset({"requests_per_interval"})


class Probe:
    """Sends the same golden requests to both versions and counts what comes back.

    Anything but an answer with a status from 200 to 299 within the time-out is an error: golden requests are
    known to be good. One that is not answered is wrong, too.
    """

    def __init__(self, ask: Asker) -> None:
        self._ask = ask

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Send this interval's requests.

        The limit on the time is the stable version's quantile in the first interval that has enough of them,
        which itself counts for nothing.
        """
        if not window.seconds:
            return sample(metric, window), memory
        try:
            task, after = golden_task(metric, window, memory)
            if metric.kind is Kind.LATENCY:
                return await self._time(metric, window, task, after)
            want = {"want": metric.kind.value}
            if metric.kind is Kind.WRONG and window.golden is not None:
                want["tolerance"] = window.golden.tolerance  # type: ignore[assignment]
            return paired(metric, window, await self._ask(interval_of(window), task, want)), after
        except CannotTell as error:
            return unmeasured(metric, window, error), memory

    async def _time(
        self, metric: Metric, window: Window, task: dict[str, object], memory: Memory
    ) -> tuple[Sample, Memory]:
        tau = memory.get("tau")
        want = {"want": "slow", "tau": tau, "quantile": metric.quantile, "increase": metric.increase}
        counted = await self._ask(interval_of(window), task, want)
        if tau is None:
            return sample(metric, window), {**memory, "tau": counted["tau"]}
        return paired(metric, window, counted), memory


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    check_requests(where, metric, golden)
    if metric.kind is Kind.WRONG and golden and not any(each is not None for each in golden.expected):
        raise ConfigurationError(
            "strategy.golden.expected", golden.expected, "say what is right, or measure disagreement instead"
        )
    count = metric.source.get("requests_per_interval", REQUESTS_PER_INTERVAL)
    if metric.kind is Kind.LATENCY and count * (1 - metric.quantile) < 1 - 1e-9:
        raise ConfigurationError(
            f"{where}.requests_per_interval",
            count,
            f"send at least {1 / (1 - metric.quantile):.0f}: one has to be beyond the quantile "
            f"{metric.quantile:g}",
        )
