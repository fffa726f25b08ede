"""What Airflow's API says of tasks, and what of it is believed. The bodies are those of Airflow 3.3.2."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nighttrain.providers import errors
from nighttrain.providers.airflow_api import AirflowAPI
from nighttrain.providers.attempts.reaper import TaskState
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

IDENTITY = WorkloadIdentity(orchestrator="airflow", dag_id="d", run_id="manual__2026+1/2", task_id="t")
VERSION = json.dumps({"version": "3.3.2", "git_version": None})
REGION = "019b0f5e-0a84-7c6c-a3a5-3a6b30d5a1d0"
GONE = json.dumps(
    {"detail": "The Task Instance with dag_id: `d`, run_id: `r` and task_id: `t` was not found"}
)


async def asked(scripted: Any, status: int, body: str, **changes: Any) -> TaskState:
    scripted.says(200, VERSION)
    scripted.says(status, body)
    async with AirflowAPI(scripted.uri) as states:
        return await states.state(WorkloadIdentity(**(vars(IDENTITY) | changes)))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *(
            (state, TaskState.OVER)
            for state in ("success", "failed", "skipped", "upstream_failed", "removed")
        ),
        *((state, TaskState.ALIVE) for state in ("running", "deferred", "queued", "up_for_retry", None)),
        ("a state of a later Airflow", TaskState.ALIVE),
    ],
)
async def test_a_state_is_over_only_if_nothing_more_will_happen(
    scripted: Any, state: str | None, expected: TaskState
) -> None:
    assert await asked(scripted, 200, json.dumps({"state": state})) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, GONE, TaskState.GONE),
        # 3.4, of a mapped task that was expanded to fewer
        (404, json.dumps({"detail": "Task instance not found for selected coordinates"}), TaskState.GONE),
        # 3.4, of a task in a loop that is asked for without its iteration
        (400, json.dumps({"detail": "Select a region and index for this task instance"}), TaskState.UNKNOWN),
        (404, json.dumps({"detail": "Not Found"}), TaskState.UNKNOWN),
        (404, "<html>a proxy's page</html>", TaskState.UNKNOWN),
        (404, json.dumps({"detail": "Task instance is mapped, add the map_index value"}), TaskState.UNKNOWN),
        (500, "oops", TaskState.UNKNOWN),
        (200, "[]", TaskState.UNKNOWN),
    ],
)
async def test_only_airflows_own_word_makes_a_task_gone(
    scripted: Any, status: int, body: str, expected: TaskState
) -> None:
    assert await asked(scripted, status, body) is expected


async def test_names_become_quoted_parts_of_the_path(scripted: Any) -> None:
    await asked(scripted, 404, GONE, map_index=4)
    assert scripted.requests[1][1] == "/api/v2/dags/d/dagRuns/manual__2026%2B1%2F2/taskInstances/t/4"


async def test_an_iteration_of_a_loop_is_asked_for_by_its_region(scripted: Any) -> None:
    assert await asked(scripted, 200, '{"state": "success"}', region=f"{REGION}:2") is TaskState.OVER
    asked_for = scripted.requests[1][1]
    assert asked_for.endswith(f"/taskInstances/t?region_id={REGION}&region_index=2")


async def test_refused_credentials_and_wrong_addresses_are_told(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTTRAIN_AIRFLOW_TOKEN", "very-secret-token")
    with pytest.raises(errors.AirflowError, match="NIGHTTRAIN_AIRFLOW_TOKEN") as refused:
        await asked(scripted, 401, "{}")
    assert "very-secret-token" not in str(refused.value)
    assert scripted.requests[1][2]["authorization"] == "Bearer very-secret-token"
    with pytest.raises(errors.AirflowError, match="not Airflow 3"):
        async with AirflowAPI(scripted.uri):  # it says 401 from now on
            pass
    with pytest.raises(errors.AirflowError, match="no answer"):
        async with AirflowAPI("http://127.0.0.1:9"):
            pass
    with pytest.raises(errors.ConfigurationError, match="airflow-url"):
        AirflowAPI("airflow.example.com")


async def test_a_user_is_logged_in(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTTRAIN_AIRFLOW_USERNAME", "reaper")
    monkeypatch.setenv("NIGHTTRAIN_AIRFLOW_PASSWORD", "very-secret")
    scripted.says(200, VERSION)
    scripted.says(201, json.dumps({"access_token": "fresh"}))
    scripted.says(200, json.dumps({"state": "failed"}))
    async with AirflowAPI(scripted.uri) as states:
        assert await states.state(IDENTITY) is TaskState.OVER
    assert scripted.requests[2][2]["authorization"] == "Bearer fresh"
