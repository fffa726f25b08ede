"""A workload under an MLflow run: the code that Airflow's operators and Dagster's assets both go through.

The order matters. The cluster is asked first whether it would take the Job (a dry run: rights, namespace,
admission), then the runs are opened, then the Job is created: bad input leaves nothing behind in either
place. At the end the run is closed from the workload's outcome, never from what the training code said of
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ObjectExistsError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient, ClusterConfig
    from nighttrain.providers.kubernetes.identity import WorkloadIdentity
    from nighttrain.providers.kubernetes.outcome import Observation, Outcome
    from nighttrain.providers.kubernetes.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.workload import Workload
    from nighttrain.providers.tracking.client import TrackingConfig
    from nighttrain.providers.tracking.runs import Lineage, LoggedModel, Run, RunKey, RunStatus, RunTree

Say = Callable[[str], None]


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class StartedWorkload:
    """What a resumed process needs to go on: plain values only."""

    workload: Workload
    run_id: str
    experiment_id: str
    parent_run_id: str
    workload_url: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "workload": self.workload.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StartedWorkload:
        """The inverse of :meth:`to_dict`."""
        from nighttrain.providers.kubernetes.workload import Workload

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
    :param run_name: the child run's name
    :param parent_key: key of the DAG run's parent run
    :param run_key: key of this task's child run
    :param params: parameters to log on the run before the container starts
    :param lineage: gives the lineage tags from what is known so far
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

    async def start(self, *, log: Say = _silent) -> StartedWorkload:
        """Submit the workload, or adopt the one that an earlier try of this task left.

        :raises ConfigurationError: the cluster refuses the Job as it is written
        :raises ClusterError: the cluster cannot be reached, or forbids it
        :raises TrackingError: MLflow cannot be reached, or forbids it; nothing was created
        """
        from nighttrain.providers.kubernetes.client import shared_client
        from nighttrain.providers.kubernetes.workload import submit
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.runs import RunTree

        async with shared_client(self.cluster) as client, MLflowClient(self.tracking) as mlflow:
            namespace = self.spec.namespace or client.namespace
            await self._rehearse(client, namespace)
            tree = RunTree(mlflow)
            parent, run = await self._open_runs(tree)
            spec = with_env(self.spec, self._environment(run))
            workload = await submit(client, spec, self.identity, epoch=self.epoch, namespace=namespace)
            log(
                f"{'Adopted' if workload.adopted else 'Created'} Job {workload.namespace}/{workload.name} "
                f"(attempt {workload.attempt}), MLflow run {run.run_id}"
            )
            await tree.set_tags(run.run_id, self._tags(workload))
            return StartedWorkload(
                workload=workload,
                run_id=run.run_id,
                experiment_id=run.experiment_id,
                parent_run_id=parent.run_id,
                workload_url=(
                    f"{client.server}/apis/batch/v1/namespaces/{workload.namespace}/jobs/{workload.name}"
                ),
            )

    async def follow(
        self,
        started: StartedWorkload,
        *,
        startup_timeout_seconds: float,
        on_observation: Callable[[Observation], None] | None = None,
        on_line: Say | None = None,
    ) -> Outcome:
        """Wait for the outcome while lines arrive."""
        from nighttrain.providers.kubernetes.client import shared_client
        from nighttrain.providers.kubernetes.follow import follow_to_end

        async with shared_client(self.cluster) as client:
            return await follow_to_end(
                client,
                started.workload,
                startup_timeout_seconds=startup_timeout_seconds,
                on_observation=on_observation,
                on_line=on_line,
            )

    async def close(self, started: StartedWorkload, outcome: Outcome) -> None:
        """Close the run from the outcome and complete its lineage.

        A workload that is given up though its Job has not ended (it never started, say) is removed.

        :raises TrackingError: MLflow does not answer; call again later, nothing is lost
        """
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.runs import RunTree

        if not outcome.succeeded:
            await self._remove_if_live(started)
        async with MLflowClient(self.tracking) as mlflow:
            tree = RunTree(mlflow)
            await tree.set_tags(started.run_id, self._tags(started.workload, outcome))
            await tree.close(started.run_id, run_status(outcome))
            await tree.settle_parent(started.parent_run_id)

    async def logged_models(self, started: StartedWorkload) -> list[LoggedModel]:
        """The models that the run logged."""
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.runs import RunTree

        async with MLflowClient(self.tracking) as mlflow:
            tree = RunTree(mlflow)
            return await tree.logged_models(await tree.get(started.run_id))

    async def run(self, started: StartedWorkload) -> Run:
        """The run as MLflow has it now."""
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.runs import RunTree

        async with MLflowClient(self.tracking) as mlflow:
            return await RunTree(mlflow).get(started.run_id)

    async def mark_consumed(self, started: StartedWorkload, outcome: Outcome) -> None:
        """The result is stored where the orchestrator keeps it: the attempt is over."""
        from nighttrain.providers.kubernetes.client import shared_client
        from nighttrain.providers.kubernetes.workload import mark_consumed

        async with shared_client(self.cluster) as client:
            await mark_consumed(client, started.workload, self.epoch, outcome=outcome)

    async def cancel(self, started: StartedWorkload) -> None:
        """Remove the workload and close its run as KILLED."""
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.runs import RunStatus, RunTree

        await self._remove(started)
        async with MLflowClient(self.tracking) as mlflow:
            tree = RunTree(mlflow)
            await tree.close(started.run_id, RunStatus.KILLED)
            await tree.settle_parent(started.parent_run_id)

    async def _rehearse(self, client: ClusterClient, namespace: str) -> None:
        from nighttrain.providers.kubernetes.client import JOBS
        from nighttrain.providers.kubernetes.manifests import build_job

        job = build_job(self.spec, self.identity, 1)
        try:
            await client.create(JOBS, namespace, job, dry_run=True)
        except ObjectExistsError:
            return  # an earlier try was here: submit() decides what that means

    async def _open_runs(self, tree: RunTree) -> tuple[Run, Run]:
        from nighttrain.providers.tracking.runs import Lineage

        experiment_id = await tree.ensure_experiment(self.experiment_name)
        tags = self.lineage(image=self.spec.image).tags()
        key = self.parent_key
        whole = Lineage(orchestrator=key.orchestrator, dag_id=key.dag_id, run_id=key.run_id)
        parent = await tree.open_parent(
            experiment_id, key, name=f"{key.dag_id} {key.run_id}", tags=whole.tags()
        )
        run = await tree.open_child(
            parent, self.run_key, name=self.run_name, tags=tags, params=dict(self.params)
        )
        return parent, run

    def _environment(self, run: Run) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.tracking_uri_for_pods,
            "MLFLOW_RUN_ID": run.run_id,
            # After autolog has ended the run, later log calls would otherwise open one in Default.
            "MLFLOW_EXPERIMENT_ID": run.experiment_id,
            # Lines arrive as they are printed, and in the order in which they were.
            "PYTHONUNBUFFERED": "1",
        }

    def _tags(self, workload: Workload, outcome: Outcome | None = None) -> dict[str, str]:
        known: dict[str, Any] = {
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
        from nighttrain.providers.kubernetes.client import shared_client
        from nighttrain.providers.kubernetes.workload import cancel_if_live

        async with shared_client(self.cluster) as client:
            await cancel_if_live(client, started.workload)

    async def _remove(self, started: StartedWorkload) -> None:
        from nighttrain.providers.kubernetes.client import shared_client
        from nighttrain.providers.kubernetes.workload import cancel

        async with shared_client(self.cluster) as client:
            await cancel(client, started.workload)


def with_env(spec: WorkloadSpec, environment: Mapping[str, str]) -> WorkloadSpec:
    """``spec`` with further environment variables; those that the user set stay as they are."""
    given = spec.env()
    names = {variable["name"] for variable in given}
    added = [{"name": name, "value": value} for name, value in environment.items() if name not in names]
    return replace(spec, env_vars=[*given, *added])


def run_status(outcome: Outcome) -> RunStatus:
    """The run's status that fits an outcome: what a person or the cluster stopped is KILLED, not FAILED."""
    from nighttrain.providers.kubernetes.outcome import OutcomeKind
    from nighttrain.providers.tracking.runs import RunStatus

    if outcome.kind is OutcomeKind.SUCCEEDED:
        return RunStatus.FINISHED
    if outcome.kind is OutcomeKind.CANCELLED:
        return RunStatus.KILLED
    return RunStatus.FAILED
