"""What importing nighttrain's operators and sensors adds to a DAG file that imports ``airflow.sdk``.

Measured: seconds and memory that a second import adds in a process that has imported ``airflow.sdk`` (with
the classes a DAG file takes from it). The second import is (a) every public name of ``nighttrain.operators``
and ``nighttrain.sensors``, (b) every module of both, (c) ``KubernetesPodOperator``, (d) nothing.
How: a fresh interpreter for each measurement; the clock runs inside it and around the second import only, so
that process start and Airflow's own import are not in the difference. Memory is what the import adds to the
resident set (Linux), and to its peak (``getrusage``), which hides what fits below an earlier peak. The four
take turns, so that a busy moment hits all of them.
Repetitions: one unmeasured turn that writes bytecode and fills the page cache, then 9 turns; medians.
Command: ``./run bench -k import_time``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(600)]

TURNS = 9
SDK = "from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator, BaseSensorOperator"
OFFERED = "nighttrain.operators + nighttrain.sensors, every public name"
NAMES = """import nighttrain.operators, nighttrain.sensors
for package in (nighttrain.operators, nighttrain.sensors):
    for name in package.__all__:
        getattr(package, name)
"""
MODULES = """import nighttrain.operators, nighttrain.sensors
for package in (nighttrain.operators, nighttrain.sensors):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
THEIRS = "KubernetesPodOperator"
SECOND = {
    "nothing more": "pass",
    OFFERED: NAMES,
    "the same, and what only a worker or a triggerer loads": MODULES,
    THEIRS: "from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator",
}
CHILD = """
import importlib, json, pkgutil, resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
began = time.perf_counter()
{first}
between, before, modules = time.perf_counter(), (resident(), peak()), len(sys.modules)
second = time.perf_counter()
{second}
ended = time.perf_counter()
print(json.dumps(dict(sdk=between - began, added=ended - second, modules=len(sys.modules) - modules,
                      resident=resident() - before[0], peak=peak() - before[1])))
"""


def measure(second: str, home: Path) -> dict[str, Any]:
    """Seconds, MiB and modules that ``second`` adds in a fresh interpreter."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(first=SDK, second=second)],
        env={**os.environ, "AIRFLOW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return dict(json.loads(child.stdout.splitlines()[-1]))


def test_what_a_dag_file_pays(show: Any, tmp_path: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SECOND}
    for turn in range(TURNS + 1):
        for name, second in SECOND.items():
            measured = measure(second, tmp_path)
            if turn:
                found[name].append(measured)

    def row(name: str) -> tuple[str, ...]:
        runs = found[name]
        added = [1000 * run["added"] for run in runs]
        return (
            name,
            f"{median(added):.0f}",
            f"{min(added):.0f} - {max(added):.0f}",
            f"{median(run['resident'] for run in runs):.1f}",
            f"{median(run['peak'] for run in runs):.1f}",
            str(runs[0]["modules"]),
        )

    sdk = median(run["sdk"] for runs in found.values() for run in runs)
    show(
        "Added to `airflow.sdk` at DAG parse",
        ("import", "ms (median)", "ms (range)", "MiB resident", "MiB at peak", "modules"),
        map(row, found),
        f"{TURNS} turns; importing airflow.sdk itself, in the same processes: {1000 * sdk:.0f} ms (median)",
    )
    ours, theirs = (median(run["added"] for run in found[name]) for name in (OFFERED, THEIRS))
    assert ours < theirs
