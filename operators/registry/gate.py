"""The gate: a verdict over recorded measurements, and what the task does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk.exceptions import AirflowSkipException

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, GateInconclusiveError, GateRejectedError
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.registry.gates import Rule
    from nighttrain.providers.registry.gates.verdicts import Verdict
    from nighttrain.providers.registry.models import ModelRegistry

Reaction = Literal["skip", "fail", "continue"]
REACTIONS: tuple[Reaction, ...] = ("skip", "fail", "continue")

VERDICT_KEY = "verdict"


class ModelGateOperator(RegistryOperator):
    """Judges a candidate by rules over recorded measurements.

    The verdict is accepted, rejected or inconclusive (a measurement is missing or is not a number, or the
    sample is too small), each with its evidence. It is returned as a dict, pushed as the XCom ``verdict``
    before the task skips or fails, logged as a table, and written to the version's tags.

    :param evaluation: what an ``EvaluateModelOperator`` returned, usually ``evaluate.output`` (templated)
    :param rules: lines such as ``"mae <= 25"``, ``"mae <= champion.mae * 1.02"``, ``"mae <= baseline.mae"``
        and ``"rows >= 500"``, or rule objects of ``nighttrain.providers.registry.gates``; all have to hold
    :param on_rejected: ``"skip"`` what is downstream (the default: a worse model is a normal night),
        ``"fail"`` the task, or ``"continue"``
    :param on_inconclusive: the same; ``"fail"`` by default, since somebody should look
    :param no_champion: what rules against the champion mean when there is none: ``"accept"`` (the default:
        the first model has nobody to beat), ``"reject"`` or ``"inconclusive"``
    :param let_through: why a candidate passes whatever the rules say; a row of the table says so, and the
        verdict is "accepted". Empty, or left out, for none (templated: a parameter of the DAG run, say)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("evaluation", "rules", "let_through")
    native_fields = frozenset({"evaluation"})
    text_fields = ("let_through",)
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {"rules": list}

    def __init__(
        self,
        *,
        evaluation: Any,
        rules: Sequence[str | Rule],
        on_rejected: Reaction = "skip",
        on_inconclusive: Reaction = "fail",
        no_champion: Literal["accept", "reject", "inconclusive"] = "accept",
        let_through: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("on_rejected", on_rejected), ("on_inconclusive", on_inconclusive)):
            if value not in REACTIONS:
                raise ConfigurationError(name, value, f"must be one of {', '.join(REACTIONS)}")
        if not rules:
            raise ConfigurationError(
                "rules", rules, "without rules a gate accepts everything: give one or more"
            )
        _check_rules(rules)
        self.evaluation = evaluation
        self.rules = rules
        self.on_rejected = on_rejected
        self.on_inconclusive = on_inconclusive
        self.no_champion = no_champion
        self.let_through = let_through

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            evaluation = _evaluation(self.evaluation)
            verdict = run_sync(self._judge_and_record(context, evaluation))
            result = {
                "model_name": evaluation["model_name"],
                "version": evaluation["version"],
                "champion_version": evaluation.get("champion_version"),
                "champion_alias": evaluation.get("champion_alias"),
                "summary": verdict.summary(),
                **verdict.to_dict(),
            }
            self._link(context, evaluation["model_name"], evaluation["version"])
            context["ti"].xcom_push(key=VERDICT_KEY, value=result)
            self._react(verdict)
        return result

    async def _judge_and_record(self, context: Context, evaluation: Mapping[str, Any]) -> Verdict:
        from nighttrain.providers.registry.gates.evaluation import verdict_tags
        from nighttrain.providers.registry.version_page import refreshed_if_possible

        async with open_registry(self._mlflow) as registry:
            verdict = await self._judge(registry, evaluation)
            self.log.info("%s", verdict.table())
            tags = verdict_tags(
                verdict,
                evaluation_run=str(evaluation.get("run_id", "")),
                actor=task_context.actor(context),
            )
            await registry.set_tags(evaluation["model_name"], evaluation["version"], tags)
            await refreshed_if_possible(registry, evaluation["model_name"], evaluation["version"])
        return verdict

    async def _judge(self, registry: ModelRegistry, evaluation: Mapping[str, Any]) -> Verdict:
        from nighttrain.providers.registry.gates import judge_recorded, parse_rules
        from nighttrain.providers.registry.gates.gathering import gather

        rules = parse_rules(self.rules)
        recorded = await gather(registry, rules, evaluation, now=datetime.now(UTC))
        verdict = judge_recorded(rules, recorded, no_champion=self.no_champion)
        return verdict.let_through(self.let_through) if self.let_through else verdict

    def _react(self, verdict: Verdict) -> None:
        from nighttrain.providers.registry.gates.verdicts import VerdictKind

        if verdict.kind is VerdictKind.ACCEPTED:
            return
        rejected = verdict.kind is VerdictKind.REJECTED
        reaction = self.on_rejected if rejected else self.on_inconclusive
        if reaction == "fail":
            raise (GateRejectedError if rejected else GateInconclusiveError)(verdict.summary())
        if reaction == "skip":
            raise AirflowSkipException(verdict.summary())


def _check_rules(rules: Sequence[str | Rule]) -> None:
    from nighttrain.providers.registry.gates import parse_rule

    for rule in rules:
        if isinstance(rule, str) and "{{" not in rule:
            parse_rule(rule)


def _evaluation(value: Any) -> Mapping[str, Any]:
    needed = {"model_name", "version", "measurements"}
    if not isinstance(value, Mapping) or not needed <= set(value):
        raise ConfigurationError(
            "evaluation", value, f"must be what EvaluateModelOperator returns: {', '.join(sorted(needed))}"
        )
    if not isinstance(value["measurements"], Mapping):
        raise ConfigurationError(
            "evaluation.measurements",
            value["measurements"],
            "give a mapping of groups, {'candidate': {...}, 'champion': {...}}",
        )
    return value
