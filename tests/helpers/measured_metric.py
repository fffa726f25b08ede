"""A source that is measured again and again, as the engine does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.serving.analysis.metrics import Kind, Metric
from nighttrain.providers.serving.analysis.tallies import add

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.sources.base import Memory, Source, Window
    from nighttrain.providers.serving.analysis.values import Counts, Sample, Tally

Numbers = tuple[int, int] | None


def numbers(counts: Counts | None) -> Numbers:
    """(requests, bad)."""
    return None if counts is None else (counts.requests, counts.bad)


@dataclass
class Measured:
    """Measures one metric again and again, remembers for it, and has every sample added up."""

    source: Source
    metric: Metric
    window: Window
    memory: Memory = field(default_factory=dict)
    tallies: tuple[Tally, ...] = ()

    async def baseline(self) -> Sample:
        return await self._measure(0.0)

    async def after(self, seconds: float = 30.0) -> Sample:
        self.window = replace(self.window, at=self.window.at + seconds)
        return await self._measure(seconds)

    async def _measure(self, seconds: float) -> Sample:
        window = replace(self.window, seconds=seconds)
        sample, self.memory = await self.source.measure(self.metric, window, self.memory)
        assert (sample.metric, sample.at, sample.seconds) == (self.metric.name, window.at, seconds)
        self.tallies = add(self.tallies, sample, share=0.1)
        assert self.tallies[-1].last_error == (sample.error or ""), "a sample that contradicts itself"
        return sample


def a_metric(kind: Kind, source: str, **parameters: Any) -> Metric:
    fields = {name: parameters.pop(name) for name in ("quantile", "increase") if name in parameters}
    return Metric(name="m", kind=kind, source={"type": source, **parameters}, **fields)
