"""What a namespace may hold, and how important a pod is."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import condition, config_map, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.conformance_client import Cluster, Object, Space

pytestmark = pytest.mark.not_embedded("quotas and priorities")

CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"


def limit(space: Space, **hard: str) -> None:
    """A quota, once a controller has counted for it: until then nothing is admitted that it limits."""
    names = {name.replace("_", "."): value for name, value in hard.items()}
    space.create("resourcequotas", {"metadata": {"name": "one"}, "spec": {"hard": names}})
    space.wait("resourcequotas", "one", lambda quota: quota["status"].get("hard") == names)


def used(space: Space, name: str, amount: str) -> None:
    """Until the quota counts this much."""
    space.wait("resourcequotas", "one", lambda quota: quota["status"].get("used", {}).get(name) == amount)


def secret(name: str) -> Object:
    return {"metadata": {"name": name}}


def idle(name: str, **spec: Any) -> Object:
    """A pod that no node is good for: nothing has to run."""
    container = {"name": "main", "image": "example"}
    return {
        "metadata": {"name": name},
        "spec": {"nodeSelector": {"conformance": "no-such-node"}, "containers": [container], **spec},
    }


def test_what_exceeds_a_quota_is_refused(space: Space) -> None:
    """Resource Quotas: 403 with a message that explains the constraint that would have been violated."""
    limit(space, secrets="1")
    space.create("secrets", secret("first"))
    used(space, "secrets", "1")
    status = refusal(space.try_create("secrets", secret("second")), 403, "Forbidden")
    assert (
        'secrets "second" is forbidden: exceeded quota: one, requested: secrets=1, used: secrets=1, '
        "limited: secrets=1"
    ) in status["message"]
    assert "second" not in space.names("secrets")
    # It limits one kind only.
    space.create("configmaps", config_map("another"))


def test_a_quota_counts_what_is_there(space: Space) -> None:
    """Resource Quotas: status.used follows; what is deleted makes room."""
    limit(space, secrets="1")
    used(space, "secrets", "0")
    space.create("secrets", secret("first"))
    used(space, "secrets", "1")
    space.delete("secrets", "first")
    used(space, "secrets", "0")
    space.create("secrets", secret("second"))


def test_a_quota_adds_requests_up(space: Space) -> None:
    """Resource Quotas, Compute Resource Quota: the sum over all pods that are not terminal."""
    limit(space, requests_cpu="1")

    def asking(name: str, cpu: str) -> Object:
        pod = idle(name)
        pod["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu}}
        return pod

    space.create("pods", asking("first", "600m"))
    used(space, "requests.cpu", "600m")
    status = refusal(space.try_create("pods", asking("second", "500m")), 403, "Forbidden")
    assert (
        "requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1" in status["message"]
    )
    space.create("pods", asking("third", "400m"))


def test_a_pod_must_say_what_a_quota_limits(space: Space) -> None:
    """Resource Quotas: with a quota on cpu or memory, every container must make a request."""
    limit(space, requests_cpu="1")
    status = refusal(space.try_create("pods", idle("one")), 403, "Forbidden")
    assert "failed quota: one: must specify requests.cpu" in status["message"]


def test_the_pods_of_a_job_wait_for_room(space: Space) -> None:
    """Resource Quotas: a controller is refused as everybody else is, and says so by an event."""
    limit(space, pods="0")
    template = {"spec": space.pod_spec("pass")}
    space.create("jobs", {"metadata": {"name": "one"}, "spec": {"template": template}})
    event = space.event("FailedCreate", "one")
    assert event["type"] == "Warning"
    assert "exceeded quota: one, requested: pods=1, used: pods=0, limited: pods=0" in event["message"]
    assert space.list("pods") == []
    assert not condition(space.get("jobs", "one"), "Failed")
    space.patch("resourcequotas", "one", {"spec": {"hard": {"pods": "1"}}})
    space.wait("jobs", "one", lambda job: job["status"].get("succeeded") == 1)


@pytest.fixture
def make_class(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Makes PriorityClasses that nobody else knows; needs the right to. They go behind the test."""
    made: list[str] = []

    def make(value: int, **more: Any) -> str:
        name = f"conformance-{secrets.token_hex(6)}"
        answer = cluster.call("POST", CLASSES, {"metadata": {"name": name}, "value": value, **more})
        if answer.status_code == 403:
            pytest.skip("no right to create PriorityClasses")
        assert answer.status_code == 201, answer.text
        made.append(name)
        return name

    yield make
    for name in made:
        cluster.call("DELETE", f"{CLASSES}/{name}")


@pytest.mark.api
def test_a_pod_gets_the_number_of_its_class(space: Space, make_class: Callable[..., str]) -> None:
    """Pod Priority and Preemption, Pod priority: the admission controller populates the integer."""
    name = make_class(-1000)
    made = space.create("pods", idle("one", priorityClassName=name))
    assert (made["spec"]["priority"], made["spec"]["preemptionPolicy"]) == (-1000, "PreemptLowerPriority")


@pytest.mark.api
def test_a_pod_gets_the_policy_of_its_class(space: Space, make_class: Callable[..., str]) -> None:
    """Pod Priority and Preemption, Non-preempting PriorityClass."""
    name = make_class(-1000, preemptionPolicy="Never")
    made = space.create("pods", idle("one", priorityClassName=name))
    assert made["spec"]["preemptionPolicy"] == "Never"
    other = idle("two", priorityClassName=name, preemptionPolicy="PreemptLowerPriority")
    refusal(space.try_create("pods", other), 403, "Forbidden")


@pytest.mark.api
def test_a_class_that_is_not_there(space: Space) -> None:
    """Pod Priority and Preemption, Pod priority: if the class is not found, the pod is rejected."""
    name = f"conformance-{secrets.token_hex(6)}"
    status = refusal(space.try_create("pods", idle("one", priorityClassName=name)), 403, "Forbidden")
    assert f"no PriorityClass with name {name} was found" in status["message"]


@pytest.mark.api
def test_a_number_is_not_the_pods_to_choose(space: Space, make_class: Callable[..., str]) -> None:
    """PodSpec, priority: with the admission controller enabled, users cannot set it."""
    name = make_class(-1000)
    refusal(space.try_create("pods", idle("one", priorityClassName=name, priority=-5)), 403, "Forbidden")
    # The number that it gets anyway may be said.
    space.create("pods", idle("two", priorityClassName=name, priority=-1000))


@pytest.mark.api
def test_a_template_that_names_a_class_is_not_changed(space: Space, make_class: Callable[..., str]) -> None:
    """Pod Priority and Preemption: priority is admitted with the pod, not with what makes pods."""
    name = make_class(-1000)
    template = {"spec": {**idle("one", priorityClassName=name)["spec"], "restartPolicy": "Never"}}
    body = {"metadata": {"name": "one"}, "spec": {"suspend": True, "template": template}}
    spec = space.create("jobs", body)["spec"]["template"]["spec"]
    assert (spec["priorityClassName"], spec.get("priority")) == (name, None)


@pytest.mark.api
def test_a_class_keeps_its_number(cluster: Cluster, make_class: Callable[..., str]) -> None:
    """PriorityClass: value cannot be updated; the description can."""
    name = make_class(-1000)
    path = f"{CLASSES}/{name}"
    media = "application/merge-patch+json"
    refused = cluster.call("PATCH", path, {"value": -999}, media=media)
    status = refusal(refused, 422, "Invalid")
    assert {each["field"] for each in status["details"]["causes"]} == {"value"}
    changed = cluster.call("PATCH", path, {"description": "for tests"}, media=media)
    assert (changed.status_code, changed.json()["value"]) == (200, -1000)


@pytest.mark.api
def test_classes_of_the_system(space: Space) -> None:
    """Pod Priority and Preemption, PriorityClass: system-cluster-critical and system-node-critical."""
    made = space.create("pods", idle("one", priorityClassName="system-cluster-critical"), dryRun="All")
    assert made["spec"]["priority"] == 2_000_000_000
