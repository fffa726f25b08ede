"""A warning in the log where Airflow has no healthy triggerer to resume what is deferred.

A task has no call of its own for it, so the page is asked that Airflow's API server shows to everybody, at
the address that the worker reaches the API server at. Where it cannot be asked, nothing is said.
"""

from __future__ import annotations

import json
import ssl
from http.client import HTTPException
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from airflow.configuration import conf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# An API server that is well answers in milliseconds, and a hint is worth no more waiting than this.
SECONDS = 1.5


def warn_without_triggerer(warn: Callable[[str], object]) -> None:
    """Say so if Airflow sees no healthy triggerer. Never fails, and takes no longer than ``SECONDS``."""
    health = triggerer_health(api_servers())
    if health is None or health.get("status") == "healthy":
        return
    last = health.get("latest_triggerer_heartbeat")
    seen = f"the last one was heard of at {last}" if last else "none has ever been heard of"
    warn(
        f"Airflow sees no healthy triggerer ({seen}). This task is deferred all the same, and goes on only "
        "once one runs: start `airflow triggerer`, or write deferrable=False to wait in the worker"
    )


def api_servers() -> list[str]:
    """The addresses at which the API server may show its health page, the likeliest first."""
    execution = str(conf.get("core", "execution_api_server_url", fallback="") or "").rstrip("/")
    base = str(conf.get("api", "base_url", fallback="") or "/")
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"  # as Airflow's executors read it
    return list(dict.fromkeys([execution.removesuffix("/execution") or base.rstrip("/"), base.rstrip("/")]))


def triggerer_health(servers: Sequence[str], *, seconds: float = SECONDS) -> dict[str, Any] | None:
    """The triggerer's health as the first server that answers has it; ``None`` if none answers in time."""
    answers: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def ask() -> None:
        found = (_ask(server, seconds) for server in servers)
        answers.put(next((each for each in found if each is not None), None))

    # In a thread that nobody waits for: looking up a host's name can take longer than any time-out says.
    Thread(target=ask, name="nighttrain-health", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return None


def _ask(server: str, seconds: float) -> dict[str, Any] | None:
    url = f"{server}/api/v2/monitor/health"
    if not url.startswith(("http://", "https://")):
        return None
    try:
        with urlopen(url, timeout=seconds, context=_trusted(url)) as answer:  # noqa: S310
            body = json.loads(answer.read())
        triggerer = body["triggerer"]
        # Without its database Airflow knows of nobody's health.
        known = isinstance(triggerer, dict) and body["metadatabase"]["status"] == "healthy"
        return triggerer if known else None
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None


def _trusted(url: str) -> Any:
    """Airflow's own certificate is trusted as its tasks trust it."""
    if not url.startswith("https://"):
        return None
    context = ssl.create_default_context()
    if certificate := conf.get("api", "ssl_cert", fallback=""):
        context.load_verify_locations(certificate)
    return context
