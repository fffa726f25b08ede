"""Metrics that a training logs show as lines, whatever the number of trainings, from one question."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from helpers.polling import until_async
from nighttrain.providers.tracking.client import TrackingConfig
from nighttrain.providers.tracking.progress import metrics_line, saying_progress

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from helpers.scripted_http import Scripted


async def test_new_values_of_a_running_training_become_lines_once(mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    run, other = mlflow_server.run(experiment, loss=0.5), mlflow_server.run(experiment)
    lines: asyncio.Queue[str] = asyncio.Queue()
    nothing: list[str] = []
    config = TrackingConfig(uri=mlflow_server.uri)
    async with (
        asyncio.timeout(30),
        saying_progress(config, experiment, run, lines.put_nowait, every_seconds=0.05),
        saying_progress(config, experiment, other, nothing.append, every_seconds=0.05),
    ):
        assert await lines.get() == "step 0: loss=0.5"
        mlflow_server.call("POST", "runs/log-metric", run_id=run, key="loss", value=0.25, timestamp=1, step=7)
        assert await lines.get() == "step 7: loss=0.25"
    assert lines.empty()
    assert nothing == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("progress")]


async def test_an_outage_of_mlflow_says_nothing_and_fails_nothing(scripted: Scripted) -> None:
    lines: list[str] = []
    scripted.answers.append(None)
    config = TrackingConfig(uri=scripted.uri, retry_seconds=0)
    async with saying_progress(config, "1", "0" * 32, lines.append, every_seconds=0.01):
        await until_async(lambda: len(scripted.requests) >= 3)
    assert lines == []


def test_a_line_names_the_newest_step_and_at_most_eight_metrics() -> None:
    assert metrics_line({"rmse": (3, 1.5), "loss": (4, 0.125)}) == "step 4: loss=0.125, rmse=1.5"
    many = {f"m{number}": (1, 1.0) for number in range(10)}
    assert metrics_line(many).endswith("m7=1 and 2 more")
