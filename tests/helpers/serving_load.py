"""Requests to an endpoint for as long as a test lasts, and what came back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx


class Load:
    """Requests over pooled and fresh connections, as fast as they are answered, until told to stop."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url = f"{url}/invocations"
        self.headers = headers or {}
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.enough = asyncio.Event()
        self.changed = asyncio.Condition()

    async def run(self, *, pooled: int, fresh: int) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            shared = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
            for _ in range(pooled):
                tasks.create_task(self._pooled(shared))
            for _ in range(fresh):
                tasks.create_task(self._fresh())

    async def _pooled(self, client: httpx.AsyncClient) -> None:
        while not self.enough.is_set():
            await self._ask(client, {})

    async def _fresh(self) -> None:
        # One client for its TLS context, which costs more than a request; no connection is used twice.
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            while not self.enough.is_set():
                await self._ask(client, {"connection": "close"})

    async def _ask(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        try:
            answer = await client.post(self.url, content=b"0.005", headers=self.headers | headers)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        else:
            self.answers[answer.text] += 1
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)
