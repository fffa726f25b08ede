"""A gate as a blocking asset check: a worse model stops what depends on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.workload import asset_step, consume, run_workload
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, ModelVersionNotFoundError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.spec import WorkloadSpec
    from nighttrain.providers.registry.gates import Verdict

CANDIDATE_VARIABLE = "CANDIDATE_MODEL_URI"
CHAMPION_VARIABLE = "CHAMPION_MODEL_URI"


def model_gate_check(
    *,
    asset: dg.AssetsDefinition,
    model_name: str,
    spec: WorkloadSpec,
    rules: Sequence[str],
    arguments: Sequence[str] | Callable[[Any], Sequence[str]] = (),
    champion_alias: str = "champion",
    experiment_name: str | None = None,
    name: str = "gate",
) -> dg.AssetChecksDefinition:
    """A blocking check that scores the asset's newest version and the champion on the same held-out data.

    The container finds ``CANDIDATE_MODEL_URI`` and, where there is a champion, ``CHAMPION_MODEL_URI``, and
    logs metrics named ``candidate.<metric>`` and ``champion.<metric>``. Inconclusive counts as not passed,
    and says so in the result's metadata.

    :param asset: what :func:`nighttrain.assets.training.training_asset` returned
    :param spec: the container that scores
    :param rules: lines such as ``"mae <= champion.mae"``; all have to hold
    :param arguments: as for the training asset
    """
    from nighttrain.providers.registry.gates import judge, parse_rule

    parsed = [parse_rule(rule) for rule in rules]
    if not parsed:
        raise ConfigurationError("rules", rules, "without rules a gate accepts everything: give one or more")

    @dg.asset_check(asset=asset, name=name, blocking=True)
    def gate(
        context: dg.AssetCheckExecutionContext, kubernetes: KubernetesResource, mlflow: MLflowResource
    ) -> dg.AssetCheckResult:
        candidate = _newest_version(context, asset.key)
        champion = run_sync(_champion(mlflow, model_name, champion_alias, candidate))
        environment = {CANDIDATE_VARIABLE: f"models:/{model_name}/{candidate}"}
        if champion:
            environment[CHAMPION_VARIABLE] = f"models:/{model_name}/{champion}"
        given = list(arguments(context) if callable(arguments) else arguments)
        finished = run_workload(
            context,
            asset_step(context, f"{asset.key.path[-1]}-{name}"),
            replace(spec, arguments=given) if given else spec,
            kubernetes=kubernetes,
            mlflow=mlflow,
            experiment_name=experiment_name or model_name,
            environment=environment,
        )
        measurements = run_sync(_measurements(finished.tracked, finished.started))
        verdict = judge(
            parsed, measurements.get("candidate", {}), measurements.get("champion") if champion else None
        )
        run_sync(_record(mlflow, model_name, candidate, verdict, finished.started.run_id))
        consume(finished)
        return _result(verdict, candidate, champion)

    return gate


def _newest_version(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> str:
    event = context.instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event else None
    if materialization is None or "version" not in materialization.metadata:
        raise ConfigurationError(
            "asset", key.to_user_string(), "was never materialized by training_asset: materialize it first"
        )
    return str(materialization.metadata["version"].value)


async def _champion(mlflow: MLflowResource, model_name: str, alias: str, candidate: str) -> str | None:
    from nighttrain.providers.registry.models import ModelRegistry

    async with mlflow.client() as client:
        try:
            champion = await ModelRegistry(client).version_by_alias(model_name, alias)
        except ModelVersionNotFoundError:
            return None
    return None if champion.version == candidate else champion.version


async def _measurements(tracked: Any, started: Any) -> dict[str, dict[str, float]]:
    from nighttrain.providers.registry.evaluation import group_measurements

    return group_measurements((await tracked.run(started)).metrics)


async def _record(
    mlflow: MLflowResource, model_name: str, version: str, verdict: Verdict, run_id: str
) -> None:
    from nighttrain.providers.registry.evaluation import verdict_tags
    from nighttrain.providers.registry.models import ModelRegistry

    async with mlflow.client() as client:
        await ModelRegistry(client).set_tags(
            model_name, version, verdict_tags(verdict, evaluation_run=run_id, actor="dagster")
        )


def _result(verdict: Verdict, candidate: str, champion: str | None) -> dg.AssetCheckResult:
    from nighttrain.providers.registry.gates import VerdictKind

    return dg.AssetCheckResult(
        passed=verdict.kind is VerdictKind.ACCEPTED,
        description=verdict.summary(),
        metadata={
            "verdict": verdict.kind.value,
            "candidate_version": candidate,
            "champion_version": champion or "none",
            "evidence": dg.MetadataValue.md(f"```\n{verdict.table()}\n```"),
        },
    )
