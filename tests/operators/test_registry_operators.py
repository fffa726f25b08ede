"""The gate's reactions, and what a promotion asks of a verdict, against a real MLflow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from helpers.mlflow_server import MLflowServer, unique
from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.providers.errors import ConfigurationError, GateInconclusiveError, GateRejectedError

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@pytest.fixture
def model(mlflow_server: MLflowServer) -> str:
    """A registered model with two versions."""
    name, experiment = unique("model"), mlflow_server.experiment()
    for _ in range(2):
        run = mlflow_server.run(experiment)
        mlflow_server.version(name, run, mlflow_server.logged_model(experiment, run))
    return name


def test_a_model_whose_run_is_in_the_trash_is_told_with_the_way_back(
    context: Any, mlflow_server: MLflowServer
) -> None:
    run = mlflow_server.run(mlflow_server.experiment())
    mlflow_server.call("POST", "runs/delete", run_id=run)
    register = RegisterModelOperator(task_id="register", model_name=unique("model"), run_id=run)
    with pytest.raises(AirflowFailException, match=f"runs restore --run-id {run}.*then clear this task"):
        register.execute(context)


def evaluation(model: str, **candidate: float) -> dict[str, Any]:
    """What EvaluateModelOperator returns."""
    measured = {"candidate": candidate, "champion": {"mae": 12.0}}
    return {
        "model_name": model,
        "version": "2",
        "champion_version": "1",
        "champion_alias": "champion",
        "run_id": "e",
        "measurements": measured,
    }


def gate(model: str, context: Any, measured: dict[str, float], **reactions: Any) -> Any:
    operator = ModelGateOperator(
        task_id="gate",
        evaluation=evaluation(model, **measured),
        rules=["mae <= champion.mae", "rows >= 500"],
        **reactions,
    )
    return operator.execute(context)


def tags(server: MLflowServer, model: str, version: str) -> dict[str, str]:
    (found,) = [each for each in server.versions(model) if each["version"] == version]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


WORSE, UNKNOWN = {"mae": 13.0, "rows": 900}, {"mae": 11.0}
OUTCOMES = [
    ("rejected", "on_rejected", WORSE, GateRejectedError),
    ("inconclusive", "on_inconclusive", UNKNOWN, GateInconclusiveError),
]


@pytest.mark.parametrize(("kind", "parameter", "measured", "error"), OUTCOMES)
@pytest.mark.parametrize("reaction", ["skip", "fail", "continue"])
def test_the_gate_reacts_as_told_and_its_verdict_is_kept_whatever_it_does(
    mlflow_server: MLflowServer,
    context: Any,
    model: str,
    reaction: str,
    kind: str,
    parameter: str,
    measured: dict[str, float],
    error: type[Exception],
) -> None:
    # The other one reacts in another way: the two are not mixed up.
    others = {"on_rejected", "on_inconclusive"} - {parameter}
    reactions = {parameter: reaction, **dict.fromkeys(others, "skip" if reaction == "fail" else "fail")}
    if reaction == "continue":
        assert gate(model, context, measured, **reactions)["kind"] == kind
    elif reaction == "skip":
        with pytest.raises(AirflowSkipException, match=f"^{kind}: "):
            gate(model, context, measured, **reactions)
    else:
        with pytest.raises(AirflowFailException, match=f"{error.__name__}: {kind}: ") as failed:
            gate(model, context, measured, **reactions)
        assert isinstance(failed.value.__cause__, error)
    verdict = context["ti"].xcoms["verdict"]
    assert (verdict["model_name"], verdict["version"], verdict["kind"]) == (model, "2", kind)
    assert tags(mlflow_server, model, "2")["nighttrain.gate.verdict"] == kind


@pytest.mark.parametrize(
    ("parameter", "raised"), [("rejected", AirflowSkipException), ("inconclusive", AirflowFailException)]
)
def test_a_worse_model_is_a_normal_night_and_a_missing_number_is_not(
    context: Any, model: str, parameter: str, raised: type[Exception]
) -> None:
    measured = {kind: numbers for kind, _, numbers, _ in OUTCOMES}[parameter]
    with pytest.raises(raised):
        gate(model, context, measured)


def test_an_accepted_verdict_lets_the_version_be_promoted(
    mlflow_server: MLflowServer, context: Any, model: str
) -> None:
    mlflow_server.call("POST", "registered-models/alias", name=model, alias="champion", version="1")
    accepted = gate(model, context, {"mae": 11.0, "rows": 900})
    done = PromoteModelOperator(task_id="promote", model_name=model, version="2", verdict=accepted).execute(
        context
    )
    assert done == {
        "model_name": model,
        "version": "2",
        "alias": "champion",
        "stage": None,
        "previous_version": "1",
        "entry": 2,
    }
    assert holder(mlflow_server, model) == "2"
    (written,) = [
        each for each in mlflow_server.history(model) if each["nighttrain.history.kind"] == "promotion"
    ]
    assert json.loads(written["nighttrain.history.entry"])["evidence"] == accepted["summary"]


def test_a_rejected_one_that_is_let_through_says_so(
    mlflow_server: MLflowServer, context: Any, model: str
) -> None:
    told = gate(model, context, WORSE, let_through="to see the canary undo it")
    assert told["kind"] == "accepted"
    assert told["summary"].endswith(
        "it was rejected, and the gate was told to let it through: to see the canary undo it"
    )
    kinds = [(row["rule"], row["verdict"]) for row in told["evidence"]]
    assert kinds == [
        ("mae <= champion.mae", "rejected"),
        ("rows >= 500", "accepted"),
        ("let through", "accepted"),
    ]
    assert tags(mlflow_server, model, "2")["nighttrain.gate.verdict"] == "accepted"
    assert (
        gate(model, context, {"mae": 11.0, "rows": 900}, let_through="")["evidence"][-1]["rule"]
        == "rows >= 500"
    )


def holder(server: MLflowServer, model: str) -> str | None:
    found = server.call("GET", "registered-models/get", name=model)["registered_model"]
    held = {each["alias"]: each["version"] for each in found.get("aliases", [])}
    return held.get("champion")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({"kind": "rejected"}, "accepted is promoted", id="rejected"),
        pytest.param({"kind": "inconclusive"}, "accepted is promoted", id="inconclusive"),
        pytest.param({"kind": "ACCEPTED"}, "accepted is promoted", id="no kind that a gate gives"),
        pytest.param({"kind": None}, "accepted is promoted", id="no kind"),
        pytest.param({"version": "1"}, "version 1", id="another version's"),
        pytest.param({"version": None}, "version None", id="nobody's version"),
        pytest.param({"model_name": "another"}, "about another version 2", id="another model's"),
        pytest.param({"model_name": None}, "about None version 2", id="nobody's model"),
    ],
)
def test_a_verdict_that_does_not_accept_this_version_moves_nothing(
    mlflow_server: MLflowServer, context: Any, model: str, changes: dict[str, Any], told: str
) -> None:
    verdict = {"kind": "accepted", "model_name": model, "version": "2", "summary": "accepted: by hand"}
    with pytest.raises(AirflowFailException, match=told) as failed:
        PromoteModelOperator(
            task_id="promote", model_name=model, version="2", verdict=verdict | changes
        ).execute(context)
    assert isinstance(failed.value.__cause__, ConfigurationError)
    assert holder(mlflow_server, model) is None
    assert {each["current_stage"] for each in mlflow_server.versions(model)} == {"None"}


def test_a_verdict_beside_another_champion_than_there_is_now_moves_nothing(
    mlflow_server: MLflowServer, context: Any, model: str
) -> None:
    accepted = gate(model, context, {"mae": 11.0, "rows": 900})
    with pytest.raises(AirflowFailException, match=r"judged beside version 1, .* is on no version now"):
        PromoteModelOperator(task_id="promote", model_name=model, version="2", verdict=accepted).execute(
            context
        )
    assert holder(mlflow_server, model) is None


@pytest.mark.parametrize(
    "verdict",
    [{}, {"kind": "accepted"}, "accepted", "{'kind': 'accepted', 'version': '2'}", True, ["accepted"]],
)
def test_what_is_written_by_hand_is_no_verdict(
    mlflow_server: MLflowServer, context: Any, model: str, verdict: Any
) -> None:
    with pytest.raises(AirflowFailException, match="ConfigurationError"):
        PromoteModelOperator(task_id="promote", model_name=model, version="2", verdict=verdict).execute(
            context
        )
    assert holder(mlflow_server, model) is None


def test_without_a_verdict_a_person_decides(mlflow_server: MLflowServer, context: Any, model: str) -> None:
    PromoteModelOperator(
        task_id="promote",
        model_name=model,
        version=1,
        stage=None,
        reason="asked for",  # type: ignore[arg-type]
    ).execute(context)
    assert holder(mlflow_server, model) == "1"
