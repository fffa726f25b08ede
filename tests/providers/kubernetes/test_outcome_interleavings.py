"""The total function when the streams of Jobs, pods, events and queues arrive in another order than recorded.

They are separate connections, so any order that keeps each stream's own is possible. What a waiting task does
is modelled: it stops at the first end, and then reads the pods once more.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from helpers.recorded_endings import ENDINGS, has_succeeded, is_complete
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
    Phase,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = dict[str, Any]
STREAMS = ("jobs", "pods", "events", "workloads")
ORDERS = ["jobs", "pods", "events", "workloads", 0, 1, 2, 3, 4, 5]


class World:
    """What has arrived of one Job's streams."""

    def __init__(self, job: str) -> None:
        self.name = job
        self.job: Record | None = None
        self.born = False
        self.pods: dict[str, Record] = {}
        self.events: list[Record] = []
        self.queue: Record | None = None

    def take(self, record: Record) -> None:
        obj, deleted = record["object"], record["type"] == "DELETED"
        match record["from"]:
            case "jobs" if obj["metadata"]["name"] == self.name:
                self.job, self.born = None if deleted else obj, True
            case "pods" if obj["metadata"]["labels"].get("job-name") == self.name:
                self.pods[obj["metadata"]["uid"]] = obj
            case "events":
                self.events.append(obj)
            case "workloads" if obj["metadata"]["ownerReferences"][0]["name"] == self.name:
                self.queue = None if deleted else obj

    def decide(self) -> Observation:
        return decide(self.job, list(self.pods.values()), self.events, queue=self.queue)


def streams_of(recordings: Any, scenario: str) -> list[Record]:
    return [record for record in recordings.records(scenario) if record.get("object") is not None]


def reordered(records: list[Record], order: str | int) -> Iterator[Record]:
    """The records with one stream first, or the streams shuffled from a seed; each keeps its own order."""
    queues = {name: [r for r in records if r["from"] == name] for name in STREAMS}
    if isinstance(order, str):
        yield from queues.pop(order)
        yield from (record for record in records if record["from"] in queues)
        return
    dice = random.Random(order)
    while any(queues.values()):
        name = dice.choice([name for name, queue in queues.items() if queue])
        yield queues[name].pop(0)


def first_end(records: list[Record], order: str | int, job: str) -> Observation | None:
    world = World(job)
    for record in reordered(records, order):
        world.take(record)
        if world.born and (observation := world.decide()).phase is Phase.FINISHED:
            return _with_pods_read_again(records, record, world) or observation
    return None


def _with_pods_read_again(records: list[Record], last: Record, world: World) -> Observation | None:
    """A read is never older than what it follows: it shows every change up to the last record's version."""
    version = _version(last["object"])
    then = World(world.name)
    for record in records:
        if record["from"] == "pods" and _version(record["object"]) <= version:
            then.take(record)
    for uid, pod in world.pods.items():
        if uid not in then.pods or _version(pod) > _version(then.pods[uid]):
            then.pods[uid] = pod
    again = decide(world.job, list(then.pods.values()), world.events, queue=world.queue)
    return again if again.phase is Phase.FINISHED else None


def _version(obj: Record) -> int:
    return int(obj["metadata"]["resourceVersion"])


def job_of(records: list[Record], job: str | None) -> str:
    return job or next(r["object"]["metadata"]["name"] for r in records if r["from"] == "jobs")


@pytest.mark.parametrize(("scenario", "job", "kind"), [(name, job, kind) for name, job, kind, *_ in ENDINGS])
def test_no_order_of_the_streams_changes_whether_it_succeeded(
    recordings: Any, scenario: str, job: str | None, kind: OutcomeKind
) -> None:
    records = streams_of(recordings, scenario)
    for order in ORDERS:
        end = first_end(records, order, job_of(records, job))
        assert end is not None, order
        assert end.outcome is not None
        assert end.outcome.succeeded == (kind is OutcomeKind.SUCCEEDED), (order, end)


@pytest.mark.parametrize(
    ("scenario", "job", "kind", "infrastructure"),
    [(name, job, kind, infrastructure) for name, job, kind, _, infrastructure in ENDINGS],
)
def test_every_order_of_the_streams_ends_as_the_same_kind(
    recordings: Any, scenario: str, job: str | None, kind: OutcomeKind, infrastructure: bool
) -> None:
    records = streams_of(recordings, scenario)
    ends = {
        (end.outcome.kind, end.outcome.infrastructure)
        for order in ORDERS
        if (end := first_end(records, order, job_of(records, job))) is not None and end.outcome is not None
    }
    # Whether a Job that never ran is seen as refused or as deleted depends on which news comes first.
    allowed = {(kind, infrastructure)}
    if scenario in NEVER_RAN:
        allowed |= {(OutcomeKind.CANCELLED, False), (NEVER_RAN[scenario], False)}
    assert ends
    assert ends <= allowed


NEVER_RAN = {
    "job-image-invalid": OutcomeKind.IMAGE_PULL,
    "job-image-never": OutcomeKind.IMAGE_PULL,
    "kueue-never-fits": OutcomeKind.QUOTA_WAIT,
    "kueue-deleted-waiting": OutcomeKind.QUOTA_WAIT,
    "kueue-0.19-never-fits": OutcomeKind.QUOTA_WAIT,
    "kueue-0.19-deleted-waiting": OutcomeKind.QUOTA_WAIT,
}


@pytest.mark.parametrize(("scenario", "job"), [(name, job) for name, job, *_ in ENDINGS])
def test_no_prefix_of_any_order_says_success_before_the_pod_or_the_job_does(
    recordings: Any, scenario: str, job: str | None
) -> None:
    records = streams_of(recordings, scenario)
    for order in ORDERS:
        world = World(job_of(records, job))
        for record in reordered(records, order):
            world.take(record)
            outcome = world.decide().outcome
            if outcome is not None and outcome.succeeded:
                assert is_complete(world.job) or any(map(has_succeeded, world.pods.values()))
