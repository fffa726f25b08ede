"""Options of the long forms in this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kill at every step")
    group.addoption("--kill-seed", type=int, help="replay one random schedule")
    group.addoption("--kill-seeds", type=int, help="how many random schedules (8 by default)")
    group.addoption("--kill-plan", help="run this plan, as a failed test printed it")
    group.addoption("--kill-every", action="store_true", help="every fault at every boundary, not a sample")
    group.addoption("--kill-flow", help="of --kill-every, the flows whose names begin so: judge, say")
    group.addoption("--kill-part", default="1/1", help="of --kill-every, a part: 2/4 is the second quarter")
    group.addoption("--kill-skip", type=int, default=0, help="leave out so many: an interrupted run goes on")
    group.addoption("--kill-rounds", type=int, help="how often a real worker is killed (1 by default)")
    group.addoption("--dag-runs", type=int, help="how many DAG runs open their parents (4 by default)")
    group.addoption("--promoters", type=int, help="how many processes promote at once (6 by default)")
    group = parser.getgroup("rollouts that are killed")
    group.addoption("--schedules", type=int, help="how many schedules (a sample by default)")
    group.addoption("--first-schedule", type=int, default=0, help="the seed of the first one")
