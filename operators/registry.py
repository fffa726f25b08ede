"""The model registry as tasks: register, gate, promote."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk.exceptions import AirflowSkipException

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.links import ModelVersionLink, remember_links
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    ConfigurationError,
    GateInconclusiveError,
    GateRejectedError,
    RunInTrashError,
)
from nighttrain.providers.registry.evaluation import verdict_tags
from nighttrain.providers.texts import as_texts, text_of
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, get_mlflow
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.templating import TextTemplates

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.registry.gates import Rule
    from nighttrain.providers.registry.promotion import Promotion
    from nighttrain.providers.registry.verdicts import Verdict
    from nighttrain.providers.registry.versions import ModelVersion

Reaction = Literal["skip", "fail", "continue"]
REACTIONS: tuple[Reaction, ...] = ("skip", "fail", "continue")

VERDICT_KEY = "verdict"


class _RegistryOperator(TextTemplates):
    """An operator that speaks to MLflow and finishes in the worker: a handful of requests."""

    operator_extra_links: Collection[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#e8f1fb"
    text_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID, **kwargs: Any) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id

    def _connect(self) -> None:
        """Read the connection, before any event loop runs."""
        as_texts(self, *self.text_fields)
        self._mlflow = get_mlflow(self.mlflow_conn_id)

    def _link(self, context: Context, model_name: str, version: str) -> None:
        remember_links(context, version=self._mlflow.version_url(model_name, version))


class RegisterModelOperator(_RegistryOperator):
    """Registers the model that a run logged as a new version, with its lineage and its artifact's digest.

    Running it again for the same run returns the same version. Returns ``{"model_name", "version", "run_id",
    "artifact_digest"}``.

    :param model_name: the registered model, made if missing (templated)
    :param run_id: the run that logged the model, usually ``train.output["run_id"]`` (templated)
    :param logged_model_name: the name given to ``log_model``; needed only where a run logged several
    :param description: the version's description, at most 5,000 characters (templated)
    :param tags: tags for the version, beside the lineage (templated); at most 5,000 characters each
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "run_id", "logged_model_name", "description", "tags")
    text_fields = ("model_name", "run_id", "logged_model_name", "description")
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {"tags": dict}

    def __init__(
        self,
        *,
        model_name: str,
        run_id: str,
        logged_model_name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.run_id = run_id
        self.logged_model_name = logged_model_name
        self.description = description
        self.tags = tags

    def execute(self, context: Context) -> dict[str, Any]:
        from nighttrain.providers.registry.versions import DIGEST_TAG

        with failing_clearly():
            tags, description = self._checked_texts()
            self._connect()
            try:
                version = run_sync(self._register(tags, description))
            except RunInTrashError as error:
                raise RunInTrashError(f"{error}; then clear this task") from error
        self._link(context, version.name, version.version)
        self.log.info("%s version %s, from run %s", version.name, version.version, version.run_id)
        return {
            "model_name": version.name,
            "version": version.version,
            "run_id": version.run_id,
            "artifact_digest": version.tags.get(DIGEST_TAG),
        }

    def _checked_texts(self) -> tuple[dict[str, str], str]:
        from nighttrain.providers.tracking.names import check_description, read_tags

        description = check_description(self.description or "")
        tags = read_tags(_texts("tags", self.tags))
        secretless = task_context.without_secrets({**tags, "": description})
        return secretless, secretless.pop("")

    async def _register(self, tags: Mapping[str, str], description: str) -> ModelVersion:
        from nighttrain.providers.tracking.run_tree import RunTree
        from nighttrain.providers.tracking.runs import inherited

        async with open_registry(self._mlflow) as registry:
            run = await RunTree(registry.client).get(self.run_id)
            return await registry.register(
                self.model_name,
                run_id=self.run_id,
                model_name=self.logged_model_name,
                tags={**inherited(run.tags), **tags},
                description=description,
            )


class ModelGateOperator(_RegistryOperator):
    """Judges a candidate by rules over recorded measurements.

    The verdict is accepted, rejected or inconclusive (a measurement is missing or is not a number, or the
    sample is too small), each with its evidence. It is returned as a dict, pushed as the XCom ``verdict``
    before the task skips or fails, logged as a table, and written to the version's tags.

    :param evaluation: what an ``EvaluateModelOperator`` returned, usually ``evaluate.output`` (templated)
    :param rules: lines such as ``"mae <= 25"``, ``"mae <= champion.mae * 1.02"`` and ``"rows >= 500"``, or
        rule objects of ``nighttrain.providers.registry.gates``; all have to hold
    :param on_rejected: ``"skip"`` what is downstream (the default: a worse model is a normal night),
        ``"fail"`` the task, or ``"continue"``
    :param on_inconclusive: the same; ``"fail"`` by default, since somebody should look
    :param no_champion: what rules against the champion mean when there is none: ``"accept"`` (the default:
        the first model has nobody to beat), ``"reject"`` or ``"inconclusive"``
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("evaluation", "rules")
    native_fields = frozenset({"evaluation"})
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {"rules": list}

    def __init__(
        self,
        *,
        evaluation: Any,
        rules: Sequence[str | Rule],
        on_rejected: Reaction = "skip",
        on_inconclusive: Reaction = "fail",
        no_champion: Literal["accept", "reject", "inconclusive"] = "accept",
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

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            evaluation = _evaluation(self.evaluation)
            verdict = self._judge(evaluation)
            self.log.info("%s", verdict.table())
            result = {
                "model_name": evaluation["model_name"],
                "version": evaluation["version"],
                "champion_version": evaluation.get("champion_version"),
                "summary": verdict.summary(),
                **verdict.to_dict(),
            }
            run_sync(self._record(context, evaluation, verdict))
            self._link(context, evaluation["model_name"], evaluation["version"])
            context["ti"].xcom_push(key=VERDICT_KEY, value=result)
            self._react(verdict)
        return result

    def _judge(self, evaluation: Mapping[str, Any]) -> Verdict:
        from nighttrain.providers.registry.gates import judge, parse_rule

        measurements = evaluation["measurements"]
        # An evaluation written by hand may measure a champion without saying which version it is.
        compared = evaluation.get("champion_version", "champion" in measurements)
        return judge(
            [parse_rule(rule) if isinstance(rule, str) else rule for rule in self.rules],
            measurements.get("candidate", {}),
            measurements.get("champion", {}) if compared else None,
            no_champion=self.no_champion,
        )

    async def _record(self, context: Context, evaluation: Mapping[str, Any], verdict: Verdict) -> None:
        async with open_registry(self._mlflow) as registry:
            await registry.set_tags(
                evaluation["model_name"],
                evaluation["version"],
                verdict_tags(
                    verdict,
                    evaluation_run=str(evaluation.get("run_id", "")),
                    actor=task_context.actor(context),
                ),
            )

    def _react(self, verdict: Verdict) -> None:
        from nighttrain.providers.registry.verdicts import VerdictKind

        if verdict.kind is VerdictKind.ACCEPTED:
            return
        rejected = verdict.kind is VerdictKind.REJECTED
        reaction = self.on_rejected if rejected else self.on_inconclusive
        if reaction == "fail":
            raise (GateRejectedError if rejected else GateInconclusiveError)(verdict.summary())
        if reaction == "skip":
            raise AirflowSkipException(verdict.summary())


class PromoteModelOperator(_RegistryOperator):
    """Moves an alias and a stage to a version, and records who did it, why, when, and what was there before.

    Returns ``{"model_name", "version", "alias", "stage", "previous_version"}``.

    :param model_name: the registered model (templated)
    :param version: the version to promote (templated)
    :param alias: the alias to move, ``None`` for none (templated)
    :param stage: the stage to move the version to, ``None`` for none (templated)
    :param archive_existing: move what was in the stage to ``Archived``
    :param verdict: the gate's verdict; anything but an accepted one is refused (templated)
    :param reason: why, for the record (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("model_name", "version", "alias", "stage", "verdict", "reason")
    native_fields = frozenset({"verdict"})
    text_fields = ("model_name", "version", "alias", "stage", "reason")

    def __init__(
        self,
        *,
        model_name: str,
        version: str,
        alias: str | None = "champion",
        stage: str | None = "Production",
        archive_existing: bool = True,
        verdict: Any = None,
        reason: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if alias is None and stage is None:
            raise ConfigurationError("alias, stage", None, "name an alias, a stage, or both")
        self.model_name = model_name
        self.version = version
        self.alias = alias
        self.stage = stage
        self.archive_existing = archive_existing
        self.verdict = verdict
        self.reason = reason

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            summary = self._checked_verdict()
            promotion = run_sync(self._promote(context, summary))
        self._link(context, self.model_name, str(self.version))
        self.log.info(
            "%s version %s holds %s; before: %s",
            self.model_name,
            self.version,
            held(self.alias, self.stage),
            promotion.previous_version or "none",
        )
        return {
            "model_name": self.model_name,
            "version": str(self.version),
            "alias": self.alias,
            "stage": self.stage,
            "previous_version": promotion.previous_version,
        }

    def _checked_verdict(self) -> str:
        from nighttrain.providers.registry.verdicts import VerdictKind

        if self.verdict is None:
            return ""
        kind = self.verdict.get("kind") if isinstance(self.verdict, Mapping) else None
        if kind != VerdictKind.ACCEPTED.value:
            raise ConfigurationError("verdict", kind, "only a version that the gate accepted is promoted")
        judged = (str(self.verdict.get("model_name")), str(self.verdict.get("version")))
        if judged != (self.model_name, str(self.version)):
            raise ConfigurationError(
                "model_name, version",
                (self.model_name, str(self.version)),
                f"the verdict is about {judged[0]} version {judged[1]}: give the gate's own, gate.output",
            )
        return str(self.verdict.get("summary", ""))

    async def _promote(self, context: Context, summary: str) -> Promotion:
        from nighttrain.providers.registry.promotion import promote

        async with open_registry(self._mlflow) as registry:
            return await promote(
                registry,
                self.model_name,
                str(self.version),
                alias=self.alias,
                stage=self.stage,
                archive_existing=self.archive_existing,
                actor=task_context.actor(context),
                reason=self.reason or "promoted by a DAG",
                evidence=summary,
            )


def _check_rules(rules: Sequence[str | Rule]) -> None:
    from nighttrain.providers.registry.gates import parse_rule

    for rule in rules:
        if isinstance(rule, str) and "{{" not in rule:
            parse_rule(rule)


def held(alias: str | None, stage: str | None) -> str:
    """The alias and the stage in words."""
    parts = [f"alias {alias}" if alias else "", f"stage {stage}" if stage else ""]
    return " and ".join(part for part in parts if part)


def _texts(field: str, given: Any) -> Any:
    if given is not None and not isinstance(given, Mapping):
        return given  # read_tags says what it should be
    return {
        text_of(f"{field} key", name): text_of(f"{field}[{name!r}]", value)
        for name, value in (given or {}).items()
    }


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
