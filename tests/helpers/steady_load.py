"""Requests at a constant rate from a process of its own, whoever answers: an open loop, as clients are.

``python -m helpers.steady_load URL HOST RATE`` sends until its input is closed, then prints one line of JSON
for each request: when it was sent, how long it took, which version answered with which status and what.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from subprocess import PIPE, Popen
from typing import Any
from urllib.parse import urlsplit

# As long as a client of a model waits; what takes longer hangs.
TIMEOUT_SECONDS = 3.0


async def ask(host: str, port: int, name: str) -> tuple[str, int, str]:
    """One request on a connection of its own: who answered, with which status, and what."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        body = b"0.001"
        head = f"POST /invocations HTTP/1.1\r\nHost: {name}\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body)
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    top, _, rest = answer.partition("\r\n\r\n")
    lines = top.split("\r\n")
    version = next(
        (line.partition(":")[2].strip() for line in lines if line.lower().startswith("x-model-version:")), ""
    )
    status = int(lines[0].split(" ")[1]) if lines[0] else 0
    return version, status, _unchunked(rest) if "chunked" in top.lower() else rest


def _unchunked(text: str) -> str:
    found = ""
    while text:
        size, _, text = text.partition("\r\n")
        length = int(size or "0", 16)
        found, text = found + text[:length], text[length + 2 :]
    return found


async def send(url: str, name: str, rate: float) -> None:
    parts = urlsplit(url)
    sent: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    closed = loop.run_in_executor(None, sys.stdin.read)

    async def one() -> None:
        record: dict[str, Any] = {"at": time.time(), "version": "", "status": 0, "body": ""}
        sent.append(record)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                record["version"], record["status"], record["body"] = await ask(
                    str(parts.hostname), parts.port or 80, name
                )
        except (OSError, TimeoutError, ValueError, IndexError) as error:
            record["body"] = type(error).__name__
        record["seconds"] = time.time() - record["at"]

    tasks: set[asyncio.Task[None]] = set()
    start, number = loop.time(), 0
    while not closed.done():
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
    await asyncio.gather(*tasks)
    for record in sent:
        print(json.dumps(record))


@dataclass
class Sent:
    """What the clients saw."""

    requests: list[dict[str, Any]] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[dict[str, Any]]:
        return [each for each in self.requests if start <= each["at"] < end]


@contextmanager
def steady_load(url: str, host: str, rate: float) -> Iterator[Sent]:
    """Send for as long as the ``with`` lasts; what came back is there afterwards."""
    command = [sys.executable, "-m", "helpers.steady_load", url, host, str(rate)]
    found = Sent()
    process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=str(__file__).rsplit("/helpers", 1)[0])
    try:
        yield found
    finally:
        out, _ = process.communicate("")
        found.requests += [json.loads(line) for line in out.splitlines()]


if __name__ == "__main__":
    asyncio.run(send(sys.argv[1], sys.argv[2], float(sys.argv[3])))
