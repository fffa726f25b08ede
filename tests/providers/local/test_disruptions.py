"""Evictions, taints, priorities and quotas, beyond what the recordings show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from embedded import Running, condition, job, pod, script

from nighttrain.providers.local.cluster.machine.host import host_resources
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.resources import (
    JOBS,
    NODES,
    PODS,
    PRIORITYCLASSES,
    RESOURCEQUOTAS,
)

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

SLEEP = "import time; time.sleep(60)"


def _half_and_more() -> dict[str, Any]:
    return {"requests": {"cpu": f"{int(float(host_resources()['cpu']) * 600)}m"}}


def _create(http: httpx.Client, space: str, name: str) -> str:
    manifest = pod(name, "true")
    manifest["metadata"]["namespace"] = space
    path = f"/api/v1/namespaces/{space}/pods"
    http.post(path, json=manifest).raise_for_status()
    return f"{path}/{name}"


def test_eviction_of_a_pod(http: httpx.Client, space: str) -> None:
    path = _create(http, space, "p")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": space}}
    tried = http.post(f"{path}/eviction", json={**body, "deleteOptions": {"dryRun": ["All"]}})
    assert tried.status_code == 201
    assert "deletionTimestamp" not in http.get(path).json()["metadata"]
    answer = http.post(f"{path}/eviction", json=body)
    assert (answer.status_code, answer.json()["status"]) == (201, "Success")
    assert http.get(path).status_code == 404  # no node: nothing to wait for
    assert http.post(f"{path}/eviction", json=body).status_code == 404


def test_eviction_that_is_refused(http: httpx.Client, space: str) -> None:
    path = _create(http, space, "q")
    other = {"metadata": {"name": "other"}}
    assert http.post(f"{path}/eviction", json=other).status_code == 400
    assert http.post(f"{path}/eviction", json={"kind": "Pod"}).status_code == 400
    stale = {"deleteOptions": {"preconditions": {"uid": "no"}}}
    assert http.post(f"{path}/eviction", json=stale).status_code == 409
    assert http.get(f"{path}/eviction").status_code == 405
    assert not http.get(path).json().get("status", {}).get("conditions")


def test_quota_counts_and_amounts(http: httpx.Client, space: str) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"requests.cpu": "1", "count/secrets": 1}}}
    http.post(f"/api/v1/namespaces/{space}/resourcequotas", json=quota).raise_for_status()
    manifest = pod("big", "true", resources={"requests": {"cpu": "1500m"}})
    manifest["metadata"]["namespace"] = space
    refused = http.post(f"/api/v1/namespaces/{space}/pods", json=manifest)
    assert refused.status_code == 403
    wanted = (
        "exceeded quota: few, requested: requests.cpu=1500m, used: requests.cpu=0, limited: requests.cpu=1"
    )
    assert wanted in refused.json()["message"]
    secrets = f"/api/v1/namespaces/{space}/secrets"
    codes = [http.post(secrets, json={"metadata": {"generateName": "m-"}}).status_code for _ in range(2)]
    assert codes == [201, 403]


async def test_quota_says_what_is_used(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        quota = {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": {"pods": "2"}}}
        cluster.store.create(RESOURCEQUOTAS, quota)
        cluster.store.create(PODS, script("one", SLEEP))

        def used(number: str) -> Any:
            return lambda obj: ((obj.get("status") or {}).get("used") or {}).get("pods") == number

        await cluster.until(RESOURCEQUOTAS, "q", used("1"))
        cluster.store.delete(PODS, "default", "one", grace_period_seconds=0)
        await cluster.until(RESOURCEQUOTAS, "q", used("0"))


async def test_priority_comes_from_its_class(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PRIORITYCLASSES, {"metadata": {"name": "high"}, "value": 7})
        made = cluster.store.create(PODS, script("p", "1", spec={"priorityClassName": "high"}))
        assert made["spec"]["priority"] == 7
        for spec in ({"priorityClassName": "absent"}, {"priority": 5}):
            with pytest.raises(ApiError) as caught:
                cluster.store.create(PODS, script("r", "1", spec=spec))
            assert caught.value.code == 403


async def test_binding_is_no_new_generation(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("p", "1"))
        bound = await cluster.pod_phase("p", "Succeeded")
        assert (bool(bound["spec"]["nodeName"]), bound["metadata"]["generation"]) == (True, 1)


async def test_pods_of_equal_priority_are_not_preempted(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("first", SLEEP, resources=_half_and_more()))
        await cluster.pod_phase("first", "Running")
        cluster.store.create(PODS, script("second", "1", resources=_half_and_more()))
        await cluster.until(PODS, "second", lambda obj: condition(obj, "PodScheduled", "False"))
        first = cluster.store.find(PODS, "default", "first") or {}
        assert "deletionTimestamp" not in first["metadata"]


async def test_node_with_a_taint_takes_only_who_tolerates_it(tmp_path: Path) -> None:
    taint = {"key": "kept", "value": "1", "effect": "NoSchedule"}
    async with Running(tmp_path) as cluster:
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].update(taints=[taint]))
        await cluster.until(NODES, "node1", lambda node: node["spec"].get("taints"))
        toleration = {"tolerations": [{"key": "kept", "operator": "Exists"}]}
        cluster.store.create(PODS, script("waits", "1"))
        cluster.store.create(PODS, script("comes", "1", spec=toleration))
        await cluster.pod_phase("comes", "Succeeded")
        waits = await cluster.until(PODS, "waits", lambda obj: condition(obj, "PodScheduled", "False"))
        assert "untolerated taint" in (condition(waits, "PodScheduled", "False") or {})["message"]
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].pop("taints"))
        await cluster.pod_phase("waits", "Succeeded")


async def test_a_cordoned_node_takes_nobody_and_says_why(tmp_path: Path) -> None:
    taint = {"key": "kept", "effect": "NoSchedule"}
    async with Running(tmp_path) as cluster:
        spec = {"unschedulable": True, "taints": [taint]}
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].update(spec))
        cluster.store.create(PODS, script("waits", "1"))
        waits = await cluster.until(PODS, "waits", lambda obj: condition(obj, "PodScheduled", "False"))
        assert (condition(waits, "PodScheduled", "False") or {})["message"].startswith(
            "0/1 nodes are available: 1 node(s) were unschedulable. "
        )
        # Who bears the cordon meets the taint.
        toleration = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}
        cluster.store.create(PODS, script("bears", "1", spec={"tolerations": [toleration]}))
        bears = await cluster.until(PODS, "bears", lambda obj: condition(obj, "PodScheduled", "False"))
        assert "untolerated taint" in (condition(bears, "PodScheduled", "False") or {})["message"]
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].clear())
        await cluster.pod_phase("waits", "Succeeded")


async def test_a_gated_pod_comes_when_its_gates_are_gone(tmp_path: Path) -> None:
    gates = {"schedulingGates": [{"name": "example.com/wait"}]}
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("p", "1", spec=gates))
        cluster.store.mutate(PODS, "default", "p", lambda pod: pod["spec"].pop("schedulingGates"))
        pod = await cluster.pod_phase("p", "Succeeded")
        (scheduled,) = [each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled"]
        assert (scheduled["status"], scheduled.get("reason")) == ("True", None)


async def test_toleration_ends_after_its_seconds(tmp_path: Path) -> None:
    taint = {"key": "gone", "effect": "NoExecute"}
    wait = {"key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    short = {"tolerations": [wait]}
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, job("j", SLEEP))
        cluster.store.create(PODS, script("p", SLEEP, spec=short))
        await cluster.pod_phase("p", "Running")
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].update(taints=[taint]))
        await cluster.until(JOBS, "j", lambda obj: condition(obj, "Failed"))
        await cluster.gone(PODS, "p")
        evicted = [obj for _type, obj in cluster.history(PODS) if condition(obj, "DisruptionTarget")]
        assert {"p", "j"} == {obj["metadata"]["name"].split("-")[0] for obj in evicted}
