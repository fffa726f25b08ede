"""The history is one line that only grows; what somebody does to it in MLflow is noticed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.errors import ConfigurationError, HistoryMovedError
from nighttrain.providers.registry.history.entries import Entry, Kind, Move, text
from nighttrain.providers.registry.history.store import History
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.names import MAX_RUN_TAG
from nighttrain.providers.tracking.run_store import RunStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.registry.models import ModelRegistry

from helpers.mlflow_server import unique


def entry(version: str, **given: object) -> Entry:
    moves = (Move(version, alias="champion"),)
    return Entry(number=0, kind=Kind.OUTSIDE, model="", version=version, moves=moves, **given)  # type: ignore[arg-type]


async def grown(registry: ModelRegistry, entries: int) -> History:
    history = History(RunStore(registry.client), unique("model"))
    for number in range(1, entries + 1):
        await history.append(await history.read(), entry(str(number)))
    return history


def runs_of(server: MLflowServer, history: History) -> dict[int, str]:
    name = history.experiment_name
    found = server.call("GET", "experiments/get-by-name", experiment_name=name)["experiment"]
    runs = server.call("POST", "runs/search", experiment_ids=[found["experiment_id"]])["runs"]
    tags = {run["info"]["run_id"]: {t["key"]: t["value"] for t in run["data"]["tags"]} for run in runs}
    return {int(each["nighttrain.history.number"]): run_id for run_id, each in tags.items()}


@pytest.mark.mlflow
async def test_of_many_that_append_at_once_one_does_and_nothing_is_left_of_the_others(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    history = await grown(registry, 1)
    ledger = await history.read()
    answers = await asyncio.gather(
        *(history.append(ledger, entry(str(number))) for number in range(2, 12)), return_exceptions=True
    )
    written = [each for each in answers if isinstance(each, Entry)]
    assert len(written) == 1
    assert all(isinstance(each, HistoryMovedError) for each in answers if each is not written[0])
    read = await history.read()
    assert [each.version for each in read.entries] == ["1", written[0].version]
    assert read.faults == ()
    assert sorted(runs_of(mlflow_server, history)) == [1, 2]


@pytest.mark.mlflow
async def test_an_entry_that_was_changed_deleted_or_emptied_from_the_trash_is_noticed(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    history = await grown(registry, 4)
    runs = runs_of(mlflow_server, history)
    whole = await history.read()
    assert (len(whole.entries), whole.faults) == (4, ())
    edited = {**json.loads(whole.entries[0].to_json()), "actor": "nobody"}
    tag = {"key": "nighttrain.history.entry", "value": json.dumps(edited)}
    mlflow_server.call("POST", "runs/set-tag", run_id=runs[1], **tag)
    mlflow_server.call("POST", "runs/delete", run_id=runs[3])
    read = await history.read()
    assert len(read.entries) == 4
    assert read.faults == (
        "entry 1 is not what entry 2 says it was",
        f"entry 3 is in MLflow's trash: mlflow runs restore --run-id {runs[3]}",
    )
    mlflow_server.remove_for_good(runs[3])
    read = await history.read()
    assert [each.number for each in read.entries] == [1, 2, 4]
    assert "entry 3 is gone" in read.faults
    # It goes on all the same.
    assert (await history.append(read, entry("5"))).number == 5
    mlflow_server.call("POST", "runs/set-tag", run_id=runs[2], key=tag["key"], value="no entry")
    assert "entry 2 cannot be read" in (await history.read()).faults


class Listing(MLflowClient):
    """Something happens right after it has listed runs."""

    then: Callable[[], Awaitable[object]] | None = None

    async def search(self, kind: str, asked: Mapping[str, Any], **given: Any) -> list[dict[str, Any]]:
        found = await super().search(kind, asked, **given)
        if self.then is not None:
            then, self.then = self.then, None
            await then()
        return found


@pytest.mark.mlflow
async def test_an_entry_that_is_written_while_the_history_is_read_is_not_taken_for_gone(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    history = await grown(registry, 1)

    async def appended() -> None:
        await history.append(await history.read(), entry("2"))

    async with Listing(TrackingConfig(mlflow_server.uri)) as client:
        client.then = appended
        read = await History(RunStore(client), history.model).read()
    assert ([each.number for each in read.entries], read.faults) == ([1, 2], ())


@pytest.mark.mlflow
async def test_an_edited_last_entry_is_told_at_once_and_still_after_the_next(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    history = await grown(registry, 2)
    last = (await history.read()).entries[-1]
    for version in ("7", "../x", 9):
        moves = [{"version": version, "alias": "champion"}]
        edited = json.dumps({**last.to_dict(), "moves": moves, "at": "\x1b[31m"})
        tag = {"key": "nighttrain.history.entry", "value": edited}
        mlflow_server.call("POST", "runs/set-tag", run_id=runs_of(mlflow_server, history)[2], **tag)
        assert "entry 2 was changed after it was written" in (await history.read()).faults
    await history.append(await history.read(), entry("3"))
    assert (await history.read()).faults


@pytest.mark.mlflow
async def test_a_history_in_the_trash_is_told_with_the_way_to_restore_it(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    history = await grown(registry, 1)
    name = history.experiment_name
    found = mlflow_server.call("GET", "experiments/get-by-name", experiment_name=name)["experiment"]
    mlflow_server.call("POST", "experiments/delete", experiment_id=found["experiment_id"])
    with pytest.raises(
        ConfigurationError, match=f"experiments restore --experiment-id {found['experiment_id']}"
    ):
        await history.read()


@pytest.mark.mlflow
async def test_models_whose_names_are_as_long_as_mlflow_takes_them_have_a_history_each(
    registry: ModelRegistry,
) -> None:
    first = History(RunStore(registry.client), "m" * 200 + "a" + "m" * 55)
    second = History(RunStore(registry.client), "m" * 200 + "b" + "m" * 55)
    await first.append(await first.read(), entry("1"))
    assert (await second.read()).entries == ()
    assert [each.version for each in (await first.read()).entries] == ["1"]


HOSTILE = st.text(max_size=12_000) | st.sampled_from(
    ["'; DROP TABLE runs; --", '`x` = "y"', "| a | b |\n<script>alert(1)</script>", "../../etc", "\0\ud800"]
)


@given(reason=HOSTILE, evidence=HOSTILE, actor=HOSTILE)
def test_whatever_the_texts_hold_an_entry_fits_and_is_read_back(
    reason: str, evidence: str, actor: str
) -> None:
    written = entry("1", reason=text(reason), evidence=text(evidence), actor=text(actor)).fitted()
    stored = written.to_json()
    assert len(stored) <= MAX_RUN_TAG
    stored.encode()  # as every store takes it
    assert Entry.from_dict(json.loads(stored)) == written
    assert Entry.from_dict({**json.loads(stored), "of a later version": 1}) == written
