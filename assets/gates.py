"""A gate as a blocking asset check: a worse model stops what depends on it."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.workload import (
    PARTITION_TAG,
    FinishedWorkload,
    asset_step,
    consume,
    run_of,
    run_workload,
    spec_for,
)
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.registry.gates import Rule, judge_recorded, parse_rules
from nighttrain.providers.registry.gates.evaluation import (
    PLOT_FILE,
    Contestants,
    check_checks,
    check_compared,
    find_contestants,
    group_measurements,
    verdict_tags,
)
from nighttrain.providers.registry.gates.gathering import gather
from nighttrain.providers.registry.gates.verdicts import Verdict
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.version_page import refreshed_if_possible
from nighttrain.providers.registry.versions import check_alias, check_name


@dataclass(frozen=True)
class Candidate:
    """The version that a gate judges.

    :param partition_key: of its materialization, also where the check runs alone; ``None`` without partitions
    """

    version: str
    partition_key: str | None


CandidateArguments = Sequence[str] | Callable[[Any], Sequence[str]]


def model_gate_check(
    *,
    asset: dg.AssetsDefinition,
    model_name: str,
    spec: WorkloadSpec,
    rules: Sequence[str | Rule],
    arguments: CandidateArguments = (),
    champion_alias: str = "champion",
    compare_with: Sequence[str] = (),
    checks: Sequence[str] = (),
    no_champion: Literal["accept", "reject", "inconclusive"] = "accept",
    experiment_name: str | None = None,
    name: str = "gate",
    fail_if_over_quota: bool = True,
) -> dg.AssetChecksDefinition:
    """A blocking check that scores the asset's newest version and the champion on the same held-out data.

    The container finds ``CANDIDATE_MODEL_URI`` and, where there is a champion, ``CHAMPION_MODEL_URI``, and
    logs metrics named ``candidate.<metric>`` and ``champion.<metric>``. Inconclusive counts as not passed,
    and says so in the result's metadata. In a run of one partition, the newest version of that partition is
    judged; in a run of the check alone, the newest of all.

    For declarative automation downstream use
    ``AutomationCondition.eager() & AutomationCondition.all_deps_blocking_checks_passed()``: ``eager()`` alone
    does not look at checks.

    :param asset: what :func:`nighttrain.assets.training.training_asset` returned
    :param spec: the container that scores
    :param rules: lines such as ``"mae <= champion.mae"``; all have to hold
    :param arguments: the container's arguments, or a function that gives them from the :class:`Candidate`,
        for example ``lambda candidate: ["--as-of", candidate.partition_key]``
    :param champion_alias: no such alias, or an alias on the candidate itself: there is no champion yet
    :param compare_with: further versions to score, such as ``["version:12", "alias:last-good"]``; the
        container finds them in ``COMPARED_MODEL_URIS``, a JSON object of groups and pinned addresses
    :param checks: dotted paths of functions of your own, which the scoring code calls; the container finds
        them in ``GATE_CHECKS``, a JSON list
    :param no_champion: what rules against the champion say then; by default the first model has nobody to
        beat
    :param fail_if_over_quota: fail at once if scoring asks for more than the whole of today's quota (the
        default); false waits in the queue for a larger one
    :raises ConfigurationError: no rules, a rule that cannot be read, a name or alias that MLflow refuses
    """
    from nighttrain.providers.registry.gates import NO_CHAMPION

    parsed = parse_rules(rules)
    check_name(model_name)
    check_alias(champion_alias)
    check_compared(compare_with)
    check_checks(checks)
    if no_champion not in NO_CHAMPION:
        raise ConfigurationError("no_champion", no_champion, f"one of {', '.join(NO_CHAMPION)}")

    @dg.asset_check(
        asset=asset,
        name=name,
        blocking=True,
        description="; ".join(rule.text() for rule in parsed),
    )
    def gate(
        context: dg.AssetCheckExecutionContext, kubernetes: KubernetesResource, mlflow: MLflowResource
    ) -> dg.AssetCheckResult:
        judged = _newest(context, asset.key)
        candidate = judged.version
        contestants = run_sync(_contestants(mlflow, model_name, candidate, champion_alias, compare_with))
        step = asset_step(context, f"{asset.key.to_python_identifier()}-{name}", judged.partition_key)
        finished = run_workload(
            context,
            step,
            spec_for(judged, spec, arguments),
            kubernetes=kubernetes,
            mlflow=mlflow,
            experiment_name=experiment_name or model_name,
            environment=contestants.environment(checks),
            params=contestants.params(),
            fail_if_over_quota=fail_if_over_quota,
        )
        evaluation = {
            "model_name": model_name,
            "run_id": finished.started.run_id,
            "measurements": group_measurements(run_of(finished).metrics),
            **contestants.facts(),
        }
        verdict = run_sync(_judge(mlflow, parsed, evaluation, no_champion))
        context.log.info(verdict.table())
        run_sync(_record(mlflow, model_name, candidate, verdict, finished, step.actor))
        consume(finished)
        return _result(mlflow, model_name, verdict, finished, contestants=contestants)

    return gate


def _newest(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> Candidate:
    partition = context.run.tags.get(PARTITION_TAG)
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
    records = context.instance.fetch_materializations(wanted, limit=1).records
    materialization = records[0].asset_materialization if records else None
    if materialization is None or "version" not in materialization.metadata:
        shown = f"{key.to_user_string()}, partition {partition}" if partition else key.to_user_string()
        raise ConfigurationError(
            "asset", shown, "was never materialized by training_asset: materialize it first"
        )
    return Candidate(str(materialization.metadata["version"].value), materialization.partition)


async def _contestants(
    mlflow: MLflowResource, model_name: str, candidate: str, alias: str, compare_with: Sequence[str]
) -> Contestants:
    async with mlflow.client() as client:
        return await find_contestants(
            ModelRegistry(client), model_name, candidate, champion_alias=alias, compare_with=compare_with
        )


async def _judge(
    mlflow: MLflowResource, rules: Sequence[Rule], evaluation: dict[str, Any], no_champion: str
) -> Verdict:
    async with mlflow.client() as client:
        recorded = await gather(ModelRegistry(client), rules, evaluation, now=datetime.now(UTC))
    return judge_recorded(rules, recorded, no_champion=no_champion)


async def _record(
    mlflow: MLflowResource,
    model_name: str,
    version: str,
    verdict: Verdict,
    finished: FinishedWorkload,
    actor: str,
) -> None:
    async with mlflow.client() as client:
        registry = ModelRegistry(client)
        tags = verdict_tags(verdict, evaluation_run=finished.started.run_id, actor=actor)
        await registry.set_tags(model_name, version, tags)
        await refreshed_if_possible(registry, model_name, version)


def _result(
    mlflow: MLflowResource,
    model_name: str,
    verdict: Verdict,
    finished: FinishedWorkload,
    *,
    contestants: Contestants,
) -> dg.AssetCheckResult:
    started, candidate = finished.started, contestants.candidate.version
    plot = mlflow.artifact_url(started.experiment_id, started.run_id, PLOT_FILE)
    metadata: dict[str, Any] = {
        "verdict": verdict.kind.value,
        "candidate_version": candidate,
        "champion_version": contestants.champion.version if contestants.champion else "none",
        "version_page": dg.MetadataValue.url(mlflow.version_url(model_name, candidate)),
        "evaluation_run_id": started.run_id,
        "evaluation_run_page": dg.MetadataValue.url(mlflow.run_url(started.experiment_id, started.run_id)),
        "evaluation_plot_page": dg.MetadataValue.url(plot),
        "evidence": dg.MetadataValue.md(verdict.markdown_table()),
        "measurements": dg.MetadataValue.json([item.to_dict() for item in verdict.evidence]),
    }
    return dg.AssetCheckResult(passed=verdict.accepted, description=verdict.summary(), metadata=metadata)
