"""Requests through a route, and warming up, from where requests are to come from."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nighttrain.providers.errors import ClusterUnreachableError
from nighttrain.providers.serving.analysis.sources.asker import Interval
from nighttrain.providers.serving.analysis.sources.asking.sending import CannotTell

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.sources.asker import Asker, CarryOut
    from nighttrain.providers.serving.backends.traffic import Addresses

# A health check that takes longer is no answer; gateways give up after as long.
TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class RouteFromJobs:
    """Asks a route from inside the cluster's network, each time by a Job."""

    carry_out: CarryOut

    async def __call__(self, addresses: Addresses, count: int) -> list[str | None]:
        """Ask so many times, each on a connection of its own.

        :return: the versions that answered, empty where one did not name itself, ``None`` for each failure
        :raises ClusterUnreachableError: no Job could ask, which says nothing about the route
        """
        route = addresses.route
        task = {
            "kind": "route",
            "url": route.url.rstrip("/") + addresses.health_path,
            "headers": dict(route.headers),
            "count": count,
            "timeout": TIMEOUT_SECONDS,
        }
        interval = Interval(urlsplit(route.url).hostname or "route", f"route {uuid.uuid4().hex}")
        try:
            result = await self.carry_out(interval, [{"task": task, "wants": [{"want": "versions"}]}])
        except CannotTell as error:
            raise ClusterUnreachableError(f"the route cannot be asked from the cluster: {error}") from error
        versions: dict[str, int] = result[0][0]["is"]["versions"]
        came: list[str | None] = [version for version, number in versions.items() for _ in range(number)]
        return came + [None] * (count - len(came))


async def warm_up(ask: Asker, endpoint: str, addresses: Addresses, golden: Golden, count: int) -> bool | str:
    """Send golden requests to the candidate until so many are answered; as many may fail on the way.

    What is warmed up may well be slow, or time out, at first.

    :return: True, or why it did not answer them
    :raises ClusterUnreachableError: no Job could ask
    """
    if addresses.candidate is None:
        return "it cannot be reached alone here, beside the route"
    sent = failed = 0
    while sent - failed < count:
        wanted = count - (sent - failed)
        task = {
            "kind": "golden",
            "candidate": {"url": addresses.candidate.url, "headers": dict(addresses.candidate.headers)},
            "stable": None,
            "path": golden.path,
            "timeout": golden.timeout_seconds,
            "first": sent,
            "golden": [{"body": body} for body in golden.requests],
            "asked": [(sent + number) % len(golden.requests) for number in range(wanted)],
        }
        try:
            counted = await ask(Interval(endpoint, f"warm-up {uuid.uuid4().hex}"), task, {"want": "errors"})
        except CannotTell as error:
            raise ClusterUnreachableError(f"the candidate cannot be warmed up: {error}") from error
        sent, failed = sent + counted["requests"], failed + counted["candidate"]
        if failed > count:
            return f"{failed} of {sent} failed, one with: {counted['why']}"
    return True
