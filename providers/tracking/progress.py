"""Lines for a person on what trainings log to MLflow while they run; one question serves all of them.

Best effort: whatever MLflow answers, or does not, decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import TrackingError, TrackingMisconfiguredError
from nighttrain.providers.measured import SYSTEM_METRICS, Measured, NoNumber, read
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from nighttrain.providers.tracking.config import TrackingConfig

_log = logging.getLogger(__name__)

# Often enough to see that a training learns, seldom enough that a thousand of them cost MLflow ten small
# searches in half a minute.
PROGRESS_SECONDS = 30.0
# MLflow writes every id into one SQL statement; databases take some hundred values in one.
RUNS_IN_ONE_SEARCH = 100
# What fits into one line of a log page.
METRICS_IN_ONE_LINE = 8

Latest = dict[str, tuple[int, Measured]]


@dataclass(eq=False)
class _Follower:
    experiment_id: str
    run_id: str
    say: Callable[[str], None]
    said: Latest = field(default_factory=dict)
    told_mistake: bool = False

    def tell(self, latest: Latest) -> None:
        news = {name: value for name, value in latest.items() if self.said.get(name) != value}
        self.said.update(news)
        if news:
            self.say(metrics_line(news))


@asynccontextmanager
async def saying_progress(
    config: TrackingConfig,
    experiment_id: str,
    run_id: str,
    say: Callable[[str], None],
    *,
    every_seconds: float = PROGRESS_SECONDS,
) -> AsyncIterator[None]:
    """While the context lasts, pass a line to ``say`` whenever the run has new values of its metrics.

    All followers of one MLflow server in the running loop share one task and its questions.

    :param every_seconds: how often MLflow is asked; the first follower's counts
    """
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = feeds.get(config)
    if feed is None:
        feed = feeds[config] = _Feed(config, every_seconds)
    follower = _Follower(experiment_id, run_id, say)
    feed.followers.add(follower)
    try:
        yield
    finally:
        feed.followers.discard(follower)
        if not feed.followers:
            feeds.pop(config, None)
            await feed.stop()


def metrics_line(latest: Mapping[str, tuple[int, Measured]]) -> str:
    """``step 12: loss=0.31, rmse=4.2``; of many metrics the first few by name."""
    shown = sorted(latest.items())[:METRICS_IN_ONE_LINE]
    step = max(step for step, _ in latest.values())
    more = len(latest) - len(shown)
    values = ", ".join(f"{name}={_shown(value)}" for name, (_, value) in shown)
    return f"step {step}: {values}{f' and {more} more' if more else ''}"


class _Feed:
    def __init__(self, config: TrackingConfig, every_seconds: float) -> None:
        self.followers: set[_Follower] = set()
        self._config = config
        self._every_seconds = every_seconds
        self._task = asyncio.create_task(self._run(), name=f"progress from {config.uri}")

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        async with MLflowClient(self._config) as client:
            while True:
                await asyncio.sleep(self._every_seconds)
                try:
                    await self._ask(client)
                except TrackingMisconfiguredError as error:
                    self._tell_mistake(str(error))
                except TrackingError as error:
                    _log.debug("no progress from MLflow: %s", error)

    def _tell_mistake(self, error: str) -> None:
        """Say once that the training goes on and that its progress cannot be shown."""
        for follower in self.followers:
            if not follower.told_mistake:
                follower.told_mistake = True
                follower.say(f"no progress can be shown: {error}")

    async def _ask(self, client: MLflowClient) -> None:
        for part in _parts(list(self.followers)):
            by_run = {follower.run_id: follower for follower in part}
            ids = ", ".join(f"{quoted(run_id)}" for run_id in sorted(by_run))
            answer = await client.post(
                "runs/search",
                {
                    "experiment_ids": sorted({follower.experiment_id for follower in part}),
                    "filter": f"attributes.run_id IN ({ids})",
                    "max_results": len(part),
                },
            )
            for run in answer.get("runs", ()):
                follower = by_run.get(run["info"]["run_id"])
                if follower in self.followers and follower is not None:
                    follower.tell(_latest(run))


def _latest(run: Mapping[str, Any]) -> Latest:
    latest = {
        metric["key"]: (int(metric.get("step", 0)), read(metric.get("value")))
        for metric in run.get("data", {}).get("metrics", ())
        if not metric["key"].startswith(SYSTEM_METRICS)  # a page of its own shows them better
    }
    return {name: entry for name, entry in latest.items() if entry[1] is not NoNumber.MISSING}


def _shown(value: Measured) -> str:
    return value.shown if isinstance(value, NoNumber) else f"{value:.6g}"


def _parts(followers: list[_Follower]) -> Iterable[list[_Follower]]:
    for start in range(0, len(followers), RUNS_IN_ONE_SEARCH):
        yield followers[start : start + RUNS_IN_ONE_SEARCH]


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[TrackingConfig, _Feed]] = WeakKeyDictionary()
