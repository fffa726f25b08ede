"""Resuming a log: whatever is cut where, each line arrives once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from helpers.scripted_api import Answer, ScriptedServer
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.logs.log_lines import LogCursor, ProgressBars
from nighttrain.providers.kubernetes.logs.stream_limits import StreamLimits
from nighttrain.providers.kubernetes.values.submitted_workload import Workload


def stamp(tick: int) -> str:
    """A time stamp of a log with four ticks to a second."""
    return f"2026-11-22T08:{tick // 240:02d}:{tick // 4 % 60:02d}.{tick % 4 * 25:02d}0000000Z"


@given(
    steps=st.lists(st.integers(0, 3), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_each_line_arrives_once_wherever_the_stream_is_cut(steps: list[int], cuts: list[int]) -> None:
    tick, log = 0, []
    for number, step in enumerate(steps):
        tick += step
        log.append((stamp(tick), f"{stamp(tick)} line {number}"))
    cursor, got = LogCursor(), []
    for cut in [*cuts, len(log)]:
        since = cursor.since or ""
        cursor.resume()
        # The server looks at whole seconds, so it begins with the first line of the last second.
        served = [line for time, line in log if time[:19] >= since[:19]]
        fresh = [cursor.fresh(line) for line in served[:cut]]
        got += [line for line in fresh if line is not None]
    assert got == [f"line {number}" for number in range(len(log))]


def test_stamps_of_any_precision_are_compared_and_empty_lines_kept() -> None:
    cursor = LogCursor()
    lines = ["2026-11-22T08:00:00Z a", "2026-11-22T08:00:00.5Z b", "2026-11-22T08:00:00.50Z c"]
    lines += ["2026-11-22T08:00:00.51Z ", "no stamp", "2026-11-22T08:00:00.2Z old"]
    assert [cursor.fresh(line) for line in lines] == ["a", "b", "c", "", "no stamp", None]


def listed(kind: str, *objects: dict[str, Any]) -> Answer:
    return Answer(200, {"kind": kind, "metadata": {"resourceVersion": "1"}, "items": list(objects)})


class LogServer(ScriptedServer):
    """A finished Job with one pod; the scripted answers are those to requests for its log."""

    async def _handle(self, request: Any) -> Any:
        if request.path.endswith("/log"):
            return await super()._handle(request)
        keep, self.answers = self.answers, [self._state(request)]
        try:
            return await super()._handle(request)
        finally:
            self.answers = keep

    def _state(self, request: Any) -> Answer:
        if "watch" in request.query:
            return Answer(lines=[json.dumps({"type": "BOOKMARK", "object": {}}) + "\n"])
        meta = {"name": "j", "uid": "u"}
        if request.path.endswith("/jobs"):
            done = {"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1}
            return listed("JobList", {"metadata": meta, "status": done})
        state = {"terminated": {"exitCode": 0}}
        status = {"phase": "Succeeded", "containerStatuses": [{"name": "main", "state": state}]}
        owner = {"kind": "Job", "uid": "u", "controller": True}
        meta = {"name": "p", "uid": "pu", "ownerReferences": [owner]}
        return listed("PodList", {"metadata": meta, "status": status})


async def test_a_log_that_breaks_is_resumed_and_its_lines_come_once() -> None:
    first = [f"{stamp(0)} a\n", f"{stamp(5)} b\n"]
    script = [Answer(lines=first, cut=True), Answer(lines=[first[1], f"{stamp(6)} c\n"])]
    got: list[str] = []
    with stamina.set_testing(True):
        async with LogServer(*script) as server:
            config = ClusterConfig(kubeconfig_content=server.kubeconfig())
            async with await ClusterClient.open(config) as client, asyncio.timeout(20):
                await logs.follow(client, Workload("n", "j", "u", 1), got.append, sleep=no_time)
            asked = [request.query.get("sinceTime") for request in server.requests if "/log" in request.path]
    assert got == ["a", "b", "c"]
    assert asked == [None, "2026-11-22T08:00:01Z"]


async def test_what_the_sink_raises_is_the_callers() -> None:
    def full(line: str) -> None:
        raise OSError("disk full")

    async with LogServer(Answer(lines=[f"{stamp(0)} a\n"])) as server:
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        async with await ClusterClient.open(config) as client, asyncio.timeout(20):
            with pytest.raises(OSError, match="disk full"):
                await logs.follow(client, Workload("n", "j", "u", 1), full)


async def no_time(seconds: float) -> None:
    await asyncio.sleep(0)


def test_a_progress_bar_shows_as_the_last_state_of_each_burst() -> None:
    got: list[str] = []
    bars = ProgressBars(got.append)
    bars.line("\r10%\r20%\r30%", 0.0)
    bars.line("\r40%\r50%", 0.5)  # sooner than a person reads
    bars.line("\r60%\r70%\r", 1.5)
    bars.line("\r80%\r90%", 1.6)
    bars.line("done\r", 1.7)
    assert got == ["30%", "70%", "90%", "done"]


async def test_more_readers_than_streams_take_turns_and_the_last_lines_come_first() -> None:
    streams = StreamLimits(limit=2, slice_seconds=0.05)
    turns: list[str] = []

    async def reader(name: str, *, urgent: bool = False) -> None:
        woken = asyncio.Event()
        with streams.ticket(woken.set) as ticket:
            if urgent:
                ticket.hurry()
            await woken.wait()
            turns.append(name)
            assert streams.open <= 2
            try:
                async with ticket.slice():
                    await asyncio.Event().wait()
            except TimeoutError:
                return

    async with asyncio.timeout(20):
        tasks = [asyncio.create_task(reader(name)) for name in "abcd"]
        await asyncio.sleep(0)
        late = asyncio.create_task(reader("z", urgent=True))
        while len(turns) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for task in [*tasks, late]:
            task.cancel()
        await asyncio.gather(*tasks, late, return_exceptions=True)
    assert turns == ["a", "b", "z", "c", "d"]
    assert streams.open == 0


async def test_logs_leave_most_of_the_event_loop_to_others() -> None:
    streams, loop = StreamLimits(), asyncio.get_running_loop()
    ticks = 0

    async def chatty() -> None:
        for _ in range(10):
            began = loop.time() - 0.01  # a hundredth of a second of work
            await streams.breathe(began)

    async def other() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    beside = asyncio.create_task(other())
    await asyncio.gather(chatty(), chatty())
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    assert ticks > 20
