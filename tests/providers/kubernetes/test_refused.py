"""What passes nighttrain's checks and not the API server's: told in its words, and nothing is created."""

from __future__ import annotations

import pytest

from nighttrain.providers.attempts.lifecycle import submit
from nighttrain.providers.errors import ObjectInvalidError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.local.cluster.server import EmbeddedCluster


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_job_that_the_api_server_refuses_is_refused_for_good(dry_run: bool) -> None:
    identity = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train")
    spec = WorkloadSpec(image="i", tolerations=[{"key": "gpu", "operator": "Nope"}])
    check_workload(spec)
    with EmbeddedCluster(containers=False) as cluster:
        async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
            asking = (
                client.create(JOBS, "default", build_job(check_workload(spec), identity, 1), dry_run=True)
                if dry_run
                else submit(client, check_workload(spec), identity, namespace="default")
            )
            with pytest.raises(ObjectInvalidError, match=r"tolerations\[0\]\.operator.*Nope"):
                await asking
            assert (await client.list(JOBS, "default"))["items"] == []
