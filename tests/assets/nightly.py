"""A Dagster run in a process of its own, that a test can kill: DIRECTORY MODEL MLFLOW KUBECONFIG [again].

With ``again``, the last run of the instance is executed again, as from its page. Where DIES_AT names a moment
(``registered``, ``stored``), the process dies there as by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import dagster as dg

from nighttrain.assets import training
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

DIRECTORY, MODEL, MLFLOW, KUBECONFIG, *AGAIN = sys.argv[1:]


# What an asset calls right after the version is registered, and right after Dagster has the materialization.
MOMENTS = {"registered": "_metadata", "stored": "consume"}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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
        setattr(training, MOMENTS[os.environ["DIES_AT"]], die)
    # Dagster would otherwise write about its use into the home folder.
    overrides = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(DIRECTORY, overrides=overrides) as instance:
        options = None
        if AGAIN:
            (killed,) = instance.get_runs()
            # What Dagster's run monitoring does once the run's process is gone.
            instance.report_run_failed(killed)
            options = dg.ReexecutionOptions(parent_run_id=killed.run_id)
        dg.execute_job(
            dg.reconstructable(nightly), instance=instance, reexecution_options=options, raise_on_error=True
        )


if __name__ == "__main__":
    main()
