"""A person decides, with the gate's evidence before them, in Airflow's own human step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowSkipException

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, NotApprovedError, storable
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.registry.history.entries import Kind

APPROVE, REJECT = "Approve", "Reject"

COMMENT = "comment"
"""The field of the form whose text is the reason in the history."""

MAX_REASONS = 600
"""Characters of the reasons above the table, which has each of them whole."""

RESPONSE_TIMEOUT = timedelta(days=1)
"""By then the next night has another candidate."""


class ApproveModelOperator(RegistryOperator, HITLOperator):
    """Asks a person whether a version may be promoted, and writes the answer into the model's history.

    Airflow shows the gate's evidence as a table, with *Approve*, *Reject* and a comment. Only an approval by
    somebody who was asked lets the tasks downstream go on. Returns ``{"model_name", "version", "approver",
    "reason", "answered_at"}``, so that a promotion takes ``approver=approve.output["approver"]``.

    Takes the parameters of Airflow's ``HITLOperator`` but ``options``, ``defaults`` and ``multiple``, and:

    :param verdict: the gate's verdict, usually ``gate.output`` (templated)
    :param subject: the question (templated); made from model and version, if left out
    :param body: what stands above the evidence, in Markdown (templated)
    :param assigned_users: ids of the users who may answer, or dicts with ``id`` and ``name``; anybody whom
        Airflow lets answer, if left out
    :param response_timeout: how long to wait for an answer; a day, since the next night has another candidate
    :param on_rejected: ``"skip"`` what is downstream (the default), or ``"fail"`` the task
    :param on_timeout: the same where nobody answered; ``"fail"`` by default, since somebody should look
    :param mlflow_conn_id: connection of type ``mlflow``
    """

    template_fields: Sequence[str] = ("verdict", "subject", "body")
    native_fields = frozenset({"verdict"})

    def __init__(
        self,
        *,
        verdict: Any,
        subject: str = "",
        body: str = "",
        assigned_users: Sequence[str | Mapping[str, str]] | None = None,
        response_timeout: timedelta | None = RESPONSE_TIMEOUT,
        on_rejected: Literal["skip", "fail"] = "skip",
        on_timeout: Literal["skip", "fail"] = "fail",
        **kwargs: Any,
    ) -> None:
        for name, value in (("on_rejected", on_rejected), ("on_timeout", on_timeout)):
            if value not in ("skip", "fail"):
                raise ConfigurationError(name, value, "must be skip or fail")
        for name in ("options", "defaults", "multiple"):
            if name in kwargs:
                raise ConfigurationError(
                    name,
                    kwargs[name],
                    "leave it out: the answers are Approve and Reject, and no answer is none",
                )
        super().__init__(
            subject=subject,
            body=body,
            options=[APPROVE, REJECT],
            response_timeout=response_timeout,
            params={COMMENT: _comment(), **(kwargs.pop("params", None) or {})},
            **kwargs,
        )
        self.assigned_users = _users(assigned_users)
        self.verdict = verdict
        self.on_rejected = on_rejected
        self.on_timeout = on_timeout

    def execute(self, context: Context) -> Any:
        with failing_clearly():
            self._connect()
            verdict = self._read_verdict()
            self._link(context, verdict["model_name"], str(verdict["version"]))
            parts = (self.body, _evidence(verdict), self._origin(verdict))
        self.subject = self.subject or f"Promote {verdict['model_name']} version {verdict['version']}?"
        self.body = "\n\n".join(part for part in parts if part)
        return HITLOperator.execute(self, context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take over the answer, or that there was none."""
        from nighttrain.providers.registry.history.entries import Kind

        with failing_clearly():
            self._connect()
            if "error" in event:
                return self._unanswered(context, event)
            user = event.get("responded_by_user") or {}
            approver = storable(str(user.get("name") or user.get("id") or ""))
            reason = storable(str((event.get("params_input") or {}).get(COMMENT) or ""))
            if not self._was_asked(user):
                self._note(context, Kind.ANSWER_REFUSED, approver, reason)
                names = ", ".join(each["name"] for each in self.assigned_users or ())
                raise NotApprovedError(f"{approver or 'nobody'} answered, and {names} was asked")
            answer = HITLOperator.execute_complete(self, context, event)
            if answer["chosen_options"] != [APPROVE]:
                self._note(context, Kind.REJECTED, approver, reason)
                self._stop(self.on_rejected, f"{approver} rejected it: {reason or 'no reason was given'}")
            self._note(context, Kind.APPROVED, approver, reason)
        verdict = self._read_verdict()
        self.log.info("%s approved it", approver)
        return {
            "model_name": verdict["model_name"],
            "version": str(verdict["version"]),
            "approver": approver,
            "reason": reason,
            "answered_at": event["responded_at"].isoformat(),
        }

    def _origin(self, verdict: Mapping[str, Any]) -> str:
        """Where the versions can be looked at, and who was asked: Airflow's form does not say it."""
        from nighttrain.providers.registry.markdown import link, text

        def page(version: Any) -> str:
            url = self._mlflow.version_url(verdict["model_name"], str(version))
            return link(f"version {version}", url)

        champion = verdict.get("champion_version")
        compared = f", champion: {page(champion)}" if champion else ""
        asked = ", ".join(text(user["name"]) for user in self.assigned_users or ())
        return f"Candidate: {page(verdict['version'])}{compared}. Asked: {asked or 'anybody who may answer'}."

    def _unanswered(self, context: Context, event: Mapping[str, Any]) -> NoReturn:
        from nighttrain.providers.registry.history.entries import Kind

        if event.get("error_type") != "timeout":
            raise NotApprovedError(f"Airflow could not take the answer: {event['error']}")
        self._note(context, Kind.UNANSWERED, "", "")
        self._stop(self.on_timeout, f"nobody answered within {self.response_timeout}")

    def _stop(self, reaction: str, words: str) -> NoReturn:
        if reaction == "skip":
            raise AirflowSkipException(words)
        raise NotApprovedError(words)

    def _was_asked(self, user: Mapping[str, Any]) -> bool:
        """Tell whether this user may answer; Airflow lets everybody where all are administrators."""
        if not self.assigned_users:
            return True
        return str(user.get("id")) in {each["id"] for each in self.assigned_users}

    def _note(self, context: Context, kind: Kind, approver: str, reason: str) -> None:
        run_sync(self._write(context, kind, approver, reason))

    async def _write(self, context: Context, kind: Kind, approver: str, reason: str) -> None:
        from nighttrain.providers.registry.promotion import Author, note

        verdict = self._read_verdict()
        async with open_registry(self._mlflow) as registry:
            await note(
                registry,
                verdict["model_name"],
                kind,
                version=str(verdict["version"]),
                author=Author(
                    actor=task_context.actor(context),
                    approver=approver,
                    reason=reason,
                    evidence=str(verdict.get("summary", "")),
                    dag_run=task_context.dag_run(context),
                ),
            )

    def _read_verdict(self) -> Mapping[str, Any]:
        from nighttrain.providers.registry.versions import check_name, check_version

        needed = {"model_name", "version", "kind"}
        if not isinstance(self.verdict, Mapping) or not needed <= set(self.verdict):
            raise ConfigurationError("verdict", self.verdict, "give the gate's own, gate.output")
        check_name(self.verdict["model_name"])
        check_version(self.verdict["version"])
        return self.verdict


def _comment() -> Param:
    # Airflow's page locks both buttons until a field that may not be null is filled in.
    why = "Why? It goes into the model's history."
    return Param(None, type=["null", "string"], title="Comment", description=why)


def _users(given: Sequence[str | Mapping[str, str]] | None) -> Any:
    """Users as Airflow takes them. :raises ConfigurationError: one without an id, or nobody"""
    if given is None:
        return None
    if isinstance(given, str | Mapping):
        given = [given]
    users = [{"id": each, "name": each} if isinstance(each, str) else dict(each) for each in given]
    if not users:
        raise ConfigurationError("assigned_users", given, "name who may answer, or leave it out for anybody")
    for user in users:
        if not user.get("id"):
            raise ConfigurationError("assigned_users", user, "each needs an id, as Airflow's users have one")
        user.setdefault("name", user["id"])
    return users


def _evidence(verdict: Mapping[str, Any]) -> str:
    """The verdict in a sentence, and each rule's finding in a table."""
    from nighttrain.providers.registry.gates.verdicts import Verdict
    from nighttrain.providers.registry.markdown import text

    try:
        read = Verdict.from_dict(verdict)
        if read.accepted:
            why = "every rule holds"
        else:
            why = text(read.summary().removeprefix(f"{read.kind.value}: "), MAX_REASONS)
        return f"The gate's verdict: **{read.kind.value}**, {why}.\n\n{read.markdown_table()}"
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError("verdict", verdict, "give the gate's own, gate.output") from error
