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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.attempt import Attempt, StartedWorkload
from nighttrain.providers.attempts.attempt_run import (
    EXPERIMENT_ID_VARIABLE,
    EXPERIMENT_NAME_VARIABLE,
    RUN_CONTEXT_VARIABLE,
    RUN_ID_VARIABLE,
    AttemptRun,
    attempt_tags,
    open_parent,
    opening_of,
    reopen_parent,
    restoring,
)
from nighttrain.providers.attempts.lifecycle import find_live, submit
from nighttrain.providers.errors import (
    ObjectConflictError,
    ObjectExistsError,
    TrackingError,
    TrackingUnreachableError,
)
from nighttrain.providers.kubernetes.api.client import shared_client
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.kinds import kind_named
from nighttrain.providers.tracking.names import check_experiment_name, check_run_name, read_params
from nighttrain.providers.tracking.run_tree import RunTree, open_run_tree
from nighttrain.providers.tracking.runs import (
    EPOCH_TAG,
    OPENED_BY_CONTAINER,
    OPENED_BY_TAG,
    OPENING_TAG,
    PARENT_TAG,
    PREVIOUS_TAG,
    RUN_KEY_TAG,
    Lineage,
    RunKey,
    RunStatus,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.kubernetes.job.checked import CheckedWorkload
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.tracking.config import TrackingConfig
    from nighttrain.providers.tracking.runs import Run

Say = Callable[[str], None]
PREVIOUS_RUN_VARIABLE = "NIGHTTRAIN_PREVIOUS_RUN_ID"
_log = logging.getLogger(__name__)


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class TrackedWorkload:
    """One task's workload and its run, from which its attempts start.

    :param cluster: where the Job runs
    :param tracking: where the run is kept, as this process reaches it
    :param tracking_uri_for_pods: MLflow's address as the pods reach it
    :param spec: the container
    :param identity: the task; attempts derive their names from it, and runs whose they are
    :param epoch: changes when the task was cleared by a person, stays over automatic retries
    :param experiment_name: MLflow experiment, made if missing
    :param run_name: the name of the task's runs
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
    params: Mapping[str, str] = field(default_factory=dict)
    lineage: Callable[..., Lineage]
    adopts_earlier_epochs: bool = False
    kind: str = "Job"
    replace_on_lost_node: bool = False

    @property
    def run_key(self) -> RunKey:
        """Whose the task's runs are, one for each attempt."""
        return RunKey(**asdict(self.identity))

    def attempt(self, started: StartedWorkload) -> Attempt:
        """The attempt that was started, to follow, settle or cancel."""
        workload = started.workload
        return Attempt(
            cluster=self.cluster,
            tracking=self.tracking,
            workload=workload,
            workload_url=started.workload_url,
            run=AttemptRun(
                run_id=started.run_id,
                experiment_id=started.experiment_id,
                parent_run_id=started.parent_run_id,
                key=self.run_key,
                experiment_name=self.experiment_name,
                run_name=self.run_name,
                opening=opening_of(workload.run_context),
                params=self.params,
                tags=self._new_tags(cluster=started.cluster, namespace=workload.namespace),
            ),
            lineage=self._lineage,
            epoch=self.epoch,
        )

    async def start(self, *, log: Say = _silent) -> StartedWorkload:
        """Submit the workload, or adopt the one that an earlier try of this task left.

        :raises ConfigurationError: the spec has a mistake, the cluster refuses the Job as it is written, or
            MLflow a name; nothing was created
        :raises ClusterError: the cluster cannot be reached, or forbids it
        :raises TrackingMisconfiguredError: MLflow can never be reached like this; nothing was created
        :raises TrackingError: MLflow refuses; nothing was created. That it does not answer is no error,
            unless the pod takes the run's id as ``$(MLFLOW_RUN_ID)``
        """
        self._check_names()
        wanted = check_workload(self.spec)
        kind = kind_named(self.kind)
        async with shared_client(self.cluster) as client, open_run_tree(self.tracking) as tree:
            namespace = self.spec.namespace or client.namespace
            await self._rehearse(client, namespace, kind, wanted)
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
            page = f"{client.server}{kind.resource.path(workload.namespace, workload.name)}"
            started = _started(workload, page)
            return await self._with_run(tree, started, candidate)

    async def cancel_if_started(self) -> bool:
        """Cancel what a process started that was interrupted before it knew of it.

        :return: whether there was something to remove
        """
        async with shared_client(self.cluster) as client:
            workload = await find_live(
                client,
                self.identity,
                epoch=self.epoch,
                namespace=self.spec.namespace or client.namespace,
                kind=kind_named(self.kind),
            )
        if workload is not None:
            await self.attempt(_started(workload)).cancel()
        return workload is not None

    async def _with_run(
        self, tree: RunTree, started: StartedWorkload, candidate: Run | None
    ) -> StartedWorkload:
        """Complete the run that the Job was created with; another one that was opened for it goes.

        What cannot be written now, outage or mistake, is written at the end: the workload runs by now.
        """
        try:
            if candidate is not None and candidate.run_id != started.run_id:
                await tree.discard(candidate.run_id)
                candidate = None
            if not started.run_id:  # the container may be opening its own, which is taken over at the end
                return started
            run = candidate or await tree.get(started.run_id)
            parent_run_id = run.tags.get(PARENT_TAG, "")
            if candidate is None:
                parent_run_id = await open_parent(tree, run.experiment_id, self.run_key.parent)
            started = replace(started, experiment_id=run.experiment_id, parent_run_id=parent_run_id)
            tags = attempt_tags(self._lineage, started.cluster, started.workload)
            await tree.set_tags(run.run_id, {**tags, PARENT_TAG: parent_run_id or None})
            if run.number > 1:
                await tree.supersede(run)
            if candidate is None:
                await tree.reopen(run.run_id)
            await reopen_parent(tree, parent_run_id)
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
                parent_run_id=await open_parent(tree, experiment_id, self.run_key.parent),
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

    async def _run_to_resume(self, tree: RunTree, run: Run) -> str | None:
        """The attempt before, if it belongs to the same wish: what a clear asks for starts anew."""
        if PREVIOUS_TAG not in run.tags:
            return None
        try:
            previous = await tree.get(run.tags[PREVIOUS_TAG])
        except TrackingError:  # it would have been a help, no more
            return None
        same = previous.tags.get(EPOCH_TAG) == run.tags.get(EPOCH_TAG)
        return previous.run_id if same and previous.status != RunStatus.FINISHED.value else None

    def _check_names(self) -> None:
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
        """Tags of a new run. They name its place: if this process dies, only the reaper there may judge."""
        known = self._lineage(cluster=cluster, namespace=namespace)
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
            marks = {
                RUN_KEY_TAG: self.run_key.value,
                OPENED_BY_TAG: OPENED_BY_CONTAINER,
                OPENING_TAG: opening,
            }
            return environment | {
                EXPERIMENT_NAME_VARIABLE: self.experiment_name,
                # MLflow puts these tags on every run that the container opens: so it is found at the end.
                RUN_CONTEXT_VARIABLE: json.dumps(marks),
            }
        return environment | {
            RUN_ID_VARIABLE: run.run_id,
            # After autolog has ended the run, later log calls would otherwise open one in Default.
            EXPERIMENT_ID_VARIABLE: run.experiment_id,
        }

    @property
    def _lineage(self) -> Callable[..., Lineage]:
        return partial(self.lineage, image=self.spec.image)


def _started(workload: Workload, page: str = "") -> StartedWorkload:
    return StartedWorkload(
        workload=workload,
        workload_url=page,
        run_id=workload.run_id or "",
        experiment_id=workload.experiment_id or "",
    )
