"""Promotion: alias and stage move to a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.registry.promotion import Change


class PromoteModelOperator(RegistryOperator):
    """Moves an alias to a version, and a stage where one is named, as an entry of the model's history.

    The entry says who did it, why, when, on what evidence, and what was there before; ``nighttrain history``
    shows it. Promotions of one model are made one at a time, whoever makes them.

    Returns ``{"model_name", "version", "alias", "stage", "previous_version", "entry"}``; ``entry`` is the
    number in the history, ``None`` where everything was in place already.

    :param model_name: the registered model (templated)
    :param version: the version to promote (templated)
    :param alias: the alias to move, ``None`` for none (templated)
    :param stage: the stage to move the version to (templated); none, unless it is named
    :param archive_existing: move what was in the stage to ``Archived``
    :param verdict: the gate's verdict; anything but an accepted one is refused, and so is one about another
        champion than the alias is on now (templated)
    :param reason: why, for the history (templated)
    :param approver: who agreed, for the history, such as ``approve.output["approver"]`` (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = (
        "model_name",
        "version",
        "alias",
        "stage",
        "verdict",
        "reason",
        "approver",
    )
    native_fields = frozenset({"verdict"})
    text_fields = ("model_name", "version", "alias", "stage", "reason", "approver")

    def __init__(
        self,
        *,
        model_name: str,
        version: str,
        alias: str | None = "champion",
        stage: str | None = None,
        archive_existing: bool = True,
        verdict: Any = None,
        reason: str | None = None,
        approver: str | None = None,
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
        self.approver = approver

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            self._connect()
            summary = self._checked_verdict()
            change = run_sync(self._promote(context, summary))
        self._link(context, self.model_name, str(self.version))
        self.log.info(
            "%s version %s holds %s; before: %s",
            self.model_name,
            self.version,
            held(self.alias, self.stage),
            change.previous_version or "none",
        )
        return {
            "model_name": self.model_name,
            "version": str(self.version),
            "alias": self.alias,
            "stage": self.stage,
            "previous_version": change.previous_version,
            "entry": change.number,
        }

    def _checked_verdict(self) -> str:
        from nighttrain.providers.registry.gates.verdicts import VerdictKind

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

    def _replaces(self) -> str | None:
        """The version that the verdict compared with; ``None`` where it does not say, or of another alias."""
        from nighttrain.providers.registry.promotion import NOBODY

        if self.verdict is None or not self.alias or self.verdict.get("champion_alias") != self.alias:
            return None
        return str(self.verdict.get("champion_version") or NOBODY)

    async def _promote(self, context: Context, summary: str) -> Change:
        from nighttrain.providers.registry.promotion import Author, promote

        async with open_registry(self._mlflow) as registry:
            return await promote(
                registry,
                self.model_name,
                str(self.version),
                alias=self.alias,
                stage=self.stage,
                archive_existing=self.archive_existing,
                replaces=self._replaces(),
                author=Author(
                    actor=task_context.actor(context),
                    approver=self.approver or "",
                    reason=self.reason or "promoted by a DAG",
                    evidence=summary,
                    dag_run=task_context.dag_run(context),
                ),
            )


def held(alias: str | None, stage: str | None) -> str:
    """The alias and the stage in words."""
    parts = [f"alias {alias}" if alias else "", f"stage {stage}" if stage else ""]
    return " and ".join(part for part in parts if part)
