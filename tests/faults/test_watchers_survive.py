"""Watchers of the registry in a real Airflow whose triggerer is killed, and webhooks the whole way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.followed_registry import Following, following_registry
from helpers.polling import until
from helpers.webhook_deliveries import delivery
from nighttrain.providers import commands
from nighttrain.providers.registry.feed.webhooks import PATH, SECRET_VARIABLE
from nighttrain.sensors.common.nudges import NUDGE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(600)]

DAGS = ("follow_stage", "follow_versions", "follow_patiently")


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    dags = tmp_path / "dags"
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    with following_registry(tmp_path, dags, DAGS) as found:
        yield found


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """The events' numbers, copies left out."""
    return list(dict.fromkeys(event["sequence"] for event in events))


@pytest.mark.thorough
def test_nothing_is_lost_and_a_webhook_is_enough(
    following: Following, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, mlflow = following.stack, following.mlflow
    first = following.version()
    following.alias(first)
    mlflow.stage("m", first, "Production")
    following.wait("m-stage-Production", first)
    following.wait("m-version-latest", first)

    # Killed in the middle of it all: what happens meanwhile, and just before, arrives.
    second = following.version()
    mlflow.stage("m", second, "Production", archive=True)
    stack.kill_part("triggerer")
    third = following.version()
    mlflow.stage("m", third, "Production", archive=True)
    stack.start_part("triggerer")
    following.wait("m-stage-Production", third)
    following.wait("m-version-latest", third)
    versions = following.events("m-version-latest")
    assert list(dict.fromkeys(event["version"] for event in versions)) == [first, second, third]
    for asset in ("m-version-latest", "m-stage-Production"):
        events = following.events(asset)
        told = numbers(events)
        assert told == list(range(1, len(told) + 1)), events

    # The watcher that looks once an hour: its first look told the first version, and the second look is a
    # webhook's.
    monkeypatch.setenv(SECRET_VARIABLE, following.secret)
    arguments = ["--airflow-url", stack.airflow_uri, "--mlflow-uri", mlflow.uri]
    assert commands.main(["webhooks", "register", *arguments]) == 0, capsys.readouterr()
    assert stack.api("GET", f"/variables/{NUDGE_VARIABLE}").status_code == 200
    following.alias(third)
    following.wait("m-alias-champion", third)

    # And nobody else can have it look.
    before = stack.api("GET", f"/variables/{NUDGE_VARIABLE}").json()["value"]
    forged = delivery("another secret", 0, {})
    answer = httpx.post(
        f"{stack.airflow_uri}{PATH}", content=forged.body, headers=forged.headers, trust_env=False
    )
    assert answer.status_code == 401
    assert stack.api("GET", f"/variables/{NUDGE_VARIABLE}").json()["value"] == before

    def runs(dag_id: str) -> int:
        return int(stack.api("GET", f"/dags/{dag_id}/dagRuns").json()["total_entries"])

    until(lambda: all(runs(dag_id) > 0 for dag_id in DAGS), 60, "each DAG to run")
