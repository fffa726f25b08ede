"""Deployments on the embedded cluster, next to what a real cluster did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.cluster_without_http import IMAGE, PYTHON, Running, condition
from nighttrain.providers.local.cluster.controllers.deployment_controller import template_hash
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.resources import DEPLOYMENTS, EVENTS, PODS, REPLICASETS

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = "import time; time.sleep(60)"


def deployment(code: str = FOREVER, *, replicas: int = 2, **spec: Any) -> dict[str, Any]:
    main = {"name": "main", "image": IMAGE, "command": [*PYTHON, code]}
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [main]},
    }
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    base = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": strategy,
        "template": template,
    }
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": {**base, **spec}}


def complete(found: dict[str, Any] | None) -> bool:
    if found is None:
        return False
    status, wanted = found.get("status") or {}, found["spec"]["replicas"]
    return (
        status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
    )


def change(cluster: Running, code: str) -> None:
    def write(found: dict[str, Any]) -> None:
        found["spec"]["template"]["spec"]["containers"][0]["command"] = [*PYTHON, code]

    cluster.store.mutate(DEPLOYMENTS, "default", "web", write)


def scale_messages(cluster: Running) -> list[str]:
    return [
        event["message"].replace(event["involvedObject"]["name"] + "-", "")
        for _type, event in cluster.history(EVENTS)
        if event["reason"] == "ScalingReplicaSet"
    ]


def reasons(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in found["status"]["conditions"]}


async def test_comes_up_and_is_scaled(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment())
        up = await cluster.until(DEPLOYMENTS, "web", complete)
        assert reasons(up) == {
            "Available": ("True", "MinimumReplicasAvailable"),
            "Progressing": ("True", "NewReplicaSetAvailable"),
        }
        [replica_set] = cluster.store.list(REPLICASETS)[0]
        assert replica_set["metadata"]["annotations"] == {"deployment.kubernetes.io/revision": "1"}
        assert replica_set["metadata"]["labels"]["pod-template-hash"] in replica_set["metadata"]["name"]

        def grow(found: dict[str, Any]) -> None:
            found["spec"]["replicas"] = 3

        cluster.store.mutate(DEPLOYMENTS, "default", "web", grow)
        await cluster.until(DEPLOYMENTS, "web", complete)
        assert len(cluster.store.list(PODS)[0]) == 3
        first = replica_set["metadata"]["name"].removeprefix("web-")
        assert scale_messages(cluster) == [
            f"Scaled up replica set {first} from 0 to 2",
            f"Scaled up replica set {first} from 2 to 3",
        ]


async def test_rolls_one_by_one_and_back(tmp_path: Path) -> None:
    """maxUnavailable 0, maxSurge 1: never fewer than three ready, never more than four."""
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment(replicas=3))
        await cluster.until(DEPLOYMENTS, "web", complete)
        [first] = cluster.store.list(REPLICASETS)[0]
        cluster.history(PODS).clear()
        ready: dict[str, bool] = {pod["metadata"]["name"]: True for pod in pods_of(cluster, first)}
        change(cluster, FOREVER + " # 2")
        await cluster.until(DEPLOYMENTS, "web", complete)
        seen = []
        for type_, pod in cluster.history(PODS):
            alive = type_ != "DELETED" and "deletionTimestamp" not in pod["metadata"]
            ready[pod["metadata"]["name"]] = alive and condition(pod, "Ready") is not None
            seen.append(sum(ready.values()))
        assert min(seen) >= 3
        assert max(seen) <= 4
        second = next(each for each in cluster.store.list(REPLICASETS)[0] if each["spec"]["replicas"])
        old, new = (each["metadata"]["name"].removeprefix("web-") for each in (first, second))
        assert scale_messages(cluster)[1:] == [
            f"Scaled up replica set {new} from 0 to 1",
            f"Scaled down replica set {old} from 3 to 2",
            f"Scaled up replica set {new} from 1 to 2",
            f"Scaled down replica set {old} from 2 to 1",
            f"Scaled up replica set {new} from 2 to 3",
            f"Scaled down replica set {old} from 1 to 0",
        ]
        change(cluster, FOREVER)
        back = await cluster.until(
            DEPLOYMENTS, "web", lambda found: complete(found) and revision(found) == "3"
        )
        again = cluster.store.get(REPLICASETS, "default", first["metadata"]["name"])
        assert again["spec"]["replicas"] == 3
        assert reasons(back)["Progressing"] == ("True", "NewReplicaSetAvailable")


def pods_of(cluster: Running, replica_set: dict[str, Any]) -> list[dict[str, Any]]:
    uid = replica_set["metadata"]["uid"]
    return [pod for pod in cluster.store.list(PODS)[0] if pod["metadata"]["ownerReferences"][0]["uid"] == uid]


def revision(found: dict[str, Any] | None) -> str:
    return str(
        ((found or {}).get("metadata", {}).get("annotations") or {}).get("deployment.kubernetes.io/revision")
    )


async def test_stuck_rollout_as_recorded(tmp_path: Path) -> None:
    """The new version never becomes available; the old one stays whole, and the deadline says so."""
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment(progressDeadlineSeconds=1))
        await cluster.until(DEPLOYMENTS, "web", complete)

        def spoil(found: dict[str, Any]) -> None:
            found["spec"]["template"]["spec"]["containers"][0]["image"] = "localhost/absent:1"

        cluster.store.mutate(DEPLOYMENTS, "default", "web", spoil)
        stuck = await cluster.until(
            DEPLOYMENTS, "web", lambda found: condition(found, "Progressing", "False")
        )
        assert reasons(stuck) == {
            "Available": ("True", "MinimumReplicasAvailable"),
            "Progressing": ("False", "ProgressDeadlineExceeded"),
        }
        status = stuck["status"]
        counts = {
            key: status.get(key, 0)
            for key in ("replicas", "updatedReplicas", "availableReplicas", "unavailableReplicas")
        }
        assert counts == {
            "replicas": 3,
            "updatedReplicas": 1,
            "availableReplicas": 2,
            "unavailableReplicas": 1,
        }
        message = condition(stuck, "Progressing", "False")
        assert message is not None
        assert message["message"].endswith("has timed out progressing.")


async def test_a_revision_that_is_no_number_is_written_over(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment(replicas=1))
        await cluster.until(DEPLOYMENTS, "web", complete)
        [first] = cluster.store.list(REPLICASETS)[0]

        def spoil(found: dict[str, Any]) -> None:
            found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "x"

        name = first["metadata"]["name"]
        cluster.store.mutate(REPLICASETS, "default", name, spoil)
        await cluster.until(REPLICASETS, name, lambda found: revision(found) == "1")


async def test_a_lost_pod_is_replaced(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment())
        await cluster.until(DEPLOYMENTS, "web", complete)
        [lost, _kept] = cluster.store.list(PODS)[0]
        cluster.store.delete(PODS, "default", lost["metadata"]["name"])
        await cluster.gone(PODS, lost["metadata"]["name"])
        with cluster.store.watch(PODS) as watcher:
            while sum(condition(pod, "Ready") is not None for pod in cluster.store.list(PODS)[0]) < 2:
                await watcher.next_record()
        assert len(cluster.store.list(PODS)[0]) == 2


async def test_deletion_takes_everything_along(tmp_path: Path) -> None:
    for propagation in (Propagation.BACKGROUND, Propagation.FOREGROUND):
        async with Running(tmp_path / propagation) as cluster:
            cluster.store.create(DEPLOYMENTS, deployment())
            await cluster.until(DEPLOYMENTS, "web", complete)
            names = [pod["metadata"]["name"] for pod in cluster.store.list(PODS)[0]]
            cluster.store.delete(DEPLOYMENTS, "default", "web", propagation=propagation)
            for name in names:
                await cluster.gone(PODS, name)
            await cluster.gone(DEPLOYMENTS, "web")
            with cluster.store.watch(REPLICASETS) as watcher:
                while cluster.store.list(REPLICASETS)[0]:
                    await watcher.next_record()


async def test_orphans_stay(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(DEPLOYMENTS, deployment(replicas=1))
        await cluster.until(DEPLOYMENTS, "web", complete)
        [replica_set] = cluster.store.list(REPLICASETS)[0]
        cluster.store.delete(DEPLOYMENTS, "default", "web", propagation=Propagation.ORPHAN)
        await cluster.gone(DEPLOYMENTS, "web")
        left = cluster.store.get(REPLICASETS, "default", replica_set["metadata"]["name"])
        assert "ownerReferences" not in left["metadata"]
        assert len(cluster.store.list(PODS)[0]) == 1


def test_the_hash_changes_with_the_template() -> None:
    first = deployment()["spec"]["template"]
    second = deployment("1")["spec"]["template"]
    assert template_hash(first) == template_hash(deployment()["spec"]["template"])
    assert template_hash(first) != template_hash(second)
