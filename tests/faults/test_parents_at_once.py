"""Whatever a DAG run has once is opened by all of its tasks at once, in processes of their own.

The long form, with two hundred DAG runs of ten tasks:

    pytest tests/faults/test_parents_at_once.py -s --dag-runs 200
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from helpers import importable_helpers
from helpers.mlflow_server import unique
from helpers.slow_proxy import slow_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(3600)]

TASKS = 10
# Of a question and again of its answer: ten times what MLflow takes, so that they overtake one another.
HELD_UP_SECONDS = 0.1


@contextmanager
def processes(uri: str, experiment: str) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "helpers.run_opener", uri, experiment]
    started = [
        subprocess.Popen(
            [*command, f"task-{number}"],
            env=importable_helpers(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(TASKS)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.communicate(timeout=60)


def ask(started: list[subprocess.Popen[str]], dag_run: str) -> list[dict[str, str]]:
    """Have all open the DAG run's runs at the same moment."""
    for process in started:
        assert process.stdin is not None
        process.stdin.write(f"{dag_run}\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in started if process.stdout is not None]


@pytest.mark.thorough
def test_tasks_of_a_dag_run_that_start_at_once_have_one_parent(
    mlflow_server: MLflowServer, request: pytest.FixtureRequest
) -> None:
    number = request.config.getoption("--dag-runs", default=None) or 4
    experiment = mlflow_server.experiment(unique("parents"))
    answers: dict[str, list[dict[str, str]]] = {}
    began = time.monotonic()
    with (
        slow_proxy(mlflow_server.uri, seconds=HELD_UP_SECONDS) as uri,
        processes(uri, experiment) as started,
    ):
        for each in range(number):
            answers[f"run-{each}"] = ask(started, f"run-{each}")
            if each % 20 == 19:
                print(f"{each + 1} of {number} DAG runs, {time.monotonic() - began:.0f} s", flush=True)
    assert [answer for all_ in answers.values() for answer in all_ if "error" in answer] == []
    runs = all_runs(mlflow_server, experiment)
    assert len(runs) == number * (TASKS + 1), "one parent and ten children for each"
    for dag_run, given in answers.items():
        (parent,) = {answer["parent"] for answer in given}
        assert runs[parent]["info"]["status"] == "FINISHED", dag_run
        for answer in given:
            child = runs[answer["run"]]
            assert tags(child)["mlflow.parentRunId"] == parent
            assert child["info"]["status"] == "FINISHED"
    print(f"{number} DAG runs of {TASKS} tasks: one parent each, no task failed")


def all_runs(server: MLflowServer, experiment: str) -> dict[str, dict[str, Any]]:
    """Every run that is not in the trash, by its id."""
    found: dict[str, dict[str, Any]] = {}
    token = None
    while True:
        body = {"experiment_ids": [experiment], "max_results": 1000}
        page = server.call("POST", "runs/search", **body, **({"page_token": token} if token else {}))
        found |= {run["info"]["run_id"]: run for run in page.get("runs", [])}
        token = page.get("next_page_token")
        if not token:
            return found


def tags(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in run["data"]["tags"]}
