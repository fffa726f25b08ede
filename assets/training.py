"""A registered model's version as a Dagster asset: trained in a Job, tracked and registered in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.workload import FinishedWorkload, asset_step, consume, run_workload
from nighttrain.providers.bridge import run_sync

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.spec import WorkloadSpec
    from nighttrain.providers.registry.models import ModelVersion

Arguments = Sequence[str] | Callable[[Any], Sequence[str]]


def training_asset(
    *,
    name: str,
    model_name: str,
    spec: WorkloadSpec,
    arguments: Arguments = (),
    experiment_name: str | None = None,
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    deps: Sequence[dg.AssetKey | str] = (),
) -> dg.AssetsDefinition:
    """An asset whose materialization trains a model and registers it.

    Needs the resources ``kubernetes`` (:class:`KubernetesResource`) and ``mlflow`` (:class:`MLflowResource`).
    The materialization's metadata hold the run, the version, the artifact's digest, the Job and the image.

    :param name: the asset's name
    :param model_name: the registered model
    :param spec: the container, as for any workload
    :param arguments: the container's arguments, or a function that gives them from the execution context, for
        example ``lambda context: ["--as-of", context.partition_key]``
    :param experiment_name: MLflow experiment; the model's name if left out
    """

    @dg.asset(
        name=name,
        key_prefix=list(key_prefix) if key_prefix else None,
        partitions_def=partitions_def,
        group_name=group_name,
        deps=list(deps),
        kinds={"mlflow", "kubernetes"},
        description=f"Versions of the registered model {model_name}",
    )
    def train(
        context: dg.AssetExecutionContext, kubernetes: KubernetesResource, mlflow: MLflowResource
    ) -> dg.MaterializeResult[Any]:
        given = list(arguments(context) if callable(arguments) else arguments)
        finished = run_workload(
            context,
            asset_step(context, name),
            replace(spec, arguments=given) if given else spec,
            kubernetes=kubernetes,
            mlflow=mlflow,
            experiment_name=experiment_name or model_name,
        )
        version = run_sync(_register(mlflow, model_name, finished))
        consume(finished)
        return dg.MaterializeResult(
            metadata=_metadata(mlflow, version, finished), data_version=dg.DataVersion(version.version)
        )

    return train


async def _register(mlflow: MLflowResource, model_name: str, finished: FinishedWorkload) -> ModelVersion:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.tracking.runs import RunTree

    async with mlflow.client() as client:
        run = await RunTree(client).get(finished.started.run_id)
        lineage = {key: value for key, value in run.tags.items() if key.startswith("nighttrain.")}
        return await ModelRegistry(client).register(
            model_name, run_id=run.run_id, tags=lineage, description=f"Trained by Dagster run {run.name}"
        )


def _metadata(mlflow: MLflowResource, version: ModelVersion, finished: FinishedWorkload) -> dict[str, Any]:
    from nighttrain.providers.registry.artifacts import DIGEST_TAG

    started = finished.started
    return {
        "model_name": version.name,
        "version": version.version,
        "version_page": dg.MetadataValue.url(mlflow.version_url(version.name, version.version)),
        "run_id": started.run_id,
        "run_page": dg.MetadataValue.url(mlflow.run_url(started.experiment_id, started.run_id)),
        "artifact_sha256": version.tags.get(DIGEST_TAG, ""),
        "job": f"{started.workload.namespace}/{started.workload.name}",
        "image": finished.outcome.image or "",
        "image_digest": finished.outcome.image_id or "",
    }
