"""When a Deployment takes a pod for available, and what it keeps of its past."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import STRATEGIC_PATCH

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

SLEEP = "import time; time.sleep(600)"
REVISION = "deployment.kubernetes.io/revision"


def deploy(space: Space, **spec: Any) -> Object:
    template = {
        "metadata": {"labels": {"app": "one"}},
        "spec": space.pod_spec(SLEEP, restartPolicy="Always"),
    }
    body = {"replicas": 1, "selector": {"matchLabels": {"app": "one"}}, "template": template, **spec}
    return space.create("deployments", {"metadata": {"name": "one"}, "spec": body})


def settled(space: Space) -> Object:
    def holds(deployment: Object) -> bool:
        status = deployment["status"]
        seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
        counts = {status.get(key) for key in ("replicas", "updatedReplicas", "availableReplicas")}
        return seen and counts == {deployment["spec"]["replicas"]}

    return space.wait("deployments", "one", holds)


def roll(space: Space, version: int) -> None:
    """Another revision, to its end."""
    container = {"name": "main", "env": [{"name": "VERSION", "value": str(version)}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    space.patch("deployments", "one", patch, STRATEGIC_PATCH)
    settled(space)


def revisions(space: Space) -> set[str]:
    return {each["metadata"]["annotations"][REVISION] for each in space.list("replicasets")}


@pytest.mark.not_embedded("minReadySeconds")
def test_a_pod_is_available_after_it_was_ready_for_a_while(space: Space) -> None:
    """Deployments, Min Ready Seconds: ready without crashing for that long."""
    deploy(space, minReadySeconds=6)
    ready = space.wait("deployments", "one", lambda each: each["status"].get("readyReplicas") == 1)
    began = time.monotonic()
    assert not ready["status"].get("availableReplicas")
    assert ready["status"]["unavailableReplicas"] == 1
    space.wait("deployments", "one", lambda each: each["status"].get("availableReplicas") == 1)
    # The cluster counts in whole seconds, and what it tells takes its time to come.
    assert time.monotonic() - began > 3


@pytest.mark.not_embedded("minReadySeconds")
def test_the_old_pod_stays_until_the_new_one_is_available(space: Space) -> None:
    """Deployments, Min Ready Seconds: a rollout goes on only when new pods are available."""
    deploy(space)
    settled(space)
    [old] = space.names("pods")
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    space.patch("deployments", "one", {"spec": {"strategy": strategy, "minReadySeconds": 5}})
    container = {"name": "main", "env": [{"name": "VERSION", "value": "2"}]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    space.patch("deployments", "one", patch, STRATEGIC_PATCH)
    space.wait("deployments", "one", lambda each: each["status"].get("readyReplicas") == 2)
    assert "deletionTimestamp" not in space.get("pods", old)["metadata"]
    settled(space)
    space.wait_gone("pods", old)


def test_as_many_old_revisions_are_kept_as_told(space: Space) -> None:
    """Deployments, Revision History Limit: older ReplicaSets are garbage-collected."""
    deploy(space, revisionHistoryLimit=1)
    settled(space)
    [first] = space.names("replicasets")
    roll(space, 2)
    assert revisions(space) == {"1", "2"}
    roll(space, 3)
    space.wait_gone("replicasets", first)
    assert revisions(space) == {"2", "3"}


def test_no_old_revision_is_kept_when_told(space: Space) -> None:
    """Deployments, Revision History Limit: 0 cleans up all history."""
    deploy(space, revisionHistoryLimit=0)
    settled(space)
    [first] = space.names("replicasets")
    roll(space, 2)
    space.wait_gone("replicasets", first)
    assert revisions(space) == {"2"}
