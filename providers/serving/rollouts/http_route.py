"""Small requests through a route, from where this process runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httpx

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Addresses

VERSION_HEADER = "x-model-version"

# A health check that takes longer is no answer; gateways give up after as long.
TIMEOUT_SECONDS = 5.0


async def ask_route(addresses: Addresses, count: int) -> list[str | None]:
    """Ask so many times, each on a connection of its own: a kept one stays with one version's pod.

    :return: the versions that answered, empty where one did not name itself, ``None`` for each failure
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
        return list(await asyncio.gather(*(_ask(client, addresses) for _ in range(count))))


async def _ask(client: httpx.AsyncClient, addresses: Addresses) -> str | None:
    route = addresses.route
    try:
        answer = await client.get(
            f"{route.url.rstrip('/')}{addresses.health_path}", headers=dict(route.headers)
        )
    except httpx.HTTPError:
        return None
    return None if answer.is_server_error else unquote(answer.headers.get(VERSION_HEADER, ""))
