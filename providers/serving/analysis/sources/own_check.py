"""A check of the user's own, run in a Job: it is never imported where rollouts are driven."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.asker import RUNNING_SECONDS
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell
from nighttrain.providers.serving.analysis.sources.samples import interval_of, sample, unmeasured
from nighttrain.providers.serving.analysis.values import Counts

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.sources.choice import Ways
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.backends.traffic import Address

KINDS = frozenset({Kind.ERRORS, Kind.LATENCY, Kind.DISAGREEMENT, Kind.WRONG, Kind.NUMBER})
PARAMETERS = frozenset({"path", "image", "arguments", "secrets", "timeout_seconds"})

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SECRET = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


class OwnCheck:
    """Runs ``package.module:function`` of the user's image with the interval, and takes what it returns.

    That is ``{"value": 0.93}`` for a number, or ``{"candidate": {"requests": 200, "bad": 3}, "stable":
    {...}}`` for what is counted; ``stable`` may be left out. A value of ``None`` is no data.
    """

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """Run it, and wait for its end."""
        if not window.seconds and metric.kind is not Kind.NUMBER:
            return sample(metric, window), memory
        source = metric.source
        task = {
            "kind": "check",
            "path": source["path"],
            "interval": _interval(window),
            "arguments": dict(source.get("arguments", {})),
        }
        try:
            ask = self._ways.job_asker(
                image=source.get("image"),
                secrets=tuple(source.get("secrets", ())),
                running_seconds=source.get("timeout_seconds", RUNNING_SECONDS),
            )
            returned = await ask(interval_of(window), task, {"want": "all"})
            return sample(metric, window, **_read(metric, source["path"], returned)), memory
        except (CannotTell, ConfigurationError) as error:
            return unmeasured(metric, window, error), memory


def _interval(window: Window) -> dict[str, Any]:
    addresses = window.addresses
    return {
        "endpoint": window.endpoint,
        "namespace": window.namespace,
        "model_name": window.model_name,
        "candidate": window.candidate,
        "stable": window.stable,
        "at": window.at,
        "seconds": window.seconds,
        "candidate_address": _address(addresses.candidate),
        "stable_address": _address(addresses.stable),
        "route_address": _address(addresses.route),
    }


def _address(address: Address | None) -> dict[str, Any] | None:
    return {"url": address.url, "headers": dict(address.headers)} if address else None


def _read(metric: Metric, path: str, returned: Any) -> dict[str, Any]:
    if metric.kind is Kind.NUMBER:
        if not isinstance(returned, Mapping) or "value" not in returned:
            raise CannotTell(f'{path} returned {returned!s:.200}, and not {{"value": number}}')
        return {"value": _number(path, returned["value"])}
    if not isinstance(returned, Mapping) or "candidate" not in returned:
        raise CannotTell(f'{path} returned {returned!s:.200}, and not {{"candidate": {{...}}}}')
    stable = returned.get("stable")
    counts = {"candidate": _counts(path, returned["candidate"])}
    return counts if stable is None else {**counts, "stable": _counts(path, stable)}


def _number(path: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CannotTell(f"{path} returned the value {value!s:.200}, which is no number")
    return float(value) if math.isfinite(value) else None


def _counts(path: str, given: Any) -> Counts:
    numbers = [given.get(name) if isinstance(given, Mapping) else None for name in ("requests", "bad")]
    found = [each for each in numbers if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
    if len(found) < len(numbers):
        raise CannotTell(f"{path} returned {given!s:.200}, and not whole numbers of requests and bad")
    return Counts(requests=found[0], bad=found[1])


def check(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse what this source cannot measure.

    :raises ConfigurationError: names the field, the value and the fix
    """
    source = metric.source
    path = source.get("path")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ConfigurationError(f"{where}.path", path, "write package.module:function")
    image = source.get("image")
    if image is not None and (not isinstance(image, str) or not image or re.search(r"\s", image)):
        raise ConfigurationError(f"{where}.image", image, "name a container image that has Python and it")
    arguments = source.get("arguments", {})
    try:
        plain = isinstance(arguments, Mapping) and all(isinstance(name, str) for name in arguments)
        json.dumps(dict(arguments) if plain else None, allow_nan=False)
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise ConfigurationError(f"{where}.arguments", arguments, "give JSON values by their names")
    secrets = source.get("secrets", [])
    listed = isinstance(secrets, (list, tuple))
    if not listed or not all(isinstance(each, str) and _SECRET.fullmatch(each) for each in secrets):
        raise ConfigurationError(f"{where}.secrets", None, "give a list of names of Secrets")
    seconds = source.get("timeout_seconds", RUNNING_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= 3600:
        raise ConfigurationError(f"{where}.timeout_seconds", seconds, "give whole seconds, 3600 at most")
