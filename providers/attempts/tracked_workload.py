"""A workload under an MLflow run: the code that Airflow's operators and Dagster's assets both go through.

The order matters. The cluster is asked first whether it would take the Job (a dry run: rights, namespace,
admission), then the runs are opened, then the Job is created: bad input leaves nothing behind in either
place. At the end the run is closed from the workload's outcome, never from what the training code said of
itself.

Each attempt has a run of its own, opened before its Job and named in it: of several processes that open one,
the Job's name decides whose counts. The DAG run's parent run holds them together and is never what a task
fails for.

MLflow's outage stops none of this. A container that starts without a run is told the run's key, which marks
whatever run its own code opens; the run tree is completed at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    TrackingError,
    TrackingNotFoundError,
    TrackingTrashError,
    TrackingUnreachableError,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.kubernetes.job.checked import CheckedWorkload
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
        Outcome,
    )
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.kubernetes.values.timeouts import Timeouts
    from nighttrain.providers.tracking.client import TrackingConfig
    from nighttrain.providers.tracking.run_tree import RunTree
    from nighttrain.providers.tracking.runs import Lineage, LoggedModel, Run, RunKey, RunStatus

Say = Callable[[str], None]
PREVIOUS_RUN_VARIABLE = "NIGHTTRAIN_PREVIOUS_RUN_ID"

# A refusal that is an accident, of a proxy say, does not come twice; one that does is nobody's to wait for.
PARENT_TRIES = 2
_log = logging.getLogger(__name__)


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class StartedWorkload:
    """What a resumed process needs to go on: plain values only.

    The ids are empty while MLflow could not be asked; :meth:`TrackedWorkload.close` fills them in.
    """

    workload: Workload
    workload_url: str
    run_id: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""

    @property
    def cluster(self) -> str:
        """The API server's address; empty where the workload's page is not known."""
        from nighttrain.providers.kubernetes.job.kinds import kind_named

        resource = kind_named(self.workload.kind).resource
        return self.workload_url.removesuffix(resource.path(self.workload.namespace, self.workload.name))

    def run_ids(self) -> dict[str, str]:
        """Which run is whose, for whoever closes it in another process; empty if there is none yet."""
        if not self.run_id:
            return {}
        return {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "parent_run_id": self.parent_run_id,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "workload": self.workload.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StartedWorkload:
        """The inverse of :meth:`to_dict`."""
        from nighttrain.providers.kubernetes.values.submitted_workload import Workload

        return cls(**{**values, "workload": Workload.from_dict(values["workload"])})


@dataclass(frozen=True, kw_only=True)
class TrackedWorkload:
    """One task's workload and its run.

    :param cluster: where the Job runs
    :param tracking: where the run is kept, as this process reaches it
    :param tracking_uri_for_pods: MLflow's address as the pods reach it
    :param spec: the container
    :param identity: the task; attempts derive their names from it
    :param epoch: changes when the task was cleared by a person, stays over automatic retries
    :param experiment_name: MLflow experiment, made if missing
    :param run_name: the name of the task's runs
    :param parent_key: key of the DAG run's parent run
    :param run_key: key of this task's runs, one for each attempt
    :param params: parameters to log on the run before the container starts
    :param lineage: gives the lineage tags from what is known so far
    :param adopts_earlier_epochs: see :func:`nighttrain.providers.attempts.lifecycle.submit`
    :param replace_on_lost_node: see there
    :param kind: which of the kinds in :mod:`nighttrain.providers.kubernetes.job.kinds` the workload is
    """

    cluster: ClusterConfig
    tracking: TrackingConfig
    tracking_uri_for_pods: str
    spec: WorkloadSpec
    identity: WorkloadIdentity
    epoch: str
    experiment_name: str
    run_name: str
    parent_key: RunKey
    run_key: RunKey
    params: Mapping[str, str] = field(default_factory=dict)
    lineage: Callable[..., Lineage]
    adopts_earlier_epochs: bool = False
    kind: str = "Job"
    replace_on_lost_node: bool = False

    def described_run(self, started: StartedWorkload) -> dict[str, Any]:
        """What finds this attempt's run again while nobody knows its id."""
        from nighttrain.providers.tracking.unclosed_runs import described, opening_of

        opening = opening_of(started.workload.run_context)
        return described(self.experiment_name, self.run_name, self.run_key, opening)

    async def start(self, *, log: Say = _silent) -> StartedWorkload:
        """Submit the workload, or adopt the one that an earlier try of this task left.

        :raises ConfigurationError: the spec has a mistake, the cluster refuses the Job as it is written, or
            MLflow a name; nothing was created
        :raises ClusterError: the cluster cannot be reached, or forbids it
        :raises TrackingMisconfiguredError: MLflow can never be reached like this; nothing was created
        :raises TrackingError: MLflow refuses; nothing was created. That it does not answer is no error,
            unless the pod takes the run's id as ``$(MLFLOW_RUN_ID)``
        """
        from nighttrain.providers.attempts.lifecycle import submit
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.kubernetes.job.checked import check_workload
        from nighttrain.providers.kubernetes.job.kinds import kind_named
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.run_tree import RunTree

        self._check_names()
        wanted = check_workload(self.spec)
        kind = kind_named(self.kind)
        async with shared_client(self.cluster) as client, MLflowClient(self.tracking) as mlflow:
            namespace = self.spec.namespace or client.namespace
            await self._rehearse(client, namespace, kind, wanted)
            tree = RunTree(mlflow)
            candidate: Run | None = None

            async def complete() -> CheckedWorkload:
                nonlocal candidate
                if candidate is not None:
                    with contextlib.suppress(TrackingError):  # the attempt's own run closes it otherwise
                        await tree.discard(candidate.run_id)
                opening = uuid.uuid4().hex
                tags = self._new_tags(cluster=client.server, namespace=namespace)
                candidate = await self._open_attempt_if_possible(tree, wanted, opening, tags, log)
                previous = await self._run_to_resume(tree, candidate) if candidate else None
                return wanted.with_own_env(self._environment(candidate, opening, previous))

            workload = await submit(
                client,
                wanted,
                self.identity,
                epoch=self.epoch,
                namespace=namespace,
                complete=complete,
                adopts_earlier_epochs=self.adopts_earlier_epochs,
                kind=kind,
                replace_on_lost_node=self.replace_on_lost_node,
            )
            done = "Adopted" if workload.adopted else "Created"
            log(
                f"{done} {kind.name} {namespace}/{workload.name} (attempt {workload.attempt}), "
                f"MLflow run {workload.run_id or 'to follow'}"
            )
            started = StartedWorkload(
                workload=workload,
                workload_url=f"{client.server}{kind.resource.path(workload.namespace, workload.name)}",
                run_id=workload.run_id or "",
                experiment_id=workload.experiment_id or "",
            )
            return await self._with_run(tree, started, candidate)

    async def follow(
        self,
        started: StartedWorkload,
        *,
        timeouts: Timeouts,
        on_observation: Callable[[Observation], None] | None = None,
        on_line: Say | None = None,
    ) -> Outcome:
        """Wait for the outcome while lines arrive."""
        from nighttrain.providers.attempts.follow import follow_to_end
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.tracking.progress import saying_progress

        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(shared_client(self.cluster))
            if on_line is not None and started.run_id:
                await stack.enter_async_context(
                    saying_progress(self.tracking, started.experiment_id, started.run_id, on_line)
                )
            return await follow_to_end(
                client,
                started.workload,
                timeouts=timeouts,
                on_observation=on_observation,
                on_line=on_line,
                narrow=True,
            )

    async def close(self, started: StartedWorkload, outcome: Outcome) -> StartedWorkload:
        """Close the run from the outcome and complete its lineage.

        A workload that is given up though its Job has not ended (it never started, say) is removed.

        :returns: ``started`` with the run's ids, which may have been unknown so far
        :raises TrackingError: MLflow does not answer; call again later, nothing is lost
        """
        if not outcome.succeeded:
            await self._remove_if_live(started)
        return await self._close_runs(started, run_status(outcome), outcome)

    async def logged_models(self, started: StartedWorkload) -> list[LoggedModel]:
        """The models that the run logged; none where its experiment is in MLflow's trash, or where the run or
        its experiment was removed for good."""
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.run_tree import RunTree

        if not started.run_id:
            return []
        async with MLflowClient(self.tracking) as mlflow:
            tree = RunTree(mlflow)
            try:
                return await tree.logged_models(await tree.get(started.run_id))
            except TrackingNotFoundError as error:
                _log.warning(
                    "The training has ended well, but its run %s was removed from MLflow for good (mlflow "
                    "gc), and its models with it: there is nothing to register. Train again to have a model. "
                    "MLflow says: %s",
                    started.run_id,
                    error,
                )
                return []

    async def run(self, started: StartedWorkload) -> Run:
        """The run as MLflow has it now, also in the trash.

        :raises TrackingNotFoundError: the attempt started without one, and none could be made at its end
        """
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.run_tree import RunTree

        if not started.run_id:
            raise TrackingNotFoundError(
                f"the workload has no run in experiment {self.experiment_name!r}: restore the experiment "
                "from MLflow's trash, then run this again (clear the task in Airflow, re-execute the run in "
                "Dagster)"
            )
        async with MLflowClient(self.tracking) as mlflow:
            return await RunTree(mlflow).get(started.run_id)

    async def mark_consumed(self, started: StartedWorkload, outcome: Outcome) -> None:
        """The result is stored where the orchestrator keeps it: the attempt is over."""
        from nighttrain.providers.attempts.lifecycle import mark_consumed
        from nighttrain.providers.kubernetes.api.client import shared_client

        async with shared_client(self.cluster) as client:
            await mark_consumed(client, started.workload, self.epoch, outcome=outcome)

    async def cancel(self, started: StartedWorkload) -> None:
        """Remove the workload and close its run as KILLED.

        MLflow's outage is no error: the workload is gone, and only the run's status stays behind.
        """
        from nighttrain.providers.tracking.runs import RunStatus

        await self._remove(started)
        try:
            await self._close_runs(started, RunStatus.KILLED, None)
        except TrackingError as error:
            _log.warning("The workload is removed; its run could not be closed: %s", error)

    async def cancel_if_started(self) -> bool:
        """The same, for a process that was interrupted before it knew what it had started.

        :returns: whether there was something to remove
        """
        from nighttrain.providers.attempts.lifecycle import find_live
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.kubernetes.job.kinds import kind_named

        async with shared_client(self.cluster) as client:
            workload = await find_live(
                client,
                self.identity,
                epoch=self.epoch,
                namespace=self.spec.namespace or client.namespace,
                kind=kind_named(self.kind),
            )
        if workload is not None:
            run_ids = {"run_id": workload.run_id or "", "experiment_id": workload.experiment_id or ""}
            await self.cancel(StartedWorkload(workload, "", **run_ids))
        return workload is not None

    async def _close_runs(
        self, started: StartedWorkload, status: RunStatus, outcome: Outcome | None
    ) -> StartedWorkload:
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.run_tree import RunTree

        async with MLflowClient(self.tracking) as mlflow:
            tree = RunTree(mlflow)
            try:
                started = await self._with_known_run(tree, started)
                await tree.set_tags(started.run_id, self._tags(started, outcome))
                await tree.close(started.run_id, status)
                await tree.supersede(await tree.get(started.run_id))
            except (TrackingTrashError, TrackingNotFoundError, ConfigurationError) as error:
                _log.warning(
                    "The workload has ended and its run could not be written: %s",
                    restoring(error, run_id=started.run_id, experiment_id=started.experiment_id),
                )
            await self._tell_parent(tree.settle_parent, started.parent_run_id)
            return started

    async def _with_known_run(self, tree: RunTree, started: StartedWorkload) -> StartedWorkload:
        """Where the attempt started while MLflow was away, or refused its parent: its run as it is by now."""
        from nighttrain.providers.tracking.runs import PARENT_TAG
        from nighttrain.providers.tracking.unclosed_runs import opening_of

        if started.run_id and started.parent_run_id:
            return started
        if started.run_id:
            run = await tree.get(started.run_id)
            if PARENT_TAG not in run.tags and (parent := await self._parent(tree, run.experiment_id)):
                await tree.set_tags(run.run_id, {PARENT_TAG: parent})
                return replace(started, experiment_id=run.experiment_id, parent_run_id=parent)
        else:
            experiment_id = await tree.ensure_experiment(self.experiment_name)
            run = await tree.take_over(
                experiment_id,
                self.run_key,
                name=self.run_name,
                opening=opening_of(started.workload.run_context),
                parent_run_id=await self._parent(tree, experiment_id),
                tags=self._new_tags(cluster=started.cluster, namespace=started.workload.namespace),
                params=dict(self.params),
            )
        return replace(
            started,
            run_id=run.run_id,
            experiment_id=run.experiment_id,
            parent_run_id=run.tags.get(PARENT_TAG, ""),
        )

    async def _with_run(
        self, tree: RunTree, started: StartedWorkload, candidate: Run | None
    ) -> StartedWorkload:
        """Complete the run that the Job was created with; another one that was opened for it goes.

        What cannot be written now, outage or mistake, is written at the end: the workload runs by now.
        """
        from nighttrain.providers.tracking.runs import PARENT_TAG

        try:
            if candidate is not None and candidate.run_id != started.run_id:
                await tree.discard(candidate.run_id)
                candidate = None
            if not started.run_id:  # the container may be opening its own, which is taken over at the end
                return started
            run = candidate or await tree.get(started.run_id)
            parent_run_id = (
                run.tags.get(PARENT_TAG, "") if candidate else await self._parent(tree, run.experiment_id)
            )
            started = replace(started, experiment_id=run.experiment_id, parent_run_id=parent_run_id)
            await tree.set_tags(run.run_id, {**self._tags(started), PARENT_TAG: parent_run_id or None})
            if run.number > 1:
                await tree.supersede(run)
            if candidate is None:
                await tree.reopen(run.run_id)
            await self._tell_parent(tree.reopen, parent_run_id)
        except TrackingError as error:
            _log.warning(
                "The workload goes on, and what its run lacks follows at the end: %s",
                restoring(error, run_id=started.run_id, experiment_id=started.experiment_id),
            )
        return started

    async def _open_attempt_if_possible(
        self, tree: RunTree, wanted: CheckedWorkload, opening: str, tags: Mapping[str, str], log: Say
    ) -> Run | None:
        try:
            experiment_id = await tree.ensure_experiment(self.experiment_name)
            return await tree.open_attempt(
                experiment_id,
                self.run_key,
                name=self.run_name,
                parent_run_id=await self._parent(tree, experiment_id),
                tags=tags,
                params=dict(self.params),
                opening=opening,
            )
        except TrackingUnreachableError as error:
            self._check_needs_no_run(wanted, error)
            log(f"MLflow does not answer; the training starts without it and its run follows: {error}")
            return None

    def _check_needs_no_run(self, wanted: CheckedWorkload, error: TrackingUnreachableError) -> None:
        if name := wanted.refers_to_the_run():
            # Every attempt without a run would take the same text for it, a path say.
            raise TrackingUnreachableError(
                f"the pod uses $({name}), which nobody knows while MLflow does not answer: a retry can start "
                f"it once MLflow does. ({error})"
            ) from error

    async def _parent(self, tree: RunTree, experiment_id: str) -> str:
        """The id of the DAG run's run; empty where MLflow refuses one, which no task fails for."""
        from nighttrain.providers.tracking.runs import Lineage

        key = self.parent_key
        whole = Lineage(orchestrator=key.orchestrator, dag_id=key.dag_id, run_id=key.run_id)
        name, tags = f"{key.dag_id} {key.run_id}", whole.tags()
        for tries_left in reversed(range(PARENT_TRIES)):
            try:
                return (await tree.open_parent(experiment_id, key, name=name, tags=tags)).run_id
            except TrackingUnreachableError:
                raise
            except TrackingError as error:
                if not tries_left:
                    _log.warning("The task's run stands alone, without one of its DAG run: %s", error)
        return ""

    async def _tell_parent(self, tell: Callable[[str], Awaitable[None]], parent_run_id: str) -> None:
        """Have the DAG run's run say how its tasks stand, which no task fails for."""
        if not parent_run_id:
            return
        for tries_left in reversed(range(PARENT_TRIES)):
            try:
                await tell(parent_run_id)
            except TrackingUnreachableError:
                raise
            except TrackingError as error:
                if tries_left and not isinstance(error, TrackingTrashError):
                    continue
                said = restoring(error, run_id=parent_run_id)
                _log.warning("The DAG run's run is left to the reaper, or to its next task: %s", said)
            return

    async def _run_to_resume(self, tree: RunTree, run: Run) -> str | None:
        """The attempt before, if it belongs to the same wish: what a clear asks for starts anew."""
        from nighttrain.providers.tracking.runs import EPOCH_TAG, PREVIOUS_TAG, RunStatus

        if PREVIOUS_TAG not in run.tags:
            return None
        try:
            previous = await tree.get(run.tags[PREVIOUS_TAG])
        except TrackingError:  # it would have been a help, no more
            return None
        same = previous.tags.get(EPOCH_TAG) == run.tags.get(EPOCH_TAG)
        return previous.run_id if same and previous.status != RunStatus.FINISHED.value else None

    def _check_names(self) -> None:
        from nighttrain.providers.tracking.names import check_experiment_name, check_run_name, read_params

        check_experiment_name(self.experiment_name)
        check_run_name(self.run_name)
        read_params(self.params)

    async def _rehearse(
        self, client: ClusterClient, namespace: str, kind: WorkloadKind, wanted: CheckedWorkload
    ) -> None:
        try:
            await client.create(kind.resource, namespace, kind.build(wanted, self.identity, 1), dry_run=True)
        except (ObjectExistsError, ObjectConflictError):
            return  # an earlier try was here: submit() decides what that means

    def _new_tags(self, *, cluster: str, namespace: str) -> dict[str, str]:
        """Where its workload is to be, too: if this process dies, only the reaper of that place may judge."""
        from nighttrain.providers.tracking.runs import EPOCH_TAG

        known = self.lineage(image=self.spec.image, cluster=cluster, namespace=namespace)
        return {**known.tags(), EPOCH_TAG: self.epoch}

    def _environment(self, run: Run | None, opening: str, previous: str | None) -> dict[str, str]:
        environment = {
            "MLFLOW_TRACKING_URI": self.tracking_uri_for_pods,
            # Lines arrive as they are printed, and in the order in which they were.
            "PYTHONUNBUFFERED": "1",
        }
        if previous is not None:
            environment[PREVIOUS_RUN_VARIABLE] = previous
        if run is None:
            from nighttrain.providers.tracking.runs import (
                OPENED_BY_CONTAINER,
                OPENED_BY_TAG,
                OPENING_TAG,
                RUN_KEY_TAG,
            )

            marks = {
                RUN_KEY_TAG: self.run_key.value,
                OPENED_BY_TAG: OPENED_BY_CONTAINER,
                OPENING_TAG: opening,
            }
            return environment | {
                "MLFLOW_EXPERIMENT_NAME": self.experiment_name,
                # MLflow puts these tags on every run that the container opens: so it is found at the end.
                "MLFLOW_RUN_CONTEXT": json.dumps(marks),
            }
        return environment | {
            "MLFLOW_RUN_ID": run.run_id,
            # After autolog has ended the run, later log calls would otherwise open one in Default.
            "MLFLOW_EXPERIMENT_ID": run.experiment_id,
        }

    def _tags(self, started: StartedWorkload, outcome: Outcome | None = None) -> dict[str, str]:
        workload = started.workload
        known: dict[str, Any] = {
            "cluster": started.cluster,
            "image": self.spec.image,
            "attempt": workload.attempt,
            "namespace": workload.namespace,
            "job_name": workload.name,
            "job_uid": workload.uid,
        }
        if outcome is not None:
            known.update(pod_uid=outcome.pod_uid, image_digest=outcome.image_id, outcome=outcome.kind.value)
        return self.lineage(**known).tags()

    async def _remove_if_live(self, started: StartedWorkload) -> None:
        from nighttrain.providers.attempts.lifecycle import cancel_if_live
        from nighttrain.providers.kubernetes.api.client import shared_client

        async with shared_client(self.cluster) as client:
            await cancel_if_live(client, started.workload)

    async def _remove(self, started: StartedWorkload) -> None:
        from nighttrain.providers.attempts.lifecycle import cancel
        from nighttrain.providers.kubernetes.api.client import shared_client

        async with shared_client(self.cluster) as client:
            await cancel(client, started.workload)


def restoring(error: Exception, *, run_id: str, experiment_id: str = "") -> str:
    """What MLflow said, and how to have back what is in its trash."""
    if not isinstance(error, TrackingTrashError):
        return str(error)
    commands = [f"mlflow runs restore --run-id {run_id}"] if run_id else []
    if experiment_id:
        commands.append(
            f"if its experiment was deleted, mlflow experiments restore --experiment-id {experiment_id}"
        )
    return f"it is in MLflow's trash. To have it back: {'; '.join(commands)}. MLflow says: {error}"


def run_status(outcome: Outcome) -> RunStatus:
    """The run's status that fits an outcome: what a person or the cluster stopped is KILLED, not FAILED."""
    from nighttrain.providers.kubernetes.outcome.outcome import (
        OutcomeKind,
    )
    from nighttrain.providers.tracking.runs import RunStatus

    if outcome.kind is OutcomeKind.SUCCEEDED:
        return RunStatus.FINISHED
    if outcome.kind is OutcomeKind.CANCELLED:
        return RunStatus.KILLED
    return RunStatus.FAILED
