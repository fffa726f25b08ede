"""Attempts on the embedded cluster: submitted, waited for, counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import (
    JOBS,
    PODS,
    ClusterClient,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload

NAMESPACE = "default"


def spec(code: str, **fields: Any) -> WorkloadSpec:
    grace = fields.pop("termination_grace_period", 1)
    return WorkloadSpec(
        image="py", cmds=["python", "-u", "-c", code], termination_grace_period=grace, **fields
    )


SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"


async def submit(
    client: ClusterClient, given: WorkloadSpec, who: WorkloadIdentity, epoch: str = "0"
) -> Workload:
    return await lifecycle.submit(client, check_workload(given), who, epoch=epoch, namespace=NAMESPACE)


async def wait(client: ClusterClient, job: Workload, timeout: float = 30) -> Any:  # noqa: ASYNC109
    async with asyncio.timeout(60):
        return await lifecycle.wait(client, job, timeouts=Timeouts(timeout))


async def jobs_of(client: ClusterClient, who: WorkloadIdentity) -> list[str]:
    listed = await client.list(JOBS, NAMESPACE, label_selector=f"nighttrain.dev/attempt-key={who.key}")
    return sorted(item["metadata"]["name"] for item in listed["items"])


async def running_pods(client: ClusterClient, job: Workload) -> list[str]:
    listed = await client.list(PODS, NAMESPACE, label_selector=f"batch.kubernetes.io/job-name={job.name}")
    return [
        pod["metadata"]["name"]
        for pod in listed["items"]
        if pod["status"]["phase"] not in ("Succeeded", "Failed")
    ]


async def until_line(client: ClusterClient, job: Workload, wanted: str) -> None:
    """Return when the program has said ``wanted``."""
    found = asyncio.Event()
    task = asyncio.create_task(logs.follow(client, job, lambda line: found.set() if line == wanted else None))
    async with asyncio.timeout(30):
        await found.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
