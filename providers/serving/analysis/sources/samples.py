"""From what was asked to samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.redaction import redact
from nighttrain.providers.serving.analysis.sources.asker import Interval
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.values import Counts, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.backends.traffic import Address

# As many as a metric needs before anything is said of it: each interval can decide.
REQUESTS_PER_INTERVAL = 50

# An engine looks at nothing else while they are sent.
MOST_REQUESTS = 1000

# Of a sample's error: the state of a rollout holds it, and its page shows it.
ERROR_LENGTH = 600


def interval_of(window: Window) -> Interval:
    """The interval, as any process that measures it names it: by its beginning."""
    begun = f"since {window.at - window.seconds:.3f}" if window.seconds else f"at {window.at:.3f}"
    return Interval(window.endpoint, f"{window.candidate} {begun}")


def unmeasured(metric: Metric, window: Window, why: object) -> Sample:
    """A sample that says why there is none."""
    return Sample(
        metric=metric.name, at=window.at, seconds=window.seconds, error=clip(redact(str(why)), ERROR_LENGTH)
    )


def sample(metric: Metric, window: Window, **measured: Any) -> Sample:
    """A sample of this metric and interval."""
    return Sample(metric=metric.name, at=window.at, seconds=window.seconds, **measured)


def paired(metric: Metric, window: Window, counted: Mapping[str, Any]) -> Sample:
    """A sample of requests that both versions got, or the candidate alone."""
    requests, stable = counted["requests"], counted.get("stable")
    candidate = Counts(requests=requests, bad=counted["candidate"])
    if stable is None:
        return sample(metric, window, candidate=candidate)
    return sample(
        metric,
        window,
        candidate=candidate,
        stable=Counts(requests=requests, bad=stable),
        paired=True,
        both=counted["both"],
    )


def golden_task(metric: Metric, window: Window, memory: Memory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The golden requests of this interval, and the memory that makes the next ones follow them.

    :raises CannotTell: there are none, or the candidate has no address of its own
    """
    golden, address = window.golden, window.addresses.candidate
    if golden is None:
        raise CannotTell("there are no golden requests to send: give strategy.golden")
    if address is None:
        raise CannotTell("the candidate cannot be reached alone here, beside the route")
    first = int(memory.get("next", 0))
    count = int(metric.source.get("requests_per_interval", REQUESTS_PER_INTERVAL))
    stable = window.addresses.stable if window.stable is not None else None
    task = {
        "kind": "golden",
        "candidate": _plain(address),
        "stable": _plain(stable) if stable else None,
        "path": golden.path,
        "timeout": golden.timeout_seconds,
        "sending": window.interval_seconds,
        "first": first,
        "golden": [_request(golden, number) for number in range(len(golden.requests))],
        "asked": [(first + number) % len(golden.requests) for number in range(count)],
    }
    return task, {**memory, "next": (first + count) % (2 * len(golden.requests))}


def _request(golden: Golden, number: int) -> dict[str, Any]:
    expected = golden.expected[number] if golden.expected else None
    return {"body": golden.requests[number], "expected": expected}


def _plain(address: Address) -> dict[str, Any]:
    return {"url": address.url, "headers": dict(address.headers)}


def check_requests(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what golden requests cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    if golden is None:
        raise ConfigurationError(
            f"{where}.type", metric.source["type"], "it sends golden requests: give strategy.golden"
        )
    count = metric.source.get("requests_per_interval", REQUESTS_PER_INTERVAL)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_REQUESTS:
        raise ConfigurationError(
            f"{where}.requests_per_interval", count, f"use a whole number from 1 to {MOST_REQUESTS}"
        )
