"""Pods evicted and preempted, the node lost and returned, each at a call that a test chooses."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from embedded import Recording, condition

from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.faults.faults import Effect, Fault, FaultPlan
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

CORE = "/api/v1/namespaces/default"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
NODE = "/api/v1/nodes/node1"


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(
        images={"py": sys.executable}, toleration_seconds=1, job_back_off=BackOff(0.2, 1)
    ) as running:
        yield running


@pytest.fixture
def http(cluster: EmbeddedCluster) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=20) as client:
        yield client


def pod(name: str, command: str = "sleep 600") -> dict[str, Any]:
    container = {"name": "main", "image": "py", "command": ["sh", "-c", command]}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"metadata": {"name": name}, "spec": spec}


def history(http: httpx.Client, path: str, ends: Any, **query: str) -> list[tuple[str, dict[str, Any]]]:
    """The changes of a watch, up to the one that is wanted."""
    seen = []
    with http.stream("GET", path, params={"watch": "true", "timeoutSeconds": "20", **query}) as stream:
        for line in stream.iter_lines():
            event = json.loads(line)
            seen.append((event["type"], event["object"]))
            if ends(*seen[-1]):
                return seen
    raise AssertionError(f"not so within 20 s: {seen[-1:]}")


def run(http: httpx.Client, *names: str) -> None:
    for name in names:
        http.post(f"{CORE}/pods", json=pod(name)).raise_for_status()
        query = {"fieldSelector": f"metadata.name={name}"}
        history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Running", **query)


def target(obj: dict[str, Any]) -> tuple[str, str]:
    found = condition(obj, "DisruptionTarget") or {}
    return found.get("reason", ""), found.get("message", "")


def recorded_target(name: str) -> tuple[str, str]:
    seen = [target(obj) for _type, obj in Recording(name).changes("pods")]
    return next(each for each in seen if each[0])


@pytest.mark.parametrize(
    ("make", "scenario", "reason"),
    [
        (Fault.evict, "job-evicted-failed", "EvictionByEvictionAPI"),
        (Fault.preempt, "preempted", "PreemptionByScheduler"),
    ],
)
def test_the_nth_call_disrupts_a_pod_as_recorded(
    cluster: EmbeddedCluster, http: httpx.Client, make: Any, scenario: str, reason: str
) -> None:
    run(http, "train", "other")
    fault = make("tra*", verb="get", resource="pods", name="other", nth=2)
    cluster.faults.add(fault)
    http.get(f"{CORE}/pods/other")
    http.get(f"{CORE}/pods/train")
    before = http.get(f"{CORE}/pods").json()
    assert [target(each)[0] for each in before["items"]] == ["", ""]
    assert http.get(f"{CORE}/pods/other").status_code == 200
    version = before["metadata"]["resourceVersion"]
    seen = history(http, f"{CORE}/pods", lambda type_, _obj: type_ == "DELETED", resourceVersion=version)
    assert {obj["metadata"]["name"] for _type, obj in seen} == {"train"}
    assert recorded_target(scenario)[0] == reason
    assert target(seen[0][1]) == recorded_target(scenario)
    # First marked as disrupted, then on its way out, then ended, then gone: as recorded.
    assert "deletionTimestamp" not in seen[0][1]["metadata"]
    assert "deletionTimestamp" in seen[1][1]["metadata"]
    assert seen[-1][1]["status"]["phase"] == "Failed"
    assert cluster.faults.struck(fault) == 1
    preempted = [each for each in http.get(f"{CORE}/events").json()["items"] if each["reason"] == "Preempted"]
    assert len(preempted) == (1 if reason == "PreemptionByScheduler" else 0)


def test_a_lost_node_ends_its_pods_only_when_it_is_back(cluster: EmbeddedCluster, http: httpx.Client) -> None:
    cluster.faults.add(Fault.lose_node(verb="get", resource="nodes", name="node1", nth=2))
    template = pod("")["spec"]
    http.post(JOBS, json={"metadata": {"name": "j"}, "spec": {"template": {"spec": template}}})
    history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Running")
    assert condition(http.get(NODE).json(), "Ready")
    node = http.get(NODE).json()
    ready = condition(node, "Ready", "Unknown") or {}
    assert (ready["reason"], ready["message"]) == (
        "NodeStatusUnknown",
        "Kubelet stopped posting node status.",
    )
    taints = [(each["key"], each["effect"]) for each in node["spec"]["taints"]]
    unreachable = "node.kubernetes.io/unreachable"
    assert taints == [(unreachable, "NoSchedule"), (unreachable, "NoExecute")]

    seen = history(http, f"{CORE}/pods", lambda _type, obj: "deletionTimestamp" in obj["metadata"])
    leaving = seen[-1][1]
    name = leaving["metadata"]["name"]
    assert target(leaving) == recorded_target("node-taint")
    assert target(leaving)[0] == "DeletionByTaintManager"
    assert condition(leaving, "Ready", "False")
    assert leaving["status"]["phase"] == "Running"
    # The Job has replaced it; the other waits, as no node takes it, and the first is still there.
    waiting = history(http, f"{CORE}/pods", lambda _type, obj: condition(obj, "PodScheduled", "False"))[-1][1]
    assert "untolerated taint" in (condition(waiting, "PodScheduled", "False") or {})["message"]
    assert http.get(f"{CORE}/pods/{name}").json()["status"]["phase"] == "Running"
    assert http.get(f"{CORE}/pods/{name}/log").status_code == 500

    version = http.get(f"{CORE}/pods").json()["metadata"]["resourceVersion"]
    cluster.return_node()
    node = http.get(NODE).json()
    assert condition(node, "Ready")
    assert "taints" not in node["spec"]
    back = {"resourceVersion": version, "fieldSelector": f"metadata.name={name}"}
    history(http, f"{CORE}/pods", lambda type_, _obj: type_ == "DELETED", **back)
    only = {"fieldSelector": f"metadata.name={waiting['metadata']['name']}"}
    history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Running", **only)


def test_a_pod_of_a_lost_node_goes_at_once_by_force(cluster: EmbeddedCluster, http: httpx.Client) -> None:
    run(http, "stuck")
    cluster.lose_node()
    history(http, f"{CORE}/pods", lambda _type, obj: "deletionTimestamp" in obj["metadata"])
    assert http.get(f"{CORE}/pods/stuck").status_code == 200
    http.delete(f"{CORE}/pods/stuck", params={"gracePeriodSeconds": "0"}).raise_for_status()
    assert http.get(f"{CORE}/pods/stuck").status_code == 404
    # Another of its name waits for the node, and does not inherit its end.
    http.post(f"{CORE}/pods", json=pod("stuck", "true")).raise_for_status()
    cluster.return_node()
    history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Succeeded")


def test_pods_outlive_a_short_loss_and_say_what_happened_meanwhile(
    cluster: EmbeddedCluster, http: httpx.Client
) -> None:
    patient = pod("patient", "sleep 0.3; echo done")
    patient["spec"]["tolerations"] = [{"operator": "Exists"}]
    running = pod("running")
    running["spec"]["tolerations"] = [{"operator": "Exists"}]
    cluster.faults.add(Fault.lose_node(1.5, verb="list", resource="services"))
    for manifest in (patient, running):
        http.post(f"{CORE}/pods", json=manifest).raise_for_status()
    only = {"fieldSelector": "metadata.name=running"}
    history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Running", **only)
    http.get(f"{CORE}/services").raise_for_status()
    history(http, f"{CORE}/pods", lambda _type, obj: condition(obj, "Ready", "False"), **only)
    history(http, f"{CORE}/pods", lambda _type, obj: condition(obj, "Ready"), **only)
    ended = {"fieldSelector": "metadata.name=patient"}
    history(http, f"{CORE}/pods", lambda _type, obj: obj["status"]["phase"] == "Succeeded", **ended)
    assert not target(http.get(f"{CORE}/pods/running").json())[0]


def test_a_seed_makes_one_plan_of_disruptions() -> None:
    plans = [FaultPlan.random(seed, 40, pods="train-*").pending for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert [eval(repr(fault)) for fault in plans[0]] == plans[0]  # noqa: S307
    assert {fault.effect for fault in plans[0]} >= {Effect.EVICT, Effect.PREEMPT, Effect.LOSE_NODE}
    assert not any(fault.pod for fault in FaultPlan.random(1, 40).pending)


def test_a_disruption_names_its_pods() -> None:
    with pytest.raises(ValueError, match="name the pod"):
        Fault.evict("")
