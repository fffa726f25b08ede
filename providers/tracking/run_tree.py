"""The run tree of a DAG run: one parent, and under it a run for each attempt of each task.

The parent is elected (see :mod:`~nighttrain.providers.tracking.election`). Which run is an attempt's is
decided by the cluster: it is the one that the attempt's Job was created with. Statuses are written from the
workload's outcome, because the status the training process leaves behind cannot be trusted.
"""

from __future__ import annotations

import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingTrashError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking.election import Election
from nighttrain.providers.tracking.run_store import RunStore
from nighttrain.providers.tracking.runs import (
    EPOCH_TAG,
    OPENED_BY_TAG,
    OPENING_TAG,
    PARENT_TAG,
    PREVIOUS_TAG,
    RUN_KEY_TAG,
    RUN_NUMBER_TAG,
    SUPERSEDED_TAG,
    Run,
    RunStatus,
)
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nighttrain.providers.tracking.config import TrackingConfig
    from nighttrain.providers.tracking.runs import RunKey

_log = logging.getLogger(__name__)

GENERATIONS = 100
"""So many parents of one DAG run in the trash, one after the other, are no person's doing."""

SETTLE_ROUNDS = 20
"""Tasks that end at once look at each other's writes: each round one of them is the last."""


@asynccontextmanager
async def open_run_tree(config: TrackingConfig) -> AsyncIterator[RunTree]:
    """A run tree on a connection of its own, for as long as the context lasts."""
    # Loads the HTTP client, which whoever only imports this module can do without.
    from nighttrain.providers.tracking.client import MLflowClient

    async with MLflowClient(config) as client:
        yield RunTree(client)


class RunTree(RunStore):
    """Opens, finds and closes the runs of a DAG run."""

    async def open_parent(
        self, experiment_id: str, identity: RunKey, *, name: str, tags: Mapping[str, object] | None = None
    ) -> Run:
        """The run of the whole DAG run: the same one for all who ask, whenever they do.

        One that a person put into the trash is followed by another. One that was closed stays so until
        :meth:`reopen`, which is due once it has a child that goes on.

        :param identity: may be that of any of its tasks
        """
        key = identity.parent
        for generation in range(GENERATIONS):
            election = self._election(experiment_id, key.value, generation)
            elected = await election.elected()
            if elected is not None:
                run = await self._get_or_none(elected)
            else:
                known = await self.find(experiment_id, key)
                run = await self._elect(
                    election,
                    known,
                    lambda: self._create(experiment_id, key, name=name, tags=dict(tags or {})),
                )
            if run is not None and not run.deleted:
                return run
        raise TrackingRequestError(
            f"{GENERATIONS} parent runs of {key.value} are in MLflow's trash: does something delete them?"
        )

    async def open_attempt(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        parent_run_id: str = "",
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        opening: str | None = None,
    ) -> Run:
        """A new run for the next attempt of a task. Each call makes one.

        It counts only once a Job was created with it. If another one was, :meth:`discard` it; if this one,
        :meth:`supersede` those before it.

        :param parent_run_id: the DAG run's; empty where it has none
        :param opening: finds the run again where the answer was lost: a fresh token by default
        :raises ConfigurationError: a key without a task
        """
        if key.task_id is None:
            raise ConfigurationError(
                "task_id", key.value, "an attempt belongs to a task: set task_id in its RunKey"
            )
        # What another process opened for this very attempt, and died or lost, is no attempt before it.
        earlier = [run for run in await self.attempts(experiment_id, key) if run.had_job]
        number = max((run.number for run in earlier), default=0) + 1
        run = await self._create(
            experiment_id,
            key,
            # MLflow's page shows the names side by side.
            name=name if number == 1 else f"{name} #{number}",
            tags={
                **(tags or {}),
                RUN_NUMBER_TAG: number,
                PARENT_TAG: parent_run_id or None,
                PREVIOUS_TAG: earlier[-1].run_id if earlier else None,
            },
            opening=opening,
        )
        if params:
            await self._log_params_or_discard(run.run_id, params)
        return run

    async def _log_params_or_discard(self, run_id: str, params: Mapping[str, object]) -> None:
        try:
            await self.log_params(run_id, params)
        except (TrackingRequestError, TrackingUnauthorizedError, ConfigurationError):
            await self.discard(run_id)  # no container will be started with it
            raise

    async def take_over(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        opening: str,
        parent_run_id: str,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Run:
        """The run of an attempt that started while MLflow was away.

        It is the one that its container opened, or else a new one, the same for all who ask.

        :param opening: the token that the container was given; without one (a trigger that an earlier version
            stored) it is the task's last run
        """
        run = await self._opened_or_elected(experiment_id, key, name, opening)
        others = [each for each in await self.attempts(experiment_id, key) if each.run_id != run.run_id]
        number = run.number or max((each.number for each in others if each.had_job), default=0) + 1
        await self.set_tags(
            run.run_id, {**(tags or {}), RUN_NUMBER_TAG: number, PARENT_TAG: parent_run_id or None}
        )
        if params:
            await self.log_missing_params(run, params)
        return await self.get(run.run_id)

    async def _opened_or_elected(self, experiment_id: str, key: RunKey, name: str, opening: str) -> Run:
        if opening:
            made = await self._made_with(experiment_id, opening)
        else:
            made = (await self.attempts(experiment_id, key))[-1:]
        by_container = [run for run in made if OPENED_BY_TAG in run.tags]
        if by_container:
            return by_container[0]
        election = Election(self.client, experiment_id, key.value, f"opening {opening}")
        elected = await election.elected()
        run = await self._get_or_none(elected) if elected else None
        if run is None:
            run = await self._elect(
                election,
                made[0] if made else None,
                lambda: self.open_attempt(experiment_id, key, name=name, opening=opening),
            )
        return run or await self.open_attempt(experiment_id, key, name=name)

    async def attempts(self, experiment_id: str, key: RunKey) -> list[Run]:
        """The runs of a task that are not in the trash, in the order of its attempts."""
        return sorted(
            await self._tagged(experiment_id, RUN_KEY_TAG, key.value),
            key=lambda run: (run.number, run.start_time or 0, run.run_id),
        )

    async def find(self, experiment_id: str, key: RunKey) -> Run | None:
        """The oldest run with this key that is not in the trash."""
        return min(
            await self._tagged(experiment_id, RUN_KEY_TAG, key.value),
            key=lambda run: (run.start_time or 0, run.run_id),
            default=None,
        )

    async def supersede(self, run: Run) -> None:
        """Mark the runs of the task's earlier attempts as followed by this one, and close those left open.

        Left open is the run of a process that died before it had created its Job, or whose Job another
        process had created. What the same opening made twice, since an answer was lost, goes into the trash.
        """
        key, opening = run.tags.get(RUN_KEY_TAG, ""), run.tags.get(OPENING_TAG)
        for other in await self._tagged(run.experiment_id, RUN_KEY_TAG, key):
            if other.run_id == run.run_id:
                continue
            if opening and other.tags.get(OPENING_TAG) == opening:
                if OPENED_BY_TAG not in other.tags:  # a container may open several
                    await self.discard(other.run_id)
                continue
            if other.number < run.number or (other.number == run.number and not other.had_job):
                # Whoever opened it was faster, or it was removed for good.
                with contextlib.suppress(TrackingTrashError, TrackingNotFoundError):
                    await self._give_way(other, run)

    async def step_aside(self, run: Run) -> None:
        """Mark a run that never had a Job as no attempt, where another process's run had one.

        Both are of the same epoch of the task, which then goes by that other run.
        """
        if run.had_job:
            return
        of_task = await self._tagged(run.experiment_id, RUN_KEY_TAG, run.tags.get(RUN_KEY_TAG, ""))
        had_job = [
            each for each in of_task if each.had_job and each.tags.get(EPOCH_TAG) == run.tags.get(EPOCH_TAG)
        ]
        if had_job:
            last = max(had_job, key=lambda each: each.number)
            await self.set_tags(run.run_id, {SUPERSEDED_TAG: last.run_id, RUN_NUMBER_TAG: last.number})

    async def _give_way(self, earlier: Run, run: Run) -> None:
        if earlier.is_open:
            await self.close(earlier.run_id, RunStatus.KILLED)
        if SUPERSEDED_TAG not in earlier.tags:
            await self.set_tags(earlier.run_id, {SUPERSEDED_TAG: run.run_id})

    async def settle_parent(self, parent_run_id: str) -> None:
        """Write the parent run's status from its tasks', each by its last attempt.

        It is RUNNING while one goes on, else FAILED if one failed, KILLED if one was killed, or FINISHED.

        Whoever writes looks again afterwards: of several that settle at once the last one sees the others.
        """
        parent = await self.get(parent_run_id)
        for _ in range(SETTLE_ROUNDS):
            wanted = await self._status_of_children(parent)
            parent = await self.get(parent_run_id)
            if wanted is None or parent.deleted or parent.status == wanted.value:
                return
            if wanted is RunStatus.RUNNING:
                await self.reopen(parent_run_id)
            else:
                await self._discard_losers(parent)
                await self.close(parent_run_id, wanted)

    async def _status_of_children(self, parent: Run) -> RunStatus | None:
        of_parent = f"tags.`{PARENT_TAG}` = {quoted(parent.run_id)}"
        # Asked first, since of a thousand mapped tasks all but the last need to know no more than this.
        running = await self._search(
            parent.experiment_id, f"{of_parent} AND attributes.status = 'RUNNING'", at_most=10
        )
        if any(SUPERSEDED_TAG not in run.tags for run in running):
            return RunStatus.RUNNING
        last: dict[str, Run] = {}
        for run in sorted(
            await self._search(parent.experiment_id, of_parent),
            key=lambda run: (SUPERSEDED_TAG not in run.tags, run.number, run.start_time or 0),
        ):
            last[run.tags.get(RUN_KEY_TAG, run.run_id)] = run
        if not last:
            return None
        if any(run.is_open for run in last.values()):
            return RunStatus.RUNNING
        statuses = {run.status for run in last.values()}
        worst = (status for status in (RunStatus.FAILED, RunStatus.KILLED) if status.value in statuses)
        return next(worst, RunStatus.FINISHED)

    async def _discard_losers(self, parent: Run) -> None:
        """Discard parents that lost an election and whose makers died before they could.

        One that was elected, before or after this one, may be somebody's parent, or about to become it; and
        where MLflow lets nobody elect, every one is.
        """
        key = parent.tags.get(RUN_KEY_TAG)
        if key is None:
            return
        beside = [
            run
            for run in await self._tagged(parent.experiment_id, RUN_KEY_TAG, key)
            if run.run_id != parent.run_id and run.is_open and OPENING_TAG in run.tags
        ]
        elected = await self._elected(parent.experiment_id, key) if beside else []
        for run in beside if elected else ():
            of_it = f"tags.`{PARENT_TAG}` = {quoted(run.run_id)}"
            if run.run_id not in elected and not await self._search(run.experiment_id, of_it, at_most=1):
                await self.discard(run.run_id)

    def _election(self, experiment_id: str, key: str, generation: int) -> Election:
        return Election(self.client, experiment_id, key, f"parent {generation}")

    async def _elected(self, experiment_id: str, key: str) -> list[str]:
        """The parents that were elected, one after the other."""
        found: list[str] = []
        for generation in range(GENERATIONS):
            elected = await self._election(experiment_id, key, generation).elected()
            if elected is None:
                break
            found.append(elected)
        return found

    async def _elect(
        self, election: Election, known: Run | None, make: Callable[[], Awaitable[Run]]
    ) -> Run | None:
        """The elected run, where there was none; ``None`` if it is gone for good.

        :param known: stands, where there is one; otherwise one is made, which goes if it loses
        """
        candidate = known or await make()
        try:
            elected = await election.stand(candidate.run_id)
        except TrackingUnreachableError:
            raise
        except (TrackingRequestError, TrackingUnauthorizedError) as error:
            # A server that lets these credentials make runs but no experiments. No task fails for that.
            _log.warning("MLflow elects no run, so that several may stand side by side: %s", error)
            return candidate
        if elected == candidate.run_id:
            return candidate
        if candidate is not known:
            await self.discard(candidate.run_id)
        return await self._get_or_none(elected)
