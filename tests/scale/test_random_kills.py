"""Workers, triggerer and scheduler are killed at random moments while trainings start, run and end.

``pytest tests/scale/test_random_kills.py --killed 20 --kills-seed 1 -s``: each training succeeds, with one
Job, one container and one run, whatever number of tries it took. The seed chooses parts and pauses; what
Airflow makes of them depends on the machine, so that a seed repeats the kills and not the whole history.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from helpers.airflow_in_parts import Trainings, trainings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(3600)]

# While they start, and again while they end.
KILLS = 6
SETTINGS = {
    "NIGHTTRAIN_SCALE_RETRIES": "20",
    # What died is noticed in seconds instead of minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
}


def test_each_training_succeeds_once_whoever_is_killed(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    number = request.config.getoption("--killed", default=0)
    if not number:
        pytest.skip("a command: give --killed N")
    dice = random.Random(request.config.getoption("--kills-seed", default=0))
    seconds = 600 + 12.0 * number
    with trainings(tmp_path, number, settings=SETTINGS) as running:
        running.start()
        began = time.monotonic()
        for _ in range(KILLS):
            time.sleep(dice.uniform(1, 8))
            kill(running, dice, began)
        running.until(lambda: running.count("deferred") == number, seconds, "all to be deferred")
        running.open_gate()
        for _ in range(KILLS):
            time.sleep(dice.uniform(1, 8))
            kill(running, dice, began)
        running.until(lambda: running.state() in {"success", "failed"}, seconds, "the DAG run to end")
        print(f"tries: {sorted(task['try_number'] for task in running.tasks())}")
        running.check_each_once(tries=False)


def kill(running: Trainings, dice: random.Random, began: float) -> None:
    """SIGKILL one part, and start it again; a worker is started again by Airflow."""
    part = dice.choice(["worker", "worker", "triggerer", "scheduler"])
    print(f"{time.monotonic() - began:.0f} s: SIGKILL for a {part}", flush=True)
    if part != "worker":
        running.stack.kill_part(part)
        running.stack.start_part(part)
        return
    pids = [task["pid"] for task in running.tasks() if task["state"] == "running" and task["pid"]]
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(pids), signal.SIGKILL)
