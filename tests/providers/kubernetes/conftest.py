"""What a real cluster did, replayed; and identities of tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers import RECORDINGS
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator


_numbers = count()

# The second one's are not replayed on the embedded cluster.
FOLDERS = (RECORDINGS, Path(__file__).parent / "recordings")


def records(name: str) -> list[dict[str, Any]]:
    """All lines of one recorded scenario."""
    paths = (folder / f"{name}.jsonl" for folder in FOLDERS)
    lines = next(path for path in paths if path.exists()).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass
class Seen:
    """What a watcher of one Job knows after some prefix of a scenario."""

    job: dict[str, Any] | None = None
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    queue: dict[str, Any] | None = None


def replay(name: str, job: str | None = None) -> Iterator[Seen]:
    """The state after each watch event of a scenario, from the first sight of the Job on.

    :param job: which of the scenario's Jobs; the first one seen by default
    """
    seen = Seen()
    born = False
    for record in records(name):
        obj = record.get("object")
        if obj is None:
            continue
        kind, named = record["from"], obj["metadata"]["name"]
        if kind == "jobs" and (job is None or named == job):
            job = named
            seen.job = None if record["type"] == "DELETED" else obj
            born = True
        elif kind == "pods" and obj["metadata"]["labels"].get("job-name") == job:
            seen.pods[obj["metadata"]["uid"]] = obj
        elif kind == "events":
            seen.events.append(obj)
        elif kind == "workloads" and obj["metadata"]["ownerReferences"][0]["name"] == job:
            seen.queue = None if record["type"] == "DELETED" else obj
        if born:
            yield seen


class Recordings:
    """The recorded scenarios, as the tests want them."""

    records = staticmethod(records)
    replay = staticmethod(replay)


@pytest.fixture(scope="session")
def recordings() -> Recordings:
    return Recordings()


@pytest.fixture
def identity() -> WorkloadIdentity:
    """A task's in a DAG run of its own."""
    run = f"run-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
