"""The scoring server as a pod runs it: the manifest's own command, in a process of this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from nighttrain.providers.serving.backends.manifests import build_deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.serving.spec import ServingSpec

FAKE_IMAGE = Path(__file__).parents[1] / "providers" / "serving" / "fake_image"


class Server:
    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url


@asynccontextmanager
async def launched(spec: ServingSpec, address: str = "127.0.0.1") -> AsyncIterator[Server]:
    """The manifest's own command, with what the kubelet would give it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    container = build_deployment(spec)["spec"]["template"]["spec"]["containers"][0]
    arguments = [part if not part.startswith("--port=") else f"--port={port}" for part in container["args"]]
    _, option, program = container["command"]
    env = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        option,
        program.replace("$$(", "$("),
        *arguments,
        env=os.environ | env | {"POD_IP": address, "PYTHONPATH": str(FAKE_IMAGE)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Server(process, f"http://{f'[{address}]' if ':' in address else address}:{port}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def ready(client: httpx.AsyncClient, server: Server) -> None:
    while server.process.returncode is None:
        try:
            await client.get(f"{server.url}/ping")
        except httpx.ConnectError:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError((await server.process.communicate())[1])
