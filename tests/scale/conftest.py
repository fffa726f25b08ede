"""Large runs in a real Airflow. They are commands:
``pytest tests/scale --mapped 1000 --restarted 50 --killed 20``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("scale")
    group.addoption("--mapped", type=int, default=0, help="how many mapped trainings are deferred at once")
    group.addoption("--killed", type=int, default=0, help="how many trainings run while parts are killed")
    group.addoption("--kills-seed", type=int, default=0, help="which parts are killed, and when")
    group.addoption("--restarted", type=int, default=0, help="how many Jobs run while the servers restart")
