"""Golden requests to both versions, and what their answers count for."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from nighttrain.providers.serving.analysis.sources.asking.predictions import (
    alike,
    bins_of,
    into_bins,
    prediction_of,
    values_of,
)
from nighttrain.providers.serving.analysis.sources.asking.sending import Answer, Json, send

# Our own scoring server does not count these among its clients' requests.
GOLDEN_HEADER = "x-nighttrain-golden"

# Golden requests go one after the other, so that a version with few pods is not found to be slow. One that
# takes longer than this is not waited for any more; the next is sent beside it.
PATIENCE_SECONDS = 0.5

# No golden request is sent after so long, or after the analysis' interval if that is shorter: the rollout
# looks at nothing else meanwhile, and what other metrics have found by then waits.
SENDING_SECONDS = 20.0


class Pair(NamedTuple):
    """What both versions answered to one golden request.

    :param stable: ``None`` where there is no stable version
    """

    expected: Any
    candidate: Answer
    stable: Answer | None


def ask_both(task: Json) -> list[Pair]:
    """Send the golden requests to candidate and stable version, now one first and now the other."""
    timeout = float(task["timeout"])
    found: dict[int, Pair] = {}

    def pair(number: int, asked: Json) -> None:
        body = json.dumps(asked["body"]).encode()
        sides = [side for side in ("candidate", "stable") if task[side]]
        answers: dict[str, Answer] = {}
        for side in sides if (number + int(task["first"])) % 2 else reversed(sides):
            address = task[side]
            headers = {"content-type": "application/json", GOLDEN_HEADER: "1", **address["headers"]}
            url = address["url"].rstrip("/") + task["path"]
            answers[side] = send(url, timeout=timeout, headers=headers, body=body)
        found[number] = Pair(asked.get("expected"), answers["candidate"], answers.get("stable"))

    threads = []
    until = time.monotonic() + min(float(task.get("sending", SENDING_SECONDS)), SENDING_SECONDS)
    for number, place in enumerate(task["asked"]):
        if time.monotonic() > until:
            break
        threads.append(threading.Thread(target=pair, args=(number, task["golden"][place]), daemon=True))
        threads[-1].start()
        threads[-1].join(PATIENCE_SECONDS)
    latest = time.monotonic() + 2 * timeout + 1
    for thread in threads:
        thread.join(max(0.0, latest - time.monotonic()))
    return [pair for _, pair in sorted(found.items())]


def counted(pairs: Sequence[Pair], is_bad: Callable[[Answer, Pair], bool]) -> Json:
    """How many went wrong at whom.

    :param is_bad: of one of a pair's two answers
    """
    candidate = [is_bad(pair.candidate, pair) for pair in pairs]
    stable = [pair.stable is not None and is_bad(pair.stable, pair) for pair in pairs]
    alone = any(pair.stable is None for pair in pairs)
    why = next((pair.candidate.why for pair in pairs if pair.candidate.why), "")
    return {
        "requests": len(pairs),
        "candidate": sum(candidate),
        "stable": None if alone else sum(stable),
        "both": sum(one and other for one, other in zip(candidate, stable, strict=True)),
        "why": why[:200],
    }


def count_errors(pairs: list[Pair], want: Json) -> Json:
    """Golden requests without a good answer."""
    return counted(pairs, lambda answer, _: bool(answer.why))


def count_wrong(pairs: list[Pair], want: Json) -> Json:
    """Those whose answer is not the expected one, or that were not answered."""
    tolerance = float(want["tolerance"])
    asked = [pair for pair in pairs if pair.expected is not None]
    return counted(asked, lambda answer, pair: not agree(answer, _right(pair.expected), tolerance))


def _right(expected: Any) -> Answer:
    return Answer(200, json.dumps(expected).encode(), 0.0, "", False, "")


def count_slow(pairs: list[Pair], want: Json) -> Json:
    """Those that took longer than the limit, which the stable version's earlier answers give.

    Where there is no limit yet these answers give it. A request that failed in no time is not slow.
    """
    timed = [
        pair
        for pair in pairs
        if pair.stable is not None
        and all(each.late or not each.why for each in (pair.candidate, pair.stable))
    ]
    if want["tau"] is None:
        times = sorted(pair.stable.seconds for pair in timed if pair.stable)
        return {"tau": quantile_of(times, want["quantile"])}
    tau = float(want["tau"])

    def is_slow(answer: Answer, pair: Pair) -> bool:
        limit = tau * (1 + float(want["increase"])) if answer is pair.candidate else tau
        return answer.late or answer.seconds > limit

    return counted(timed, is_slow)


def quantile_of(times: Sequence[float], quantile: float) -> float | None:
    """The quantile of sorted numbers; ``None`` if they are too few to have one above it."""
    if len(times) * (1 - quantile) < 1 - 1e-9:
        return None
    return times[math.ceil(len(times) * quantile - 1e-9) - 1]


def both_answered(pairs: list[Pair]) -> Iterator[tuple[Answer, Answer]]:
    """The answers to requests that both versions answered: only they can be compared."""
    for pair in pairs:
        if pair.stable is not None and not pair.candidate.why and not pair.stable.why:
            yield pair.candidate, pair.stable


def count_different(pairs: list[Pair], want: Json) -> Json:
    """Requests that both versions answered, and differently."""
    tolerance = float(want["tolerance"])
    differ = [not agree(one, other, tolerance) for one, other in both_answered(pairs)]
    return {"requests": len(differ), "candidate": sum(differ)}


def count_bins(pairs: list[Pair], want: Json) -> Json:
    """How many predictions fall into each bin; without bins the stable version's answers give them."""
    answers = list(both_answered(pairs))
    candidate = [value for one, _ in answers for value in values_of(prediction_of(one.body))]
    stable = [value for _, other in answers for value in values_of(prediction_of(other.body))]
    if want["bins"] is None:
        return {"bins": bins_of(stable)}
    return {"candidate": into_bins(candidate, want["bins"]), "stable": into_bins(stable, want["bins"])}


def agree(one: Answer, other: Answer, tolerance: float) -> bool:
    """True if both are good answers with the same predictions."""
    try:
        return not (one.why or other.why) and alike(
            prediction_of(one.body), prediction_of(other.body), tolerance
        )
    except RecursionError:
        return False
