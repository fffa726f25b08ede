"""A rollout's run in MLflow: series, picture, state. Whatever happens there, the rollout goes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nighttrain.providers.errors import TrackingError
from nighttrain.providers.serving.rollouts.picture import draw
from nighttrain.providers.serving.rollouts.state import Phase
from nighttrain.providers.tracking.run_store import RunStore
from nighttrain.providers.tracking.runs import Run, RunKey, RunStatus
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.rollouts.state import Point, State
    from nighttrain.providers.tracking.client import MLflowClient

PICTURE_FILE = "nighttrain/rollout.svg"
STATE_FILE = "nighttrain/rollout.json"
EXPERIMENT = "nighttrain rollouts"
"""For every model: a rollout is looked for by its endpoint, and its page leads to the version."""

_log = logging.getLogger(__name__)


class MLflowRecorder(RunStore):
    """Keeps a run for each rollout, found by the rollout's identity."""

    def __init__(self, client: MLflowClient) -> None:
        super().__init__(client)
        self._runs: dict[str, Run] = {}

    async def measured(self, state: State, samples: tuple[Sample, ...]) -> str | None:
        """Log the newest point; the id of the rollout's run, or ``None`` where MLflow does not take it."""
        try:
            run = await self._run(state)
            await self._log(state, run, state.points[-1:])
        except TrackingError as error:
            _log.warning("MLflow does not take the series of %s now: %s", state.describe(), error)
            return state.run_id
        return run.run_id

    async def ended(self, state: State) -> None:
        """Log every point that the state kept, draw the picture, and close the run."""
        if state.analysis is None:
            return
        try:
            run = await self._run(state)
            if not run.is_open:
                return
            await self._log(state, run, state.points)
            await self.put_file(run, PICTURE_FILE, draw(state).encode())
            await self.put_file(run, STATE_FILE, state.to_json().encode())
            promoted = state.phase is Phase.PROMOTED
            await self.set_tags(run.run_id, {f"{PREFIX}rollout_end": state.phase.value})
            await self.close(run.run_id, RunStatus.FINISHED if promoted else RunStatus.FAILED)
        except TrackingError as error:
            _log.warning("MLflow does not take the picture of %s: %s", state.describe(), error)

    async def _run(self, state: State) -> Run:
        run = self._runs.get(state.rollout_id)
        if run is None:
            run = self._runs[state.rollout_id] = await self._found(state) or await self._made(state)
        return run

    async def _found(self, state: State) -> Run | None:
        if state.run_id is not None:
            return await self.get(state.run_id)
        return next(iter(await self._made_with(await self._experiment(), _opening(state))), None)

    async def _made(self, state: State) -> Run:
        target = state.target
        key = RunKey(orchestrator="nighttrain", dag_id="rollout", run_id=_opening(state))
        tags = {
            f"{PREFIX}endpoint": f"{target.namespace}/{target.endpoint}",
            f"{PREFIX}model_name": target.model_name,
            f"{PREFIX}version": target.candidate,
            f"{PREFIX}previous_version": target.stable,
            f"{PREFIX}actor": state.actor,
        }
        name = f"{target.endpoint} version {target.candidate}"
        return await self._create(
            await self._experiment(), key, name=name, tags=tags, opening=_opening(state)
        )

    async def _experiment(self) -> str:
        return await self.ensure_experiment(EXPERIMENT)

    async def _log(self, state: State, run: Run, points: Iterable[Point]) -> None:
        await self.log_metrics(
            run.run_id,
            [
                {
                    "key": key,
                    "value": value,
                    "timestamp": round(point.at * 1000),
                    "step": round(point.at - state.begun_at),
                }
                for point in points
                for key, value in _values(point)
            ],
        )


def _opening(state: State) -> str:
    return f"{state.rollout_id}/{round(state.begun_at)}"


def _values(point: Point) -> list[tuple[str, float]]:
    found = [("percent", point.percent)]
    for name, (candidate, stable) in point.values.items():
        found += [(f"{name}/candidate", candidate)] if candidate is not None else []
        found += [(f"{name}/stable", stable)] if stable is not None else []
    return found
