"""Triggerer, scheduler and API server restart one after another while trainings run: each succeeds once.

``pytest tests/scale/test_rolling_restart.py --restarted 50``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from helpers.airflow_in_parts import RestartableProxy, trainings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(3600)]

# Longer than a cut connection, and than the hub needs to call it an outage.
AWAY_SECONDS = 10.0


def test_trainings_succeed_once_each_through_a_rolling_restart(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    number = request.config.getoption("--restarted", default=0)
    if not number:
        pytest.skip("a command: give --restarted N")
    seconds = 300 + 12.0 * number
    proxy = RestartableProxy()
    with trainings(tmp_path, number, proxy) as running:
        stack = running.stack
        running.start()
        running.until(lambda: running.count("deferred") == number, seconds, "all to be deferred")
        running.until(lambda: len(running.lines("began")) == number, seconds, "all containers to run")
        for part in ("triggerer", "scheduler"):
            stack.kill_part(part)
            stack.start_part(part)
            # The dead one's last heartbeat still counts for a while.
            time.sleep(AWAY_SECONDS)
            stack.wait_airflow([])
        proxy.stop()
        time.sleep(AWAY_SECONDS)
        proxy.start()
        assert running.count("deferred") == number
        running.open_gate()
        running.until(lambda: running.state() in {"success", "failed"}, seconds, "the DAG run to end")
        running.check_each_once()
