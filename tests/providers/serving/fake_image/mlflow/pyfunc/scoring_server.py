"""An ASGI application that answers with the content of the model's file, at once or as the request says.

A number: after so many seconds. ``status 503``: that. ``model raises``: what MLflow answers then.
``application raises``, ``half an answer``, ``dies``: that.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

# Of each request, for good.
LEAK_BYTES = 8 * 2**20
LEAKED = []


def load_model_with_mlflow_config(path):
    text = Path(path, "model.txt").read_text()
    if text == "broken":
        raise ImportError("No module named 'what_the_model_needs'")
    if text.startswith("slow "):
        time.sleep(60)
    return text


def init(model):
    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, text = 200, model
        if scope["path"] == "/invocations" and body:
            Path(os.environ["FAKE_STORE"], "asked").touch()  # noqa: ASYNC240
            status, text = await _asked_for(body.decode(), model)
            if model.startswith("behaves: "):
                status, text = await _behaves(model.removeprefix("behaves: "))
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"text/plain")],
        }
        await send(start)
        # In pieces, as MLflow's middleware sends them.
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        if body != b"half an answer":
            await send({"type": "http.response.body"})

    return app


async def _behaves(how):
    """A version that is bad whatever it is asked."""
    if how == "hangs":
        await asyncio.sleep(3600)
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leaks":
        LEAKED.append(b"x" * LEAK_BYTES)
        return 200, '{"predictions": [1.0]}'
    if how.startswith("slow "):
        await asyncio.sleep(float(how.removeprefix("slow ")))
        return 200, '{"predictions": [1.0]}'
    return int(how.removeprefix("status ")), how


async def _asked_for(wish, model):
    if wish == "application raises":
        raise RuntimeError(wish)
    if wish == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == "model raises":
        error = "Encountered an unexpected error while evaluating the model. Verify that ..."
        return 400, json.dumps({"error_code": "BAD_REQUEST", "message": error})
    if wish.startswith("status "):
        return int(wish.removeprefix("status ")), wish
    if wish != "half an answer":
        await asyncio.sleep(float(wish))
    return 200, model
