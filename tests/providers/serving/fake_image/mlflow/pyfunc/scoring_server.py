"""An ASGI application that answers with the content of the model's file, at once or after a while."""

import asyncio
import os
import time
from pathlib import Path


def load_model_with_mlflow_config(path):
    text = Path(path, "model.txt").read_text()
    if text == "broken":
        raise ImportError("No module named 'what_the_model_needs'")
    if text.startswith("slow"):
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
        if scope["path"] == "/invocations" and body:
            Path(os.environ["FAKE_STORE"], "asked").touch()  # noqa: ASYNC240
            await asyncio.sleep(float(body))
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        await send(start)
        await send({"type": "http.response.body", "body": model.encode()})

    return app
