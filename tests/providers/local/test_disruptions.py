"""Evictions, quotas, scheduling, beyond what the recordings show."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx

from helpers.cluster_without_http import Recording, Running, condition, job, pod, script
from nighttrain.providers.local.cluster.machine.host import host_resources
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import NODES, PODS

if TYPE_CHECKING:
    from pathlib import Path

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


async def test_binding_is_no_new_generation(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("p", "1"))
        bound = await cluster.pod_phase("p", "Succeeded")
        assert (bool(bound["spec"]["nodeName"]), bound["metadata"]["generation"]) == (True, 1)


async def test_a_pod_that_does_not_fit_ends_nobody(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("first", SLEEP, resources=_half_and_more()))
        await cluster.pod_phase("first", "Running")
        cluster.store.create(PODS, script("second", "1", resources=_half_and_more()))
        await cluster.until(PODS, "second", lambda obj: condition(obj, "PodScheduled", "False"))
        first = cluster.store.find(PODS, "default", "first") or {}
        assert "deletionTimestamp" not in first["metadata"]


async def test_a_pod_waits_for_the_labels_it_selects(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("p", "1", spec={"nodeSelector": {"gpu": "yes"}}))
        waits = await cluster.until(PODS, "p", lambda obj: condition(obj, "PodScheduled", "False"))
        assert (condition(waits, "PodScheduled", "False") or {})["message"] == (
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to "
            "deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        )
        cluster.store.mutate(NODES, None, "node1", lambda node: node["metadata"]["labels"].update(gpu="yes"))
        await cluster.pod_phase("p", "Succeeded")


async def test_taints_cordon_and_classes_have_no_effect(tmp_path: Path) -> None:
    spec = {"unschedulable": True, "taints": [{"key": "kept", "effect": "NoExecute"}]}
    async with Running(tmp_path) as cluster:
        cluster.store.mutate(NODES, None, "node1", lambda node: node["spec"].update(spec))
        made = cluster.store.create(PODS, script("p", "1", spec={"priorityClassName": "absent"}))
        assert (made["spec"]["priority"], made["spec"]["priorityClassName"]) == (0, "absent")
        await cluster.pod_phase("p", "Succeeded")


def test_a_quota_strikes_clients_and_jobs_until_it_is_lifted() -> None:
    core, jobs = "/api/v1/namespaces/default", "/apis/batch/v1/namespaces/default/jobs"
    with EmbeddedCluster(images={"localhost/python": sys.executable}) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        with httpx.Client(base_url=cluster.url, headers=headers, timeout=20) as http:
            cluster.quota(pods=0)
            recorded = next(
                line["response"]["body"]
                for line in Recording("quota").lines
                if line["from"] == "http" and line["response"]["status"] == 403
            )
            refused = http.post(f"{core}/pods", json=script("direct", "1"))
            said = recorded["message"].replace("used: count/pods=1, limited: count/pods=1", "{}")
            assert refused.json()["message"] == said.format("used: count/pods=0, limited: count/pods=0")
            assert (refused.status_code, refused.json()["details"]) == (403, recorded["details"])
            http.post(jobs, json=job("j", "1")).raise_for_status()
            path = f"{core}/events?watch=true&fieldSelector=reason=FailedCreate"
            with http.stream("GET", path) as stream:
                event = json.loads(next(stream.iter_lines()))["object"]
            assert event["message"].startswith('Error creating: pods "j-')
            assert "is forbidden: exceeded quota: one, requested: count/pods=1," in event["message"]
            # Elsewhere nothing is limited.
            other = script("elsewhere", "1")
            other["metadata"]["namespace"] = "kube-public"
            http.post("/api/v1/namespaces/kube-public/pods", json=other).raise_for_status()
            cluster.quota(pods=None)
            with http.stream("GET", f"{jobs}?watch=true") as stream:
                for line in stream.iter_lines():
                    if json.loads(line)["object"]["status"].get("succeeded") == 1:
                        break
