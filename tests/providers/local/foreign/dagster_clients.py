"""Dagster's own Kubernetes clients in a run of their own: run by test_foreign_clients.py with the kubeconfig
as argument. Prints JSON."""

import json
import sys
from typing import Any

from dagster import (
    AssetExecutionContext,
    DagsterInstance,
    MaterializeResult,
    OpExecutionContext,
    asset,
    job,
    materialize,
    op,
)
from dagster_k8s import PipesK8sClient, execute_k8s_job

KUBECONFIG = sys.argv[1]

# Training takes its time: the client looks at the pod, and at its log, only now and then.
CODE = """
import time
from dagster_pipes import open_dagster_pipes
time.sleep(1)
with open_dagster_pipes() as pipes:
    pipes.report_asset_materialization(metadata={"rows": 7})
time.sleep(1)
"""


@asset
def trained(context: AssetExecutionContext) -> MaterializeResult[Any]:
    client = PipesK8sClient(kubeconfig_file=KUBECONFIG, load_incluster_config=False, poll_interval=0.2)
    return client.run(
        context=context, image="py", command=["python", "-c", CODE], namespace="default"
    ).get_materialize_result()


@op
def in_a_job(context: OpExecutionContext) -> None:
    execute_k8s_job(
        context,
        image="py",
        command=["python", "-c", "print('trained')"],
        namespace="default",
        load_incluster_config=False,
        kubeconfig_file=KUBECONFIG,
        k8s_job_name="dagster-job",
    )


@job
def one_job() -> None:
    in_a_job()


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with DagsterInstance.ephemeral() as instance:
        result = materialize([trained], instance=instance, raise_on_error=False)
        events = result.asset_materializations_for_node("trained") if result.success else []
        found["pipes"] = [each.metadata["rows"].value for each in events if "rows" in each.metadata]
        found["job"] = one_job.execute_in_process(instance=instance, raise_on_error=False).success
    return found


print("RESULT " + json.dumps(main()))
