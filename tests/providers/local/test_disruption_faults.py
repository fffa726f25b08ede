"""Pods evicted at a call that a test chooses."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.cluster_without_http import Recording, condition
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

CORE = "/api/v1/namespaces/default"


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
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


def test_the_nth_call_evicts_a_pod_as_recorded(cluster: EmbeddedCluster, http: httpx.Client) -> None:
    run(http, "train", "other")
    fault = Fault.evict("tra*", verb="get", resource="pods", name="other", nth=2)
    cluster.faults.add(fault)
    http.get(f"{CORE}/pods/other")
    http.get(f"{CORE}/pods/train")
    before = http.get(f"{CORE}/pods").json()
    assert [target(each)[0] for each in before["items"]] == ["", ""]
    assert http.get(f"{CORE}/pods/other").status_code == 200
    version = before["metadata"]["resourceVersion"]
    seen = history(http, f"{CORE}/pods", lambda type_, _obj: type_ == "DELETED", resourceVersion=version)
    assert {obj["metadata"]["name"] for _type, obj in seen} == {"train"}
    assert recorded_target("job-evicted-failed")[0] == "EvictionByEvictionAPI"
    assert target(seen[0][1]) == recorded_target("job-evicted-failed")
    # First marked as disrupted, then on its way out, then ended, then gone: as recorded.
    assert "deletionTimestamp" not in seen[0][1]["metadata"]
    assert "deletionTimestamp" in seen[1][1]["metadata"]
    assert seen[-1][1]["status"]["phase"] == "Failed"
    assert cluster.faults.struck(fault) == 1


def test_an_eviction_names_its_pods() -> None:
    with pytest.raises(ValueError, match="name the pod"):
        Fault.evict("")
