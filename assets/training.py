"""A registered model's version as a Dagster asset: trained in a Job, tracked and registered in MLflow."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.workload import (
    Arguments,
    FinishedWorkload,
    Parameters,
    Step,
    asset_step,
    consume,
    params_for,
    run_workload,
    spec_for,
    trained_run,
)
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import RegistryError, RunInTrashError
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.measured import final_metrics
from nighttrain.providers.registry.lineage import lineage_of
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.version_page import refreshed_if_possible
from nighttrain.providers.registry.versions import ModelVersion, check_name
from nighttrain.providers.tracking.names import MAX_DESCRIPTION, fit
from nighttrain.providers.tracking.runs import Run


def training_asset(
    *,
    name: str,
    model_name: str,
    spec: WorkloadSpec,
    arguments: Arguments = (),
    parameters: Parameters | None = None,
    experiment_name: str | None = None,
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    deps: Sequence[dg.AssetKey | str] = (),
    retry_policy: dg.RetryPolicy | None = None,
    fail_if_over_quota: bool = True,
) -> dg.AssetsDefinition:
    """An asset whose materialization trains a model and registers it.

    Needs the resources ``kubernetes`` (:class:`KubernetesResource`) and ``mlflow`` (:class:`MLflowResource`).
    The materialization's metadata hold the run and its last metrics, the version, the artifact's digest, the
    Job and the image.

    A step retry, and a re-execution of a run that died, adopt the workload that is there: one Job, one MLflow
    run, one version. A re-execution of a materialization that is stored trains anew, as asked.

    :param name: the asset's name
    :param model_name: the registered model
    :param spec: the container, as for any workload
    :param arguments: the container's arguments, or a function that gives them from the execution context, for
        example ``lambda context: ["--as-of", context.partition_key]``
    :param parameters: recorded as the run's parameters before the container starts; or a function, as above
    :param experiment_name: MLflow experiment; the model's name if left out
    :param fail_if_over_quota: fail at once if it asks for more than the whole of today's quota (the default);
        false waits in the queue for a larger one
    :raises ConfigurationError: the model's name is one that MLflow refuses
    """

    check_name(model_name)

    @dg.asset(
        name=name,
        key_prefix=list(key_prefix) if key_prefix else None,
        partitions_def=partitions_def,
        group_name=group_name,
        deps=list(deps),
        kinds={"mlflow", "kubernetes"},
        description=f"Versions of the registered model {model_name}",
        retry_policy=retry_policy,
    )
    def train(
        context: dg.AssetExecutionContext, kubernetes: KubernetesResource, mlflow: MLflowResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        step = asset_step(context, context.asset_key.to_python_identifier())
        finished = run_workload(
            context,
            step,
            spec_for(context, spec, arguments),
            kubernetes=kubernetes,
            mlflow=mlflow,
            experiment_name=experiment_name or model_name,
            params=params_for(context, parameters or {}),
            fail_if_over_quota=fail_if_over_quota,
        )
        try:
            run = trained_run(finished)
            version = run_sync(_register(mlflow, model_name, step, run))
        except RunInTrashError as error:
            raise RunInTrashError(
                f"{error}; then re-execute the run: it takes over what has been trained"
            ) from error
        except RegistryError:
            # The workload succeeded, nothing can be made of its result: the next execution trains anew.
            consume(finished)
            raise
        yield dg.MaterializeResult(
            metadata=_metadata(mlflow, version, finished, run), data_version=dg.DataVersion(version.version)
        )
        # Dagster comes back for more once the materialization is stored: a crash before finds the attempt.
        consume(finished)

    return train


async def _register(mlflow: MLflowResource, model_name: str, step: Step, run: Run) -> ModelVersion:
    async with mlflow.client() as client:
        of = f", partition {step.partition_key}," if step.partition_key else ""
        registry = ModelRegistry(client)
        version = await registry.register(
            model_name,
            run_id=run.run_id,
            lineage=lineage_of(run),
            description=fit(f"Trained by Dagster: {step.name}{of} in run {step.run_id}", MAX_DESCRIPTION),
        )
        await refreshed_if_possible(registry, version.name, version.version)
        return version


def _metadata(
    mlflow: MLflowResource, version: ModelVersion, finished: FinishedWorkload, run: Run
) -> dict[str, Any]:
    started = finished.started
    return {
        "model_name": version.name,
        "version": version.version,
        "version_page": dg.MetadataValue.url(mlflow.version_url(version.name, version.version)),
        "run_id": started.run_id,
        "run_page": dg.MetadataValue.url(mlflow.run_url(started.experiment_id, started.run_id)),
        "artifact_sha256": version.digest or "",
        "job": f"{started.workload.namespace}/{started.workload.name}",
        "job_page": dg.MetadataValue.url(started.workload_url),
        "attempt": started.workload.attempt,
        "image": finished.outcome.image or "",
        "image_digest": finished.outcome.image_id or "",
        "metrics": dg.MetadataValue.json(final_metrics(run.metrics)),
    }
