"""Native sidecars: they start first, end last, and are restarted only while the pod lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import IMAGE, PYTHON, Running, condition, pod_steps, script
from nighttrain.providers.local.cluster.http.eviction import evict
from nighttrain.providers.local.cluster.http.routing import Target
from nighttrain.providers.local.cluster.machine.janitor import marked_processes
from nighttrain.providers.local.cluster.store.resources import PODS
from nighttrain.providers.local.cluster.store.store import EventType

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.store.store import Object

FOREVER = "import time; print('up'); time.sleep(60)"
OBEYS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up")
time.sleep(60)
"""


def beside(name: str, main: str, sidecar: str, **spec: Any) -> Object:
    manifest = script(name, main, grace=2, spec=spec)
    proxy = {"name": "proxy", "image": IMAGE, "command": [*PYTHON, sidecar], "restartPolicy": "Always"}
    manifest["spec"]["initContainers"] = [proxy]
    return manifest


async def up(cluster: Running, name: str) -> None:
    """Every container runs and has said so: it hears SIGTERM if it wants to."""

    def all_run(found: Object | None) -> bool:
        status = (found or {}).get("status") or {}
        every = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
        return bool(every) and all("running" in each["state"] for each in every)

    pod = await cluster.until(PODS, name, all_run)
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        async for piece in cluster.kubelet.open_log(pod, container["name"], follow=True):
            if b"up" in piece:
                break


def delete(cluster: Running, name: str) -> None:
    cluster.store.delete(PODS, "default", name)


def evicted(cluster: Running, name: str) -> None:
    body = {"metadata": {"name": name, "namespace": "default"}}
    evict(cluster.store, Target(PODS, "default", name, "eviction"), body, dry_run=False)


ENDED = (("proxy", 0, 0), ("main", 137, 0))


def ends(found: Object) -> tuple[tuple[str, int, int], ...]:
    """Name, exit code and restarts of each container."""
    status = found["status"]
    return tuple(
        (each["name"], each["state"]["terminated"]["exitCode"], each["restartCount"])
        for each in (*status["initContainerStatuses"], *status["containerStatuses"])
    )


@pytest.mark.parametrize("end", [delete, evicted])
async def test_a_sidecar_ends_with_its_deleted_pod(tmp_path: Path, end: Any) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, beside("gone", FOREVER, OBEYS))
        await up(cluster, "gone")
        end(cluster, "gone")
        await cluster.gone(PODS, "gone")
        assert not marked_processes(cluster.kubelet.cluster_id)
        type_, last = cluster.history(PODS)[-1]
        assert (type_, last["status"]["phase"], ends(last)) == (EventType.DELETED, "Failed", ENDED)
        # Running, then the end of everything at once: no status of a sidecar that comes back.
        states = [step[1] for step in pod_steps(cluster.history(PODS))[0]]
        whole = [tuple((each[1], each[3], each[6]) for each in step) for step in states]
        told = [step for index, step in enumerate(whole) if step and step != whole[index - 1]]
        assert told[-2:] == [
            (("running", None, 0), ("running", None, 0)),
            (("terminated", 0, 0), ("terminated", 137, 0)),
        ]
        assert bool(condition(last, "DisruptionTarget")) is (end is evicted)


async def test_a_sidecar_ends_with_its_pods_deadline(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, beside("late", FOREVER, OBEYS, activeDeadlineSeconds=2))
        done = await cluster.pod_phase("late", "Failed")
        assert (done["status"]["reason"], ends(done)) == ("DeadlineExceeded", ENDED)
        assert not marked_processes(cluster.kubelet.cluster_id)


async def test_a_pod_that_obeys_at_its_deadline_has_failed(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, beside("polite", OBEYS, OBEYS, activeDeadlineSeconds=2))
        done = await cluster.pod_phase("polite", "Succeeded", "Failed")
        assert (done["status"]["phase"], done["status"]["reason"]) == ("Failed", "DeadlineExceeded")
        assert ends(done) == (("proxy", 0, 0), ("main", 0, 0))


async def test_sidecars_end_after_the_others_the_first_one_last(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    with open({path!r}, 'a') as file: file.write({name!r})\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up'); time.sleep(60)"
    )
    order = tmp_path / "order"

    def told(name: str) -> str:
        return code.format(path=str(order), name=name)

    manifest = beside("order", told("main "), told("first "))
    second = {**manifest["spec"]["initContainers"][0], "name": "second"}
    second["command"] = [*PYTHON, told("second ")]
    manifest["spec"]["initContainers"].append(second)
    async with Running(tmp_path / "cluster") as cluster:
        cluster.store.create(PODS, manifest)
        await up(cluster, "order")
        delete(cluster, "order")
        await cluster.gone(PODS, "order")
    assert order.read_text() == "main second first "


async def test_a_deaf_sidecar_is_killed_with_its_pod(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, beside("deaf", OBEYS, FOREVER))
        await up(cluster, "deaf")
        delete(cluster, "deaf")
        await cluster.gone(PODS, "deaf")
        assert not marked_processes(cluster.kubelet.cluster_id)
        assert ends(cluster.history(PODS)[-1][1]) == (("proxy", 137, 0), ("main", 0, 0))
