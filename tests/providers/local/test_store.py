"""The store by itself: versions, conflicts, deletion, history and watches."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nighttrain.providers.local.cluster.store import history, watching
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS, DEPLOYMENTS, JOBS, NAMESPACES, PODS
from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector
from nighttrain.providers.local.cluster.store.store import Store, copy_object


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    store = Store(clock=clock)
    store.create(NAMESPACES, {"metadata": {"name": "default"}})
    return store


def config(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "data": {"k": "v"}}


def running_pod(store: Store, name: str = "p", **metadata: Any) -> dict[str, Any]:
    spec = {"nodeName": "node1", "terminationGracePeriodSeconds": 7}
    return store.create(
        PODS, {"metadata": {"name": name, **metadata}, "spec": spec, "status": {"phase": "Running"}}
    )


def events_of(watcher: watching.Watcher) -> list[tuple[str, str]]:
    return [(type_, record.object["metadata"]["name"]) for type_, record in watcher.drain()]


def refusal(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str]:
    return error.value.code, error.value.reason


def test_create_gives_identity(store: Store) -> None:
    created = store.create(JOBS, {"metadata": {"generateName": "train-"}, "spec": {}})
    metadata = created["metadata"]
    assert created["apiVersion"] == "batch/v1"
    assert metadata["name"].startswith("train-")
    assert len(metadata["name"]) == len("train-") + 5
    assert metadata["creationTimestamp"] == "2026-01-02T03:04:05Z"
    assert metadata["generation"] == 1
    assert metadata["resourceVersion"] == str(store.revision)
    assert store.get(JOBS, "default", metadata["name"]) is created


def test_create_refuses_a_taken_name_and_an_absent_namespace(store: Store) -> None:
    store.create(CONFIGMAPS, config("a"))
    with pytest.raises(ApiError) as taken:
        store.create(CONFIGMAPS, config("a"))
    assert refusal(taken) == (409, "AlreadyExists")
    with pytest.raises(ApiError) as absent:
        store.create(CONFIGMAPS, config("a", namespace="absent"))
    assert absent.value.message == 'namespaces "absent" not found'


def test_a_write_keeps_the_callers_object_and_the_old_version_apart(store: Store) -> None:
    body = config("a")
    first = store.create(CONFIGMAPS, body)
    body["data"]["k"] = "changed by the caller"
    second = store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["data"].update(k="w"))
    assert second is not None
    assert first["data"] == {"k": "v"}
    assert second["data"] == {"k": "w"}


def test_update_needs_the_current_version(store: Store) -> None:
    first = store.create(CONFIGMAPS, config("a"))
    stale = copy_object(first)
    store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["data"].update(k="w"))
    with pytest.raises(ApiError) as conflict:
        store.update(CONFIGMAPS, stale)
    assert refusal(conflict) == (409, "Conflict")
    del stale["metadata"]["resourceVersion"]
    assert store.update(CONFIGMAPS, stale)["data"] == {"k": "v"}


def test_a_write_that_changes_nothing_is_no_event(store: Store) -> None:
    created = store.create(CONFIGMAPS, config("a"))
    revision = store.revision
    assert store.update(CONFIGMAPS, copy_object(created)) is created
    assert store.mutate(CONFIGMAPS, "default", "a", lambda obj: None) is created
    assert store.revision == revision


def test_spec_counts_generations_and_status_does_not(store: Store) -> None:
    obj = store.create(DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {"replicas": 1}})
    changed = copy_object(obj)
    changed["spec"]["replicas"] = 2
    changed["status"] = {"replicas": 9}
    obj = store.update(DEPLOYMENTS, changed)
    assert obj["metadata"]["generation"] == 2
    assert "status" not in obj
    changed = copy_object(obj)
    changed["spec"]["replicas"] = 5
    changed["status"] = {"replicas": 2}
    obj = store.update(DEPLOYMENTS, changed, status=True)
    assert (obj["metadata"]["generation"], obj["spec"], obj["status"]) == (
        2,
        {"replicas": 2},
        {"replicas": 2},
    )


def test_identity_cannot_be_rewritten(store: Store) -> None:
    created = store.create(PODS, {"metadata": {"name": "p"}, "spec": {}})
    forged = copy_object(created)
    forged["metadata"].update(creationTimestamp="1999-01-01T00:00:00Z", generation=40, labels={"a": "b"})
    stored = store.update(PODS, forged)["metadata"]
    assert stored["labels"] == {"a": "b"}
    for field in ("creationTimestamp", "generation", "uid"):
        assert stored[field] == created["metadata"][field]


def test_a_running_pod_is_deleted_by_its_kubelet(store: Store, clock: Clock) -> None:
    pod = running_pod(store)
    with store.watch(PODS, since_revision=store.revision) as watcher:
        marked = store.delete(PODS, "default", "p")["metadata"]
        assert marked["deletionTimestamp"] == "2026-01-02T03:04:12Z"
        assert (marked["deletionGracePeriodSeconds"], marked["generation"]) == (7, 2)
        clock.now += timedelta(seconds=1)
        store.delete(PODS, "default", "p")
        assert [type_ for type_, _ in events_of(watcher)] == ["MODIFIED"]
        store.remove(PODS, "default", "p", uid="somebody else's")
        assert store.find(PODS, "default", "p")
        store.remove(PODS, "default", "p", pod["metadata"]["uid"])
        assert [type_ for type_, _ in events_of(watcher)] == ["MODIFIED", "DELETED"]
    assert store.find(PODS, "default", "p") is None


def test_a_shorter_grace_period_wins(store: Store) -> None:
    running_pod(store)
    store.delete(PODS, "default", "p")
    assert (
        store.delete(PODS, "default", "p", grace_period_seconds=2)["metadata"]["deletionGracePeriodSeconds"]
        == 2
    )
    assert (
        store.delete(PODS, "default", "p", grace_period_seconds=9)["metadata"]["deletionGracePeriodSeconds"]
        == 2
    )


@pytest.mark.parametrize("status", [{"phase": "Succeeded"}, {"phase": "Failed"}])
def test_a_pod_that_ended_goes_at_once(store: Store, status: dict[str, str]) -> None:
    running_pod(store)
    store.mutate(PODS, "default", "p", lambda pod: pod["status"].update(status))
    store.delete(PODS, "default", "p")
    assert store.find(PODS, "default", "p") is None


def test_a_pod_that_no_node_has_goes_at_once(store: Store) -> None:
    store.create(PODS, {"metadata": {"name": "p"}, "spec": {}})
    store.delete(PODS, "default", "p")
    assert store.find(PODS, "default", "p") is None


def test_finalizers_hold_a_pod_after_its_kubelet_let_go(store: Store) -> None:
    pod = running_pod(store, finalizers=["tracking"])
    store.delete(PODS, "default", "p")
    store.remove(PODS, "default", "p", pod["metadata"]["uid"])
    assert store.get(PODS, "default", "p")["metadata"]["deletionGracePeriodSeconds"] == 0
    gone = store.mutate(PODS, "default", "p", lambda obj: obj["metadata"].update(finalizers=[]))
    assert gone is None
    assert store.find(PODS, "default", "p") is None


def test_finalizers_removed_first_leave_the_pod_to_its_kubelet(store: Store) -> None:
    pod = running_pod(store, finalizers=["tracking"])
    store.delete(PODS, "default", "p")
    store.mutate(PODS, "default", "p", lambda obj: obj["metadata"].update(finalizers=[]))
    assert store.find(PODS, "default", "p")
    store.remove(PODS, "default", "p", pod["metadata"]["uid"])
    assert store.find(PODS, "default", "p") is None


@pytest.mark.parametrize(
    ("propagation", "finalizer"),
    [(Propagation.FOREGROUND, "foregroundDeletion"), (Propagation.ORPHAN, "orphan")],
)
def test_propagation_waits_for_the_garbage_collector(
    store: Store, propagation: Propagation, finalizer: str
) -> None:
    store.create(JOBS, {"metadata": {"name": "j"}, "spec": {}})
    marked = store.delete(JOBS, "default", "j", propagation=propagation)["metadata"]
    assert marked["finalizers"] == [finalizer]
    assert (marked["generation"], marked["deletionGracePeriodSeconds"]) == (2, 0)
    store.mutate(JOBS, "default", "j", lambda obj: obj["metadata"].update(finalizers=[]))
    assert store.find(JOBS, "default", "j") is None


def test_preconditions_protect_a_successor_of_the_same_name(store: Store) -> None:
    first = store.create(CONFIGMAPS, config("a"))
    store.delete(CONFIGMAPS, "default", "a", preconditions_uid=first["metadata"]["uid"])
    store.create(CONFIGMAPS, config("a"))
    with pytest.raises(ApiError) as refused:
        store.delete(CONFIGMAPS, "default", "a", preconditions_uid=first["metadata"]["uid"])
    assert refusal(refused) == (409, "Conflict")
    assert store.find(CONFIGMAPS, "default", "a")


def test_a_watch_from_a_version_misses_nothing_and_repeats_nothing(store: Store) -> None:
    store.create(CONFIGMAPS, config("before"))
    since = store.revision
    store.create(CONFIGMAPS, config("between"))
    with store.watch(CONFIGMAPS, "default", since) as watcher:
        store.create(CONFIGMAPS, config("after"))
        store.delete(CONFIGMAPS, "default", "between")
        assert events_of(watcher) == [("ADDED", "between"), ("ADDED", "after"), ("DELETED", "between")]


def test_a_watch_without_a_version_begins_with_what_is_there(store: Store) -> None:
    store.create(CONFIGMAPS, config("a"))
    with store.watch(CONFIGMAPS) as watcher:
        assert events_of(watcher) == [("ADDED", "a")]


def test_a_selector_turns_changes_into_coming_and_going(store: Store) -> None:
    with store.watch(CONFIGMAPS, labels=LabelSelector.parse("n=0")) as watcher:
        store.create(CONFIGMAPS, config("a", labels={"n": "0"}))
        store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["data"].update(k="w"))
        store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["metadata"].update(labels={"n": "1"}))
        store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["data"].update(k="x"))
        store.mutate(CONFIGMAPS, "default", "a", lambda obj: obj["metadata"].update(labels={"n": "0"}))
        store.delete(CONFIGMAPS, "default", "a")
        seen = watcher.drain()
    assert [type_ for type_, _ in seen] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    left = seen[2][1].object
    assert left["metadata"]["labels"] == {"n": "0"}
    versions = [int(record.object["metadata"]["resourceVersion"]) for _, record in seen]
    assert versions == sorted(set(versions))


def test_history_is_bounded_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_LENGTH", 3)
    start = store.revision
    for number in range(5):
        store.create(CONFIGMAPS, config(f"c{number}"))
    with pytest.raises(ApiError) as expired:
        store.watch(CONFIGMAPS, since_revision=start)
    assert refusal(expired) == (410, "Expired")
    with store.watch(CONFIGMAPS, since_revision=start + 2) as watcher:
        assert events_of(watcher) == [("ADDED", "c2"), ("ADDED", "c3"), ("ADDED", "c4")]


async def test_a_watcher_that_lags_too_far_is_told_to_list_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCHER_LIMIT", 2)
    watcher = store.watch(CONFIGMAPS)
    for number in range(3):
        store.create(CONFIGMAPS, config(f"c{number}"))
    assert [(await anext(watcher))[0] for _ in range(2)] == ["ADDED", "ADDED"]
    with pytest.raises(ApiError) as expired:
        await anext(watcher)
    assert refusal(expired) == (410, "Expired")


async def test_waiting_watchers_wake_and_closed_ones_end(store: Store) -> None:
    watcher = store.watch(CONFIGMAPS)

    async def collect() -> list[str]:
        return [type_ async for type_, _ in watcher]

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    store.create(CONFIGMAPS, config("a"))
    await asyncio.sleep(0)
    watcher.close()
    assert await task == ["ADDED"]


def test_many_watchers_share_one_encoding(store: Store) -> None:
    watchers = [store.watch(CONFIGMAPS) for _ in range(50)]
    store.create(CONFIGMAPS, config("a"))
    encodings = {id(watcher.drain()[0][1].encoded) for watcher in watchers}
    assert len(encodings) == 1


def test_an_earlier_state_can_be_read_again(store: Store) -> None:
    store.create(CONFIGMAPS, config("a"))
    store.create(CONFIGMAPS, config("b"))
    revision = store.revision
    store.delete(CONFIGMAPS, "default", "a")
    store.mutate(CONFIGMAPS, "default", "b", lambda obj: obj["data"].update(k="w"))
    store.create(CONFIGMAPS, config("c"))
    then = store.records_at(CONFIGMAPS, "default", revision)
    assert [(each.object["metadata"]["name"], each.object["data"]["k"]) for each in then] == [
        ("a", "v"),
        ("b", "v"),
    ]


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("a=b", {"a": "b"}, True),
        ("a==b,c", {"a": "b"}, False),
        ("a!=b", {}, True),
        ("a in (b, c),!d", {"a": "c"}, True),
        ("a notin (b)", {"a": "b"}, False),
        ("example.com/a", {"example.com/a": ""}, True),
        ("a=", {"a": ""}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], matches: bool) -> None:
    assert LabelSelector.parse(text).matches_labels(labels) is matches


def test_field_selectors() -> None:
    pod = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {}}
    assert FieldSelector.parse("metadata.name=p,spec.nodeName!=y", PODS).matches(pod)
    assert FieldSelector.parse("status.phase=", PODS).matches(pod)
    assert not FieldSelector.parse("metadata.namespace==other", PODS).matches(pod)
    with pytest.raises(ApiError) as unknown:
        FieldSelector.parse("spec.color=red", PODS)
    assert unknown.value.code == 400
