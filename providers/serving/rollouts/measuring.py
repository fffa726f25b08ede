"""One measurement of every metric that a rollout's analysis has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NighttrainError
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.samples import unmeasured

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.metrics import Analysis, Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Source
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.backends.traffic import Addresses
    from nighttrain.providers.serving.rollouts.state import State

_log = logging.getLogger(__name__)


async def measure(
    sources: Mapping[str, Source], state: State, analysis: Analysis, addresses: Addresses, now: float
) -> tuple[tuple[Sample, ...], dict[str, Mapping[str, object]]]:
    """The samples, and what their sources want to remember, by metric.

    :param sources: by the type that a metric names
    """
    target = state.target
    window = Window(
        endpoint=target.endpoint,
        namespace=target.namespace,
        model_name=target.model_name,
        candidate=target.candidate,
        stable=target.stable,
        at=now,
        seconds=max(now - (state.measured_at or now), 0.0) if state.looks else 0.0,
        interval_seconds=analysis.interval_seconds,
        addresses=addresses,
        golden=state.strategy.golden,
    )
    measured = await asyncio.gather(
        *(
            _measured(sources[metric.source["type"]], metric, window, state.memory.get(metric.name, {}))
            for metric in analysis.metrics
        )
    )
    names = [metric.name for metric in analysis.metrics]
    memory = {name: memory for name, (_, memory) in zip(names, measured, strict=True)}
    return tuple(sample for sample, _ in measured), memory


async def _measured(source: Source, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
    """What the source says; whatever it raises is no reason to leave a rollout where it is."""
    try:
        return await source.measure(metric, window, memory)
    except Exception as error:
        if not isinstance(error, NighttrainError):
            _log.exception("The source of %s has a fault", metric.name)
        return unmeasured(metric, window, f"{type(error).__name__}: {error}"), memory
