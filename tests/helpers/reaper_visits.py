"""Workers that die, and the reaper's visit after them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from helpers.tracked_training import finish
from nighttrain.providers.attempts.attempt import StartedWorkload
from nighttrain.providers.attempts.lifecycle import find_live
from nighttrain.providers.attempts.reaper import TaskState, Verdict, find
from nighttrain.providers.attempts.reaper_visit import (
    Runs,
    Visit,
    reap_all,
    visit,
)
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient
from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL, WorkloadIdentity
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.attempts.tracked_workload import TrackedWorkload


class Died(BaseException):
    """A process's end in the middle, as by SIGKILL: nothing in it may handle this."""


async def start_and_die(work: TrackedWorkload, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A worker that dies before it creates its Job, or right after."""
    create = ClusterClient.create

    async def creates(self: ClusterClient, *args: Any, dry_run: bool = False, **options: Any) -> Any:
        if not dry_run and moment == "before its Job":
            raise Died
        answer = await create(self, *args, dry_run=dry_run, **options)
        if not dry_run:
            raise Died
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(ClusterClient, "create", creates)
        with pytest.raises(Died):
            await work.start()


async def until_ended(work: TrackedWorkload) -> None:
    async with await ClusterClient.open(work.cluster) as client:
        workload = await find_live(
            client, work.identity, epoch=work.epoch, namespace=work.spec.namespace or "default"
        )
    if workload is not None:
        await finish(work, StartedWorkload(workload, ""))


class EveryTaskIs:
    """An Airflow that says the same of each task."""

    def __init__(self, state: TaskState) -> None:
        self._state = state

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        return self._state


class EveryTaskIsOver(EveryTaskIs):
    """An Airflow in which nobody waits any more."""

    def __init__(self) -> None:
        super().__init__(TaskState.OVER)


class OnlyThisTaskIsOver:
    """An Airflow in which all other tasks go on."""

    def __init__(self, work: TrackedWorkload) -> None:
        self._over = work.identity

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        return TaskState.OVER if identity == self._over else TaskState.ALIVE


async def visited(
    work: TrackedWorkload,
    mlflow_uri: str,
    namespace: str = "default",
    warn: Callable[[str], object] = pytest.fail,
) -> Visit:
    """A whole visit of the reaper's, as the operator and the command make it."""
    config = TrackingConfig(uri=mlflow_uri, retry_seconds=0.2)
    async with await ClusterClient.open(work.cluster) as client, MLflowClient(config) as mlflow:
        return await visit(
            client,
            namespace,
            OnlyThisTaskIsOver(work),
            mlflow=mlflow,
            minimum_age_seconds=0,
            now=time.time() + 60,
            only_show=False,
            warn=warn,
        )


async def reap_everything(
    work: TrackedWorkload, mlflow_uri: str, *, expected: Verdict = Verdict.REAPED
) -> list[str]:
    """Reap as the command does; returns the warnings."""
    warnings: list[str] = []
    config = TrackingConfig(uri=mlflow_uri, retry_seconds=0.2)
    async with await ClusterClient.open(work.cluster) as client, MLflowClient(config) as mlflow:
        tasks = EveryTaskIsOver()
        found = await find(client, "default", tasks, minimum_age_seconds=0)
        (mine,) = (finding for finding in found if finding.identity == work.identity)
        (done,) = await reap_all(client, [mine], tasks, Runs(mlflow, warnings.append))
        assert done.verdict is expected
        if expected is not Verdict.REAPED:
            return warnings
        left = await client.list(JOBS, "default", label_selector=f"{ATTEMPT_KEY_LABEL}={work.identity.key}")
        assert left["items"] == []
    return warnings
