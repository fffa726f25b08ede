"""Deployments, Services and what belongs to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import FAILS, STRATEGIC_PATCH, condition, conditions, config_map, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.conformance_client import Cluster, Object, Space

SLEEP = "import time; time.sleep(600)"
REVISION = "deployment.kubernetes.io/revision"


def deploy(space: Space, code: str = SLEEP, container: Object | None = None, **spec: Any) -> Object:
    pods = space.pod_spec(code, container=container, restartPolicy="Always")
    body = {
        "metadata": {"name": "one"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "one"}},
            "template": {"metadata": {"labels": {"app": "one"}}, "spec": pods},
            **spec,
        },
    }
    return space.create("deployments", body)


def settled(space: Space) -> Object:
    """The Deployment once all its replicas are new, and ready, and the old ones are gone."""

    def holds(deployment: Object) -> bool:
        status, wanted = deployment["status"], deployment["spec"]["replicas"]
        return (
            status.get("observedGeneration") == deployment["metadata"]["generation"]
            and status.get("updatedReplicas", 0) == wanted
            and status.get("availableReplicas", 0) == wanted
            and status.get("replicas", 0) == wanted
        )

    return space.wait("deployments", "one", holds)


def change(space: Space, **env: str) -> Object:
    """Another template: its variables."""
    wanted = [{"name": name, "value": value} for name, value in env.items()]
    container = {"name": "main", "env": [{"$patch": "replace"}, *wanted]}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    return space.patch("deployments", "one", patch, STRATEGIC_PATCH)


def replica_sets(space: Space) -> dict[str, Object]:
    """By revision."""
    return {each["metadata"]["annotations"][REVISION]: each for each in space.list("replicasets")}


def deployment_revision(space: Space) -> str:
    revision: str = space.get("deployments", "one")["metadata"]["annotations"][REVISION]
    return revision


def pods(space: Space) -> list[Object]:
    return [each for each in space.list("pods") if "deletionTimestamp" not in each["metadata"]]


def test_a_deployment_becomes_available(space: Space) -> None:
    """Deployments, Complete Deployment: Available, and Progressing with NewReplicaSetAvailable."""
    deploy(space)
    settled(space)
    deployment = space.wait(
        "deployments",
        "one",
        lambda each: condition(each, "Progressing").get("reason") == "NewReplicaSetAvailable",
    )
    assert conditions(deployment) == {"Available": "True", "Progressing": "True"}
    assert condition(deployment, "Available")["reason"] == "MinimumReplicasAvailable"
    assert deployment["status"]["readyReplicas"] == 2


def test_a_deployment_owns_a_replica_set_that_owns_pods(space: Space) -> None:
    """Deployments, Pod-template-hash label, and Owners and Dependents."""
    made = deploy(space)
    settled(space)
    [replica_set] = space.list("replicasets")
    [owner] = replica_set["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Deployment", made["metadata"]["uid"])
    template_hash = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert replica_set["metadata"]["name"] == f"one-{template_hash}"
    for pod in pods(space):
        assert pod["metadata"]["ownerReferences"][0]["uid"] == replica_set["metadata"]["uid"]
        assert pod["metadata"]["labels"]["pod-template-hash"] == template_hash


def test_a_changed_template_is_rolled_out(space: Space) -> None:
    """Deployments, Updating a Deployment: a new ReplicaSet; the old one stays, with no replicas."""
    deploy(space)
    settled(space)
    change(space, VERSION="2")
    deployment = settled(space)
    assert deployment["metadata"]["annotations"][REVISION] == "2"
    found = replica_sets(space)
    assert set(found) == {"1", "2"}
    assert (found["1"]["spec"]["replicas"], found["2"]["spec"]["replicas"]) == (0, 2)
    for pod in pods(space):
        assert pod["spec"]["containers"][0]["env"] == [{"name": "VERSION", "value": "2"}]


def test_a_rolling_update_keeps_pods_available(space: Space) -> None:
    """Deployments, Rolling Update Deployment: maxUnavailable 0 and maxSurge 1."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    deploy(space, strategy=strategy)
    settled(space)
    changed = change(space, VERSION="2")

    def finished(deployment: Object) -> bool:
        status = deployment["status"]
        if status.get("observedGeneration") != changed["metadata"]["generation"]:
            return False
        return status.get("updatedReplicas") == status.get("availableReplicas") == status.get("replicas") == 2

    history = space.history("deployments", changed, finished)
    assert min(each["status"].get("availableReplicas", 0) for each in history) >= 2
    assert max(each["status"].get("replicas", 0) for each in history) == 3
    assert deployment_revision(space) == "2"


@pytest.mark.not_embedded("Recreate")
def test_recreate_ends_the_old_pods_first(space: Space) -> None:
    """Deployments, Recreate Deployment: all existing pods are killed before new ones are created."""
    deploy(space, strategy={"type": "Recreate"})
    settled(space)
    old = {pod["metadata"]["name"] for pod in pods(space)}
    version = space.try_list("pods").json()["metadata"]["resourceVersion"]
    change(space, VERSION="2")
    settled(space)
    gone: set[str] = set()
    with space.watch("pods", resourceVersion=version) as events:
        for event in events:
            name, phase = event["object"]["metadata"]["name"], event["object"]["status"].get("phase")
            if name in old and (event["type"] == "DELETED" or phase in ("Succeeded", "Failed")):
                gone.add(name)
            if event["type"] == "ADDED" and name not in old:
                break
    assert gone == old


def test_an_old_template_is_an_old_revision_again(space: Space) -> None:
    """Deployments, Rolling Back a Deployment: the earlier ReplicaSet, as the newest revision."""
    deploy(space)
    settled(space)
    first = replica_sets(space)["1"]["metadata"]["uid"]
    change(space, VERSION="2")
    settled(space)
    change(space)
    settled(space)
    found = replica_sets(space)
    assert set(found) == {"2", "3"}
    assert found["3"]["metadata"]["uid"] == first


def test_a_deployment_is_scaled(space: Space) -> None:
    """Deployments, Scaling a Deployment: no new revision."""
    deploy(space, replicas=1)
    settled(space)
    space.patch("deployments", "one", {"spec": {"replicas": 3}}, subresource="scale")
    deployment = settled(space)
    assert deployment["metadata"]["annotations"][REVISION] == "1"
    assert len(pods(space)) == 3
    space.patch("deployments", "one", {"spec": {"replicas": 0}}, subresource="scale")
    settled(space)
    assert pods(space) == []


@pytest.mark.not_embedded("pause of a rollout")
def test_a_paused_deployment_rolls_nothing_out(space: Space) -> None:
    """Deployments, Pausing and Resuming a rollout."""
    deploy(space, replicas=1)
    settled(space)
    space.patch("deployments", "one", {"spec": {"paused": True}})
    changed = change(space, VERSION="2")
    generation = changed["metadata"]["generation"]
    space.wait("deployments", "one", lambda each: each["status"].get("observedGeneration") == generation)
    assert len(space.list("replicasets")) == 1
    space.patch("deployments", "one", {"spec": {"paused": False}})
    settled(space)
    assert len(space.list("replicasets")) == 2


def test_a_rollout_that_is_stuck_says_so(space: Space) -> None:
    """Deployments, Failed Deployment: Progressing False, ProgressDeadlineExceeded."""
    probe = {"exec": {"command": FAILS}, "periodSeconds": 1}
    deploy(space, container={"readinessProbe": probe}, progressDeadlineSeconds=2, replicas=1)
    deployment = space.wait("deployments", "one", lambda each: conditions(each).get("Progressing") == "False")
    assert condition(deployment, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert conditions(deployment)["Available"] == "False"


def test_a_deleted_pod_is_replaced(space: Space) -> None:
    """ReplicaSet, How a ReplicaSet works: creates pods as needed to reach the desired number."""
    deploy(space, replicas=1)
    settled(space)
    [pod] = pods(space)
    space.delete("pods", pod["metadata"]["name"])
    space.wait_gone("pods", pod["metadata"]["name"])
    settled(space)
    [other] = pods(space)
    assert other["metadata"]["uid"] != pod["metadata"]["uid"]


def test_a_deleted_deployment_takes_everything_along(space: Space) -> None:
    """Garbage Collection, Cascading deletion: background, through the ReplicaSet."""
    deploy(space, replicas=1)
    settled(space)
    [replica_set], [pod] = space.list("replicasets"), pods(space)
    space.try_delete("deployments", "one")
    space.wait_gone("replicasets", replica_set["metadata"]["name"])
    space.wait_gone("pods", pod["metadata"]["name"])


def owned(space: Space, name: str, *owners: Object, **more: Any) -> Object:
    references = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": each["metadata"]["name"],
            "uid": each["metadata"]["uid"],
        }
        | more
        for each in owners
    ]
    return space.create("configmaps", config_map(name, ownerReferences=references))


def test_a_dependent_goes_after_its_last_owner(space: Space) -> None:
    """Garbage Collection, Owners and dependents: deleted once all owners are gone."""
    owners = [space.create("configmaps", config_map(name)) for name in ("a", "b")]
    owned(space, "both", *owners)
    owned(space, "alone", owners[0])
    space.try_delete("configmaps", "a", propagationPolicy="Background")
    space.wait_gone("configmaps", "alone")
    space.get("configmaps", "both")
    space.try_delete("configmaps", "b", propagationPolicy="Background")
    space.wait_gone("configmaps", "both")


def test_a_dependent_of_an_owner_that_never_was_goes(space: Space) -> None:
    """Owners and Dependents, Owner references: one that does not resolve is treated as absent."""
    nobody = {"metadata": {"name": "nobody", "uid": "11111111-2222-3333-4444-555555555555"}}
    owned(space, "orphan", nobody)
    space.wait_gone("configmaps", "orphan")


def test_a_foreground_deletion_waits_for_blocking_dependents(space: Space) -> None:
    """Garbage Collection, Foreground cascading deletion: ownerReference.blockOwnerDeletion."""
    owner = space.create("configmaps", config_map("owner"))
    owned(space, "blocks", owner, blockOwnerDeletion=True)
    space.patch("configmaps", "blocks", {"metadata": {"finalizers": ["example.com/hold"]}})
    space.try_delete("configmaps", "owner", propagationPolicy="Foreground")
    space.wait("configmaps", "blocks", lambda each: "deletionTimestamp" in each["metadata"])
    assert "foregroundDeletion" in space.get("configmaps", "owner")["metadata"]["finalizers"]
    space.patch("configmaps", "blocks", {"metadata": {"finalizers": None}})
    space.wait_gone("configmaps", "owner")


def test_orphans_lose_their_owner(space: Space) -> None:
    """Garbage Collection, Orphaned dependents."""
    owner = space.create("configmaps", config_map("owner"))
    owned(space, "child", owner)
    space.try_delete("configmaps", "owner", propagationPolicy="Orphan")
    space.wait_gone("configmaps", "owner")
    assert "ownerReferences" not in space.get("configmaps", "child")["metadata"]


def test_a_deleted_namespace_takes_everything_along(cluster: Cluster) -> None:
    """Namespaces, Working with Namespaces: deleting one deletes what is in it."""
    space = cluster.make_space()
    space.create("configmaps", config_map("one", finalizers=["example.com/hold"]))
    space.remove_namespace_only()
    refused = space.try_create("configmaps", config_map("two"))
    status = refusal(refused, 403, "Forbidden")
    assert status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    space.patch("configmaps", "one", {"metadata": {"finalizers": None}})
    space.wait_gone("configmaps", "one")


def expose(space: Space, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    body = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "one"}, "ports": ports, **spec}}
    return space.create("services", body)


def endpoints(space: Space) -> dict[str, bool]:
    """Address -> ready, of all slices of the Service."""
    found = {}
    for each in space.list("endpointslices", labelSelector="kubernetes.io/service-name=web"):
        for endpoint in each.get("endpoints") or []:
            # Unknown counts as ready, says the API.
            found[endpoint["addresses"][0]] = endpoint["conditions"].get("ready") is not False
    return found


def wait_endpoints(space: Space, holds: Callable[[dict[str, bool]], bool]) -> None:
    """Until the addresses are so. Slices are filled in steps: the first that is told may be empty."""
    with space.watch("endpointslices", labelSelector="kubernetes.io/service-name=web") as events:
        for _ in events:
            if holds(endpoints(space)):
                return
    raise AssertionError(f"never so: {endpoints(space)}")


def wait_ready_endpoints(space: Space, wanted: set[str]) -> None:
    """Until exactly these addresses are ready."""
    wait_endpoints(space, lambda found: {address for address, ready in found.items() if ready} == wanted)


def test_a_service_names_the_ready_pods_it_selects(space: Space) -> None:
    """EndpointSlices: addresses of the pods that the selector matches, ready ones as ready."""
    expose(space)
    deploy(space)
    settled(space)
    wait_ready_endpoints(space, {pod["status"]["podIP"] for pod in pods(space)})
    [piece] = space.list("endpointslices", labelSelector="kubernetes.io/service-name=web")
    assert piece["addressType"] == "IPv4"
    assert [(each["name"], each["port"]) for each in piece["ports"]] == [("http", 8080)]
    assert {each["targetRef"]["name"] for each in piece["endpoints"]} == {
        pod["metadata"]["name"] for pod in pods(space)
    }


def test_a_service_leaves_out_pods_that_are_not_ready(space: Space) -> None:
    """EndpointSlices, Conditions: ready follows the pod's Ready condition."""
    expose(space)
    probe = {"exec": {"command": FAILS}, "periodSeconds": 1}
    deploy(space, container={"readinessProbe": probe}, replicas=1)
    with space.watch("pods") as events:
        address = next(ip for event in events if (ip := event["object"]["status"].get("podIP")))
    seen: list[bool] = []

    def is_there(found: dict[str, bool]) -> bool:
        seen.extend(found.values())
        return address in found

    wait_endpoints(space, is_there)
    assert set(seen) == {False}


def test_a_service_forgets_pods_that_are_gone(space: Space) -> None:
    """EndpointSlices, Management: the control plane keeps them matching."""
    expose(space)
    deploy(space)
    settled(space)
    wait_ready_endpoints(space, {pod["status"]["podIP"] for pod in pods(space)})
    space.patch("deployments", "one", {"spec": {"replicas": 0}})
    settled(space)
    wait_ready_endpoints(space, set())


def test_a_headless_service_has_no_address(space: Space) -> None:
    """Services, Headless Services: clusterIP None."""
    assert expose(space, clusterIP="None")["spec"]["clusterIP"] == "None"
