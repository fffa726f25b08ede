"""What the benchmarks share: they print tables, and none of them fails on an absolute time."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import httpx
import pytest
import yaml
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--full", action="store_true", help="the large numbers too; takes half an hour")
    group.addoption("--waiting", type=int, action="append", default=[], help="how many triggers wait")
    group.addoption(
        "--side", choices=("nighttrain", "stock"), action="append", default=[], help="one side alone"
    )
    group.addoption("--phase", type=float, default=None, help="seconds of each phase of a wait")


class Show(Protocol):
    def __call__(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = ""
    ) -> None: ...


@pytest.fixture
def show() -> Show:
    """Prints a table, with the machine and how busy it is beneath: the numbers mean little without."""
    before = os.getloadavg()[0]

    def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console = Console(width=120)
        console.print()
        console.print(table)
        if note:
            console.print(note)
        console.print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, "
            f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        )

    return show


@dataclass(frozen=True)
class ClusterProcess:
    """An embedded cluster in a process of its own, as a person starts it."""

    pid: int
    url: str
    kubeconfig: Path
    seconds: float
    """From the start of the process to its line that says it is ready."""

    def client(self) -> httpx.AsyncClient:
        """A plain HTTP client that shares no code with nighttrain's."""
        token = yaml.safe_load(self.kubeconfig.read_text())["users"][0]["user"]["token"]
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60, pool=None),
            limits=httpx.Limits(max_connections=16),
            trust_env=False,
        )

    def memory(self) -> tuple[float, float]:
        """MiB resident now, and at the peak; of the server alone, without its containers."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return _mebibytes(status, "VmRSS"), _mebibytes(status, "VmHWM")


def _mebibytes(status: str, field: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def cluster_process(directory: Path, *options: str) -> Iterator[ClusterProcess]:
    """``python -m nighttrain.providers.local cluster`` whose image ``localhost/python`` is this Python."""
    command = [
        *(sys.executable, "-m", "nighttrain.providers.local", "cluster"),
        *("--directory", str(directory), "--image", f"localhost/python={sys.executable}"),
        *options,
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - began
            found = re.match(r"cluster ready: (\S+) KUBECONFIG=(\S+)", line)
            assert found, f"not ready: {line!r}"
            yield ClusterProcess(process.pid, found[1], Path(found[2]), seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def start_cluster() -> Callable[..., contextlib.AbstractContextManager[ClusterProcess]]:
    """Starts clusters in a directory and with options, each for as long as its ``with`` block."""
    return cluster_process
