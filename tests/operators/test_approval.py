"""The answer to a question about a version, as Airflow hands it to the task."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from nighttrain.operators import ApproveModelOperator
from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def asking(model: str, **given: Any) -> ApproveModelOperator:
    verdict = {"kind": "accepted", "model_name": model, "version": "1", "summary": "accepted", "evidence": []}
    return ApproveModelOperator(task_id="approve", verdict=verdict, **given)


def answer(user: str | None, option: str = "Approve", comment: str = "") -> dict[str, Any]:
    return {
        "chosen_options": [option],
        "params_input": {"comment": comment},
        "responded_at": NOW,
        "responded_by_user": {"id": user, "name": user} if user else None,
        "timedout": False,
    }


def told(server: MLflowServer, model: str) -> list[tuple[str, str | None]]:
    entries = server.history(model)
    return [(each["nighttrain.history.kind"], each.get("nighttrain.history.approver")) for each in entries]


@pytest.mark.parametrize("user", ["eve", None])
def test_an_answer_of_somebody_who_was_not_asked_promotes_nothing(
    mlflow_server: MLflowServer, make_model: MakeModel, context: Any, user: str | None
) -> None:
    model = make_model().name
    with pytest.raises(AirflowFailException, match="answered, and ann, bob was asked"):
        asking(model, assigned_users=["ann", {"id": "bob"}]).execute_complete(context, answer(user))
    assert told(mlflow_server, model) == [("answer refused", user)]


def test_anybody_may_answer_where_nobody_is_named(
    mlflow_server: MLflowServer, make_model: MakeModel, context: Any
) -> None:
    model = make_model().name
    done = asking(model).execute_complete(context, answer("eve", comment="<b>fine</b>\n| yes"))
    assert done == {
        "model_name": model,
        "version": "1",
        "approver": "eve",
        "reason": "<b>fine</b>\n| yes",
        "answered_at": NOW.isoformat(),
    }
    assert told(mlflow_server, model) == [("approved", "eve")]


def test_the_page_lets_somebody_answer_without_a_comment() -> None:
    # Its buttons stay locked while a field is empty whose type is not null too.
    comment = asking("model").serialized_params["comment"]
    assert comment["value"] is None
    assert "null" in comment["schema"]["type"]


@pytest.mark.parametrize(
    ("reaction", "raised"), [("skip", AirflowSkipException), ("fail", AirflowFailException)]
)
def test_a_rejection_and_silence_stop_what_is_downstream_as_told(
    mlflow_server: MLflowServer, make_model: MakeModel, context: Any, reaction: Any, raised: type[Exception]
) -> None:
    model = make_model().name
    operator = asking(model, on_rejected=reaction, on_timeout=reaction)
    with pytest.raises(raised, match="ann rejected it: too early"):
        operator.execute_complete(context, answer("ann", "Reject", "too early"))
    silence = {"error": "The response timeout has passed", "error_type": "timeout"}
    with pytest.raises(raised, match="nobody answered within 1 day"):
        operator.execute_complete(context, silence)
    with pytest.raises(AirflowFailException, match="could not take the answer"):
        operator.execute_complete(context, {"error": "something else", "error_type": "unknown"})
    assert told(mlflow_server, model) == [("rejected", "ann"), ("not answered", None)]


@pytest.mark.parametrize(
    "given",
    [
        {"assigned_users": []},
        {"assigned_users": [{"name": "ann"}]},
        {"on_timeout": "approve"},
        {"options": ["Yes"]},
        {"defaults": "Approve"},
    ],
)
def test_what_would_let_a_promotion_through_unseen_is_refused_while_the_dag_is_parsed(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        asking("model", **given)


@pytest.mark.parametrize("verdict", [None, "accepted", {}, {"kind": "accepted", "model_name": "m"}])
def test_without_the_gates_verdict_nobody_is_asked(
    mlflow_server: MLflowServer, context: Any, verdict: Any
) -> None:
    with pytest.raises(AirflowFailException, match=r"verdict.*gate\.output"):
        ApproveModelOperator(task_id="approve", verdict=verdict).execute(context)


@pytest.mark.parametrize(("field", "value"), [("model", "../m"), ("version", "1?x"), ("version", "../2")])
def test_a_verdict_about_what_cannot_be_there_is_no_question(
    mlflow_server: MLflowServer, context: Any, field: str, value: str
) -> None:
    verdict = {"kind": "accepted", "model_name": "m", "version": "1"}
    verdict["model_name" if field == "model" else field] = value
    with pytest.raises(AirflowFailException, match=f"ConfigurationError: {field} = "):
        ApproveModelOperator(task_id="approve", verdict=verdict).execute(context)
