"""Requests through a route after it was changed in a way that its gateway may not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from nighttrain.providers.errors import clip

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.plain.changes import Sleep
    from nighttrain.providers.serving.backends.traffic import Address

# A gateway follows its route within two seconds (recorded); it is asked for more than twice as long.
WATCHED_SECONDS, EVERY_SECONDS = 5.0, 0.25

# One failure may be a pod that just went. A gateway that cannot do what the route says fails every request.
FAILURES_IN_A_ROW = 3

# A health check that takes longer is no answer.
_TIMEOUT_SECONDS = 5.0


async def why_it_fails(address: Address, path: str, sleep: Sleep, *, seconds: float) -> str | None:
    """Ask again and again; why the route does not work any more, or ``None`` if it does.

    :param path: a path that the model server answers cheaply
    :param seconds: how long to go on asking; 0 asks just often enough
    """
    in_a_row = 0
    rounds = max(FAILURES_IN_A_ROW, round(seconds / EVERY_SECONDS))
    # A connection of its own each time: a kept one may go on by the old configuration.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
        for round_ in range(rounds):
            if round_:
                await sleep(EVERY_SECONDS)
            failure = await _ask(client, address, path)
            in_a_row = in_a_row + 1 if failure else 0
            if failure and in_a_row >= FAILURES_IN_A_ROW:
                return failure
    return None


async def _ask(client: httpx.AsyncClient, address: Address, path: str) -> str | None:
    url = f"{address.url}{path}"
    try:
        answer = await client.get(url, headers=dict(address.headers))
    except httpx.HTTPError as error:
        return f"GET {url}: {type(error).__name__}: {clip(str(error), 200)}"
    return f"GET {url} was answered {answer.status_code}" if answer.is_server_error else None
