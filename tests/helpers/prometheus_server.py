"""A real Prometheus with samples of the past: what it is asked about is known to the number."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from helpers.mlflow_server import free_port
from helpers.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# As close as scrapes of a second would be useless: the server has to hold an hour of them.
STEP_SECONDS = 5


def need_prometheus() -> None:
    """Skip the test where there is none."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        pytest.skip("no prometheus here: apt-get install prometheus")


def samples(series: Mapping[str, float], begin: int, end: int) -> str:
    """Counters that rise by so much in each step, in OpenMetrics' text format."""
    lines = []
    for name, rise in series.items():
        for number, at in enumerate(range(begin, end + 1, STEP_SECONDS)):
            lines.append(f"{name} {number * rise} {at}")
    return "\n".join([*lines, "# EOF", ""])


@contextlib.contextmanager
def running_prometheus(
    folder: Path, past: str = "", targets: tuple[str, ...] = (), *options: str
) -> Iterator[str]:
    """The address of a server that has these samples, and scrapes these targets every second."""
    if past:
        (folder / "past.txt").write_text(past)
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "past.txt", "data"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "pods", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    settings = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "error",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in settings.items()), *options]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/-/ready", trust_env=False).is_success
        return False

    try:
        until(is_up, what="prometheus")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def a_moment() -> int:
    """Some minutes ago, on a step."""
    return int(time.time() - 600) // STEP_SECONDS * STEP_SECONDS
