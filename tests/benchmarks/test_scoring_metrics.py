"""What counting requests costs the scoring server.

Measured: the server's processor time for a request, and the time until the answer as its client sees it, with
and without the layer that counts; around an application that answers at once, and around MLflow's own with a
model that adds up one row. A scrape of ``/metrics`` by itself.
How: uvicorn in a process of its own, one connection, one request after the other. The sides take turns.
Repetitions: one unmeasured turn, then 5 turns of 2,000 requests (MLflow's: 500); medians.
Command: ``./run bench -k scoring_metrics``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from helpers.mlflow_server import free_port
from helpers.polling import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(600)]

TURNS = 5
REQUESTS = {"at once": 2_000, "MLflow's": 500}
PROGRAM = """
import socket, sys
from types import SimpleNamespace
from nighttrain.providers.serving.scoring_server import Connections, Counts, Metrics, serve

application, counting, port, folder = sys.argv[1:]
if application == "at once":
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
else:
    from mlflow.pyfunc import scoring_server
    class Model:
        metadata = SimpleNamespace(get_input_schema=lambda: None)
        def predict(self, frame, params=None):
            return frame.sum(axis=1)
    app = scoring_server.init(Model())
if counting == "counted":
    app = Metrics(app, Counts(folder), "delay", "4")
serve(Connections(app, {"x-model-version": "4"}, 1e9), [socket.create_server(("127.0.0.1", int(port)))], 0)
"""
QUESTION = {"dataframe_split": {"columns": list("abcdefghij"), "data": [[1.0] * 10]}}


@contextmanager
def server(application: str, counting: str, folder: Path) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, application, counting, str(port), str(folder)]
    with subprocess.Popen(command) as process, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def is_up() -> bool:
            try:
                return client.post("/invocations", json=QUESTION).is_success
            except httpx.ConnectError:
                return False

        try:
            until(is_up, seconds=120)
            yield psutil.Process(process.pid), client
        finally:
            process.terminate()


def turn(process: psutil.Process, ask: Callable[[], httpx.Response], times: int) -> tuple[float, float]:
    """Microseconds of the server's processor and of the client's waiting, for one request."""

    def used() -> float:
        spent = process.cpu_times()
        return spent.user + spent.system

    before, began = used(), time.perf_counter()
    for _ in range(times):
        assert ask().is_success
    return 1e6 * (used() - before) / times, 1e6 * (time.perf_counter() - began) / times


def test_what_counting_costs(show: Callable[..., None], tmp_path: Path) -> None:
    with ExitStack() as stack:
        sides = {
            (application, counting): stack.enter_context(server(application, counting, tmp_path))
            for application in REQUESTS
            for counting in ("not counted", "counted")
        }
        seen: dict[tuple[str, str], list[tuple[float, float]]] = {side: [] for side in sides}
        seen["a scrape", ""] = []
        for _ in range(TURNS + 1):
            for side, (process, client) in sides.items():
                ask = partial(client.post, "/invocations", json=QUESTION)
                seen[side].append(turn(process, ask, REQUESTS[side[0]]))
            process, client = sides["at once", "counted"]
            seen["a scrape", ""].append(turn(process, partial(client.get, "/metrics"), 500))
    rows = []
    for side, turns in seen.items():
        processor, waiting = zip(*turns[1:], strict=True)
        spread = f"{min(processor):.0f} - {max(processor):.0f}"
        rows.append((" ".join(side), f"{median(processor):.0f}", spread, f"{median(waiting):.0f}"))
    show("A request", ("", "server's µs (median)", "range", "client's µs"), rows)
