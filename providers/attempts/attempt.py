"""An attempt under way, for whoever holds it: a worker, a trigger, a step of Dagster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.attempts.attempt_run import AttemptRun, attempt_tags, restoring, settle_parent
from nighttrain.providers.attempts.follow_to_end import follow_to_end
from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingNotFoundError,
    TrackingTrashError,
)
from nighttrain.providers.kubernetes.api.client import shared_client
from nighttrain.providers.kubernetes.job.kinds import kind_named
from nighttrain.providers.kubernetes.outcome.outcome import OutcomeKind
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.tracking.run_tree import open_run_tree
from nighttrain.providers.tracking.runs import Lineage, RunStatus

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterConfig
    from nighttrain.providers.kubernetes.outcome.outcome import Observation, Outcome
    from nighttrain.providers.kubernetes.values.timeouts import Timeouts
    from nighttrain.providers.tracking.config import TrackingConfig
    from nighttrain.providers.tracking.runs import LoggedModel, Run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartedWorkload:
    """The plain values that a resumed process needs to go on.

    The ids are empty while MLflow could not be asked; :meth:`Attempt.settle` fills them in.
    """

    workload: Workload
    workload_url: str
    run_id: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""

    @property
    def cluster(self) -> str:
        """The API server's address; empty where the workload's page is not known."""
        resource = kind_named(self.workload.kind).resource
        return self.workload_url.removesuffix(resource.path(self.workload.namespace, self.workload.name))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "workload": self.workload.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StartedWorkload:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "workload": Workload.from_dict(values["workload"])})


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A workload that was started, and its run.

    :param cluster: where the workload runs
    :param tracking: where the run is kept; without it no run is followed or closed
    :param workload: the workload
    :param run: what is known of its run
    :param workload_url: the workload's page; empty where it is not known
    :param lineage: gives the run's tags from what is known so far
    :param epoch: the one that it was started in
    """

    cluster: ClusterConfig
    tracking: TrackingConfig | None
    workload: Workload
    run: AttemptRun
    workload_url: str = ""
    lineage: Callable[..., Lineage] | None = None
    epoch: str = ""

    @property
    def started(self) -> StartedWorkload:
        """The attempt as plain values."""
        return StartedWorkload(
            self.workload,
            self.workload_url,
            self.run.run_id,
            self.run.experiment_id,
            self.run.parent_run_id,
        )

    async def follow(
        self,
        *,
        timeouts: Timeouts,
        on_observation: Callable[[Observation], None] | None = None,
        on_line: Callable[[str], None] | None = None,
        narrow: bool = True,
    ) -> Outcome:
        """Wait for the outcome while lines arrive.

        :param narrow: see :func:`nighttrain.providers.attempts.wait_for_end.wait`
        :raises ClusterError: the cluster refused, or could not be asked for an hour
        """
        # Loads the HTTP client, which whoever only imports this module can do without.
        from nighttrain.providers.tracking.progress import saying_progress

        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(shared_client(self.cluster))
            if on_line is not None and self.tracking is not None and self.run.run_id:
                await stack.enter_async_context(
                    saying_progress(self.tracking, self.run.experiment_id, self.run.run_id, on_line)
                )
            return await follow_to_end(
                client,
                self.workload,
                timeouts=timeouts,
                on_observation=on_observation,
                on_line=on_line,
                narrow=narrow,
            )

    async def settle(self, outcome: Outcome) -> Attempt:
        """Close the run from the outcome and complete its lineage.

        A workload that is given up though its Job has not ended (it never started, say) is removed.

        :return: the attempt with the run's ids, which may have been unknown so far
        :raises TrackingError: MLflow does not answer; call again later, nothing is lost
        """
        if not outcome.succeeded:
            await self.remove_if_live()
        return await self._close_run(run_status(outcome), outcome)

    async def mark_consumed(self, outcome: Outcome) -> None:
        """Note that the result is stored where the orchestrator keeps it: the attempt is over."""
        async with shared_client(self.cluster) as client:
            await lifecycle.mark_consumed(client, self.workload, self.epoch, outcome=outcome)

    async def cancel(self) -> None:
        """Remove the workload and close its run as KILLED."""
        await self.remove()
        await self.close_removed()

    async def remove(self) -> None:
        """Remove the workload and wait until nothing of it runs."""
        async with shared_client(self.cluster) as client:
            await lifecycle.cancel(client, self.workload)

    async def remove_if_live(self) -> bool:
        """Remove the workload unless it has ended.

        :return: whether it was live
        """
        async with shared_client(self.cluster) as client:
            return await lifecycle.cancel_if_live(client, self.workload)

    async def close_removed(self) -> None:
        """Close the run of a workload that was removed as KILLED.

        MLflow's outage is no error: the workload is gone, and only the run's status stays behind.
        """
        if self.tracking is None or not self.run.can_be_found:
            return
        try:
            await self._close_run(RunStatus.KILLED, None)
        except TrackingError as error:
            _log.warning("The workload is removed; its run could not be closed: %s", error)

    async def logged_models(self) -> list[LoggedModel]:
        """The models that the run logged; none where its experiment is in MLflow's trash, or where the run or
        its experiment was removed for good."""
        if not self.run.run_id:
            return []
        async with open_run_tree(self._tracking()) as tree:
            try:
                return await tree.logged_models(await tree.get(self.run.run_id))
            except TrackingNotFoundError as error:
                _log.warning(
                    "The training has ended well, but its run %s was removed from MLflow for good (mlflow "
                    "gc), and its models with it: there is nothing to register. Train again to have a model. "
                    "MLflow says: %s",
                    self.run.run_id,
                    error,
                )
                return []

    async def trained_run(self) -> Run | None:
        """The run of a training that has ended, its inputs recorded; ``None`` where it has none any more.

        :raises TrackingUnreachableError: MLflow does not answer; call again later
        """
        from nighttrain.providers.tracking.datasets import record_inputs

        if not self.run.run_id:
            return None
        async with open_run_tree(self._tracking()) as tree:
            try:
                run = await tree.get(self.run.run_id)
            except TrackingNotFoundError:  # logged_models tells
                return None
            if not run.deleted:
                await record_inputs(tree.client, run)
        return run

    async def logged_run(self) -> Run:
        """The run as MLflow has it now, also in the trash.

        :raises TrackingNotFoundError: the attempt started without one, and none could be made at its end
        """
        if not self.run.run_id:
            raise TrackingNotFoundError(
                f"the workload has no run in experiment {self.run.experiment_name!r}: restore the experiment "
                "from MLflow's trash, then run this again (clear the task in Airflow, re-execute the run in "
                "Dagster)"
            )
        async with open_run_tree(self._tracking()) as tree:
            return await tree.get(self.run.run_id)

    async def _close_run(self, status: RunStatus, outcome: Outcome | None) -> Attempt:
        tags: dict[str, str] = {}
        if self.lineage is not None:
            tags = attempt_tags(self.lineage, self.started.cluster, self.workload, outcome)
        run = self.run
        async with open_run_tree(self._tracking()) as tree:
            try:
                run = await run.find(tree)
                await run.close(tree, status, tags)
            except (TrackingTrashError, TrackingNotFoundError, ConfigurationError) as error:
                _log.warning(
                    "The workload has ended and its run could not be written: %s",
                    restoring(error, run_id=run.run_id, experiment_id=run.experiment_id),
                )
            await settle_parent(tree, run.parent_run_id)
        return replace(self, run=run)

    def _tracking(self) -> TrackingConfig:
        if self.tracking is None:
            raise TrackingMisconfiguredError(f"no way to MLflow was given for {self.workload.described}")
        return self.tracking


def run_status(outcome: Outcome) -> RunStatus:
    """The run's status that fits an outcome: what a person or the cluster stopped is KILLED, not FAILED."""
    if outcome.kind is OutcomeKind.SUCCEEDED:
        return RunStatus.FINISHED
    if outcome.kind is OutcomeKind.CANCELLED:
        return RunStatus.KILLED
    return RunStatus.FAILED
