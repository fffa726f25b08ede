"""How soon a DAG starts after the registry moved: real MLflow, real Airflow, the whole way.

A DAG follows a stage, another one an alias, with nighttrain's defaults. Moves come one after the other, at
moments that have nothing to do with the polls; the time goes from MLflow's answer to the start of the DAG run
that the move made. First without webhooks; then MLflow sends them to the receiver in Airflow's API server.
Stages send none.

Command: ``./run bench -k registry_to_dag``; ``--full`` makes 30 moves of each sort, 10 otherwise.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import pytest

from helpers.followed_registry import Following, following_registry
from helpers.polling import until
from nighttrain.providers import commands
from nighttrain.providers.registry.feed.webhooks import SECRET_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Show

pytestmark = [
    pytest.mark.bench,
    pytest.mark.slow,
    pytest.mark.airflow,
    pytest.mark.mlflow,
    pytest.mark.timeout(3600),
]

DAGS = ("on_stage", "on_alias")
DAG_FILE = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from nighttrain.sensors import registered_model

for name, asset in {
    "on_stage": registered_model("m", stage="Production"),
    "on_alias": registered_model("m", alias="champion"),
}.items():
    with DAG(name, schedule=[asset], catchup=False, is_paused_upon_creation=False) as dag:
        EmptyOperator(task_id="deploy")
    globals()[name] = dag
"""
MOVES, MOVES_IN_SMALL = 30, 10
POLL_SECONDS = 5.0


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "following.py").write_text(DAG_FILE)
    with following_registry(tmp_path, dags, DAGS) as found:
        yield found


def test_how_soon_a_dag_starts_after_the_registry_moved(
    following: Following, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, show: Show
) -> None:
    count = MOVES if request.config.getoption("--full") else MOVES_IN_SMALL
    versions = [following.version(), following.version()]

    def stage(version: str) -> None:
        following.mlflow.stage("m", version, "Production", archive=True)

    delays = {
        "a stage moves": _moves(following, "on_stage", stage, versions, count),
        "an alias moves": _moves(following, "on_alias", following.alias, versions, count),
    }
    monkeypatch.setenv(SECRET_VARIABLE, following.secret)
    uris = ["--airflow-url", following.stack.airflow_uri, "--mlflow-uri", following.mlflow.uri]
    assert commands.main(["webhooks", "register", *uris]) == 0
    with_webhooks = _moves(following, "on_alias", following.alias, versions, count)
    delays["an alias moves, with webhooks"] = with_webhooks
    rows = []
    for what, seconds in delays.items():
        assert len(seconds) == count
        cuts = quantiles(seconds, n=100, method="inclusive")
        rows.append((what, f"{cuts[49]:.2f} s", f"{cuts[98]:.2f} s", f"{count}"))
    show(
        "From the move to the start of the DAG run",
        ("", "p50", "p99", "moves"),
        rows,
        note=f"polls every {POLL_SECONDS:.0f} s",
    )
    assert sorted(with_webhooks)[count // 2] < sorted(delays["an alias moves"])[count // 2]


def _moves(
    following: Following, dag_id: str, move: Callable[[str], None], versions: list[str], count: int
) -> list[float]:
    delays = []
    for number in range(count):
        known = {each["dag_run_id"] for each in _runs(following, dag_id)}
        time.sleep(POLL_SECONDS * ((number * 0.618) % 1) / 2)  # a moment of its own between two polls
        move(versions[number % 2])
        moved = time.time()

        def started(known: set[str] = known) -> float | None:
            new = [each for each in _runs(following, dag_id) if each["dag_run_id"] not in known]
            starts = [each["start_date"] for each in new if each["start_date"]]
            return datetime.fromisoformat(starts[0]).timestamp() if starts else None

        delays.append(until(started, 120, f"{dag_id} to start") - moved)
    return delays


def _runs(following: Following, dag_id: str) -> list[dict[str, Any]]:
    newest = {"order_by": "-run_after", "limit": 10}
    answer = following.stack.api("GET", f"/dags/{dag_id}/dagRuns", params=newest)
    return list(answer.json()["dag_runs"])
