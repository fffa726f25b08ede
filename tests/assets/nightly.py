"""A Dagster run in a process of its own, that a test can kill: DIRECTORY MODEL MLFLOW KUBECONFIG [again].

With ``again``, the last run of the instance is executed again, as from its page. Where DIES_AT names a moment
(``registered``, ``stored``), the process dies there as by SIGKILL; at ``trained`` it goes on, and somebody
puts the training's run into MLflow's trash.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from typing import Any

import dagster as dg

from nighttrain.assets import training
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.assets.workload import FinishedWorkload, run_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

DIRECTORY, MODEL, MLFLOW, KUBECONFIG, *AGAIN = sys.argv[1:]


# What an asset calls right after the version is registered, and right after Dagster has the materialization.
MOMENTS = {"registered": "_metadata", "stored": "consume", "trained": "run_workload"}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_trash(*args: Any, **options: Any) -> FinishedWorkload:
    finished = run_workload(*args, **options)
    body = json.dumps({"run_id": finished.started.run_id}).encode()
    address = f"{MLFLOW}/api/2.0/mlflow/runs/delete"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - the test's own server
    return finished


def nightly() -> dg.JobDefinition:
    model = training_asset(
        name="model",
        model_name=MODEL,
        spec=WorkloadSpec(
            image="localhost/small:1",
            cmds=["python", "-S", "-u", "-m", "small_model"],
            arguments=["train", "2.0"]
            if "DIES_AT" in os.environ or AGAIN == ["again", "quick"]
            else ["slow"],
        ),
    )
    defs = dg.Definitions(
        assets=[model],
        jobs=[dg.define_asset_job("nightly")],
        resources={
            "kubernetes": KubernetesResource(kubeconfig=KUBECONFIG),
            "mlflow": MLflowResource(tracking_uri=MLFLOW),
        },
        executor=dg.in_process_executor,
    )
    return defs.resolve_job_def("nightly")


def main() -> None:
    if "DIES_AT" in os.environ:
        moment = os.environ["DIES_AT"]
        setattr(training, MOMENTS[moment], run_and_trash if moment == "trained" else die)
    # Dagster would otherwise write about its use into the home folder.
    overrides = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(DIRECTORY, overrides=overrides) as instance:
        options = None
        if AGAIN:
            last = instance.get_runs()[0]
            if not last.is_finished:  # what Dagster's run monitoring does once the run's process is gone
                instance.report_run_failed(last)
            options = dg.ReexecutionOptions(parent_run_id=last.run_id)
        dg.execute_job(
            dg.reconstructable(nightly), instance=instance, reexecution_options=options, raise_on_error=True
        )


if __name__ == "__main__":
    main()
