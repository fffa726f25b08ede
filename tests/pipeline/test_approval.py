"""A person approves, rejects, is late, or was not asked: through Airflow's API, with named users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from helpers.mlflow_server import MLflowServer, unique
from helpers.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.pipeline import NamedUsers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Asking(Pipeline):
    """Asks about a model, and answers as somebody."""

    def __init__(self, stack: NamedUsers) -> None:
        super().__init__(stack)
        client = httpx.Client(base_url=stack.mlflow_uri, timeout=60)
        log = stack.directory / "mlflow.log"
        self.server = MLflowServer(stack.mlflow_uri, log, stack.directory / "artifacts", client)

    def model(self) -> str:
        experiment = self.server.experiment()
        run = self.server.run(experiment)
        name = unique("asked")
        self.server.version(name, run, self.server.logged_model(experiment, run))
        return name

    def answer(self, run_id: str, user: str, option: str, comment: str) -> httpx.Response:
        # Airflow fails a parked task whose answer comes before its scheduler has heard from the executor that
        # the task was parked; no person is that quick.
        heard = "executor event with state success for task instance TaskInstanceKey(dag_id='asking', "
        heard += f"task_id='approve', run_id='{run_id}'"
        log = self.stack.directory / "logs" / "airflow.log"
        self.until(lambda: heard in log.read_text(errors="replace"), 90, "the question")
        path = f"/dags/asking/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
        body = {"chosen_options": [option], "params_input": {"comment": comment}}
        return self.stack.api("PATCH", path, user=user, json=body)

    def told(self, model: str) -> list[tuple[str, str | None, str | None]]:
        """Of each entry of the history: its kind, the person, the reason."""
        keys = [f"nighttrain.history.{each}" for each in ("kind", "approver", "reason")]
        kind, approver, reason = keys
        return [(t[kind], t.get(approver), t.get(reason)) for t in self.server.history(model)]


@pytest.fixture
def asking(pipeline: Pipeline) -> Iterator[Asking]:
    asking = Asking(pipeline.stack)
    with asking.server.http:
        yield asking


def test_an_approval_by_somebody_who_was_asked_promotes_and_the_history_names_them(asking: Asking) -> None:
    model = asking.model()
    run_id = asking.trigger("asking", model=model)
    refused = asking.answer(run_id, "eve", "Approve", "I may not")
    assert refused.status_code == 403
    assert asking.answer(run_id, "ann", "Approve", "the error is lower").status_code == 200
    assert asking.finished("asking", run_id) == "success"
    reason = "the error is lower"
    assert asking.told(model) == [
        ("approved", "ann", reason),
        ("promotion", "ann", reason),
        ("done", None, None),
    ]
    assert asking.task("asking", run_id, "promote")["state"] == "success"
    path = f"/dags/asking/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
    question = asking.stack.api("GET", path).json()
    assert question["subject"] == f"Promote {model} version 1?"
    assert "| mae &#60;= champion | 20 | 22 |" in question["body"]
    assert "<b>" not in question["body"]
    assert question["body"].startswith("The gate's verdict: **accepted**, every rule holds.\n\n|")
    page = f"{asking.stack.mlflow_uri}/#/models/{model}/versions/1"
    assert question["body"].endswith(f"\n\nCandidate: [version 1]({page}). Asked: ann, bob.")


def test_a_rejection_promotes_nothing_and_stands_in_the_history(asking: Asking) -> None:
    model = asking.model()
    run_id = asking.trigger("asking", model=model)
    assert asking.answer(run_id, "bob", "Reject", "not before the holidays").status_code == 200
    assert asking.finished("asking", run_id) == "success"
    assert asking.task("asking", run_id, "promote")["state"] == "skipped"
    assert asking.told(model) == [("rejected", "bob", "not before the holidays")]


def test_nobody_answers_promotes_nothing_and_stands_in_the_history(asking: Asking) -> None:
    model = asking.model()
    run_id = asking.trigger("asking_briefly", model=model)
    assert asking.finished("asking_briefly", run_id) == "success"
    assert asking.task("asking_briefly", run_id, "promote")["state"] == "skipped"
    assert asking.told(model) == [("not answered", None, None)]
