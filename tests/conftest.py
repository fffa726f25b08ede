"""Fixtures for every test. What they are made of is in ``helpers``."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from helpers.clusters import client, cluster, idle_cluster
from helpers.mlflow_server import make_model, mlflow_on_postgresql, mlflow_server, mlflow_store
from helpers.scripted_http import scripted

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

__all__ = [
    "client",
    "cluster",
    "idle_cluster",
    "make_model",
    "mlflow_on_postgresql",
    "mlflow_server",
    "mlflow_store",
    "scripted",
]


def pytest_configure(config: pytest.Config) -> None:
    """Airflow reads its settings once, when it is imported: they must not be this machine's."""
    home = tempfile.TemporaryDirectory(prefix="nighttrain-airflow-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["AIRFLOW_HOME"] = home.name
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What both tests/conformance and tests/benchmarks take."""
    group = parser.getgroup("a cluster that runs")
    group.addoption("--kubeconfig", default=None, help="the cluster to run against; none: embedded")
    parser.addoption("--thorough", action="store_true", help="all of what is sampled otherwise: minutes more")
    group.addoption("--image", default=None, help="an image with python3 and sh, for --kubeconfig")


PIPELINE = "tests/pipeline/"
OWN_AIRFLOW = "tests/pipeline/test_demo.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that the processes of ``./run test`` end at about the same time."""
    if not config.getoption("--thorough"):
        left_out = pytest.mark.skip(reason="takes minutes: --thorough runs it")
        seen: Counter[str] = Counter()
        for item in items:
            if item.get_closest_marker("thorough") or _is_not_of_the_sample(item, seen):
                item.add_marker(left_out)
    items.sort(key=lambda item: not item.nodeid.startswith(PIPELINE))


def _is_not_of_the_sample(item: pytest.Item, seen: Counter[str]) -> bool:
    marker = item.get_closest_marker("sampled")
    if marker is None:
        return False
    name = item.nodeid.partition("[")[0]
    number = seen[name]
    seen[name] += 1
    return (number + zlib.crc32(name.encode())) % int(marker.args[0]) != 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """A file's tests run in one process, and so do all that share one Airflow: it takes a minute to start."""
    from xdist.scheduler import LoadFileScheduling

    class ByServers(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            shares = file.startswith(PIPELINE) and file != OWN_AIRFLOW
            return PIPELINE if shares else file

    return ByServers(config, log)
