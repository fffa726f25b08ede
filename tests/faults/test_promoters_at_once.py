"""Many processes promote and roll back one model at once, and die: one history, and the registry as it says.

``--promoters N`` starts so many; each dies at another call than the one before, and another one takes its
place until every call of a change was one at which somebody died.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from helpers import importable_helpers
from helpers.promoter import DIED
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.history.ledger import Holdings
from nighttrain.providers.registry.history.state import read_state
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helpers.mlflow_server import MakeModel, MLflowServer
    from nighttrain.providers.registry.history.ledger import Ledger

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]

VERSIONS = 5
CALLS = 30
"""More than one change makes when nobody else is there."""


async def test_many_promoters_die_and_leave_one_history(
    mlflow_server: MLflowServer, make_model: MakeModel, pytestconfig: pytest.Config
) -> None:
    at_once = pytestconfig.getoption("--promoters") or 4
    model = make_model().name
    for _ in range(VERSIONS - 1):
        make_model(model)
    running = {
        _start(mlflow_server.uri, model, seed, dies_at=1 + seed % CALLS): seed for seed in range(at_once)
    }
    died: Counter[bool] = Counter()
    seen: dict[int, str] = {}
    next_seed = at_once
    async with AsyncExitStack() as stack:
        stack.callback(_kill, running)
        client = await stack.enter_async_context(MLflowClient(TrackingConfig(mlflow_server.uri)))
        registry = ModelRegistry(client)
        history = Changes(registry, model).history
        while running:
            for process in [each for each in running if each.poll() is not None]:
                assert process.returncode in (0, DIED), process.returncode
                died[process.returncode == DIED] += 1
                del running[process]
                if next_seed < max(CALLS, 2 * at_once):
                    dies_at = 1 + next_seed % CALLS
                    running[_start(mlflow_server.uri, model, next_seed, dies_at=dies_at)] = next_seed
                    next_seed += 1
            for entry in (await history.read()).entries:
                # Nothing earlier is rewritten.
                assert seen.setdefault(entry.number, entry.to_json()) == entry.to_json()
            await asyncio.sleep(0.2)
        ledger, state = await Changes(registry, model, patience=0).settled()
    assert died[True] > at_once // 2, died
    assert ledger.faults == ()
    assert [entry.number for entry in ledger.entries] == list(range(1, ledger.last_number + 1))
    assert not ledger.holdings.towards(state.holdings)
    assert (await _held(mlflow_server.uri, model)) == ledger.holdings.aliases
    _check_promotions(ledger)
    kinds = Counter(entry.kind for entry in ledger.entries)
    print(f"{next_seed} processes, {died[True]} died; {ledger.last_number} entries: {dict(kinds)}")
    assert kinds[Kind.TAKEN_OVER]
    assert kinds[Kind.ROLLBACK]
    assert not kinds[Kind.OUTSIDE]


def _check_promotions(ledger: Ledger) -> None:
    """No champion was replaced by a version that was judged beside another one."""
    holdings, done = Holdings(), 0
    for entry in ledger.entries:
        if entry.kind is Kind.DONE:
            change = ledger.entry(entry.finishes)
            assert change is not None
            if change.kind is Kind.PROMOTION:
                judged = re.search(r"judged beside (\w+)", change.reason)
                assert judged
                assert holdings.aliases.get("champion", "none") in (judged[1], change.version)
                done += 1
            holdings = holdings.after(change.moves)
    assert done > 0


async def _held(uri: str, model: str) -> dict[str, str]:
    async with MLflowClient(TrackingConfig(uri)) as client:
        return (await read_state(ModelRegistry(client), model)).aliases


def _kill(running: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()
        process.wait()


def _start(uri: str, model: str, seed: int, *, dies_at: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "helpers.promoter", uri, model, str(seed), "3", str(dies_at)],
        env=importable_helpers(),
    )
