"""A Dagster run in a process of its own, that a test can kill: DIRECTORY MODEL MLFLOW KUBECONFIG [again].

With ``again``, the last run of the instance is executed again, as from its page.
"""

from __future__ import annotations

import sys

import dagster as dg

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.providers.kubernetes.spec import WorkloadSpec

DIRECTORY, MODEL, MLFLOW, KUBECONFIG, *AGAIN = sys.argv[1:]


def nightly() -> dg.JobDefinition:
    training = training_asset(
        name="model",
        model_name=MODEL,
        spec=WorkloadSpec(
            image="localhost/small:1", cmds=["python", "-S", "-u", "-m", "small_model"], arguments=["slow"]
        ),
    )
    defs = dg.Definitions(
        assets=[training],
        jobs=[dg.define_asset_job("nightly")],
        resources={
            "kubernetes": KubernetesResource(kubeconfig=KUBECONFIG),
            "mlflow": MLflowResource(tracking_uri=MLFLOW),
        },
        executor=dg.in_process_executor,
    )
    return defs.resolve_job_def("nightly")


def main() -> None:
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
