"""Orders, and the program that carries one out in a Job."""

from __future__ import annotations

import importlib
import json
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nighttrain.providers.serving.analysis.sources.asking import golden_requests, pages, queries
from nighttrain.providers.serving.analysis.sources.asking.sending import (
    Answer,
    CannotTell,
    Json,
    beside,
    send,
)

# What a container's termination message holds.
MAX_MESSAGE = 4096


def ask_route(task: Json) -> list[Answer]:
    """So many small requests through a route, at once, each on a connection of its own."""
    answers: list[Answer] = []

    def one() -> None:
        answers.append(send(task["url"], timeout=float(task["timeout"]), headers=task["headers"]))

    beside(*[one] * int(task["count"]), seconds=float(task["timeout"]) + 1)
    return answers


def count_versions(answers: list[Answer], want: Json) -> Json:
    """How often each version answered; the empty one did not name itself."""
    good = [answer.version for answer in answers if not answer.failure and answer.status < 500]
    return {"versions": dict(Counter(good))}


def check(task: Json) -> Any:
    """Call ``package.module:function`` with the interval, as a mapping, and with the user's arguments."""
    module, _, name = task["path"].partition(":")
    try:
        return getattr(importlib.import_module(module), name)(task["interval"], **task["arguments"])
    except Exception as error:
        traceback.print_exc()
        raise CannotTell(f"{task['path']}: {type(error).__name__}: {error!s:.400}") from error


def as_it_is(value: Any, want: Json) -> Any:
    """All of it."""
    return value


TASKS: dict[str, Callable[[Json], Any]] = {
    "golden": golden_requests.ask_both,
    "scrape": pages.scrape,
    "route": ask_route,
    "query": queries.query,
    "check": check,
}
WANTS: dict[str, Callable[[Any, Json], Any]] = {
    "errors": golden_requests.count_errors,
    "wrong": golden_requests.count_wrong,
    "slow": golden_requests.count_slow,
    "disagreement": golden_requests.count_different,
    "bins": golden_requests.count_bins,
    "requests": pages.count_requests,
    "over": pages.count_over,
    "versions": count_versions,
    "all": as_it_is,
}


def perform(order: Sequence[Json]) -> list[list[Json]]:
    """Carry an order out: one row for each task, in it one result for each want.

    :param order: ``[{"task": {"kind": ...}, "wants": [{"want": ...}]}]``
    :return: each result is ``{"is": value}`` or ``{"error": text}``
    """
    return [_performed(part["task"], part["wants"]) for part in order]


def _performed(task: Json, wants: Sequence[Json]) -> list[Json]:
    try:
        came = TASKS[task["kind"]](task)
    except CannotTell as error:
        return [{"error": str(error)} for _ in wants]
    return [_wanted(came, want) for want in wants]


def _wanted(came: Any, want: Json) -> Json:
    try:
        return {"is": WANTS[want["want"]](came, want)}
    except CannotTell as error:
        return {"error": str(error)}


def main(order: str, message: str) -> int:
    """Carry out the order in one file, and leave the result in another, the termination message."""
    result = perform(json.loads(Path(order).read_text("utf-8")))
    text = json.dumps(result, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_MESSAGE:
        print(f"the result has {len(text)} characters, {MAX_MESSAGE} fit into a Job's message")  # noqa: T201
        return 1
    Path(message).write_text(text, "utf-8")
    return 0
