"""PersistentVolumeClaims: what the API says of them, and what pods do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import causes, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Cluster, Space

Object = dict[str, Any]

KIND = "persistentvolumeclaims"
# Nobody provides for it, so that a claim with it stays as it is.
NO_CLASS = "conformance-no-such-class"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def claim(name: str = "one", **spec: Any) -> Object:
    asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    return {"metadata": {"name": name}, "spec": asked | spec}


@pytest.fixture
def provided(cluster: Cluster, space: Space) -> Space:
    """A namespace of a cluster that provides volumes: it has a default class, or serves no classes."""
    classes = cluster.call("GET", "/apis/storage.k8s.io/v1/storageclasses")
    if classes.status_code == 200:
        annotations = [each["metadata"].get("annotations") or {} for each in classes.json()["items"]]
        if not any(each.get(DEFAULT_CLASS) == "true" for each in annotations):
            pytest.skip("this cluster has no default StorageClass")
    return space


def refused(space: Space, obj: Object) -> set[tuple[str, str]]:
    return causes(space.try_create(KIND, obj))


@pytest.mark.api
def test_a_claim_asks_for_modes_and_storage(space: Space) -> None:
    """Persistent Volumes, PersistentVolumeClaims: access modes and resources are required."""
    assert refused(space, {"metadata": {"name": "one"}, "spec": {}}) == {
        ("spec.accessModes", "FieldValueRequired"),
        ("spec.resources[storage]", "FieldValueRequired"),
    }
    assert refused(space, claim(accessModes=["ReadWriteSometimes"])) == {
        ("spec.accessModes", "FieldValueNotSupported")
    }


@pytest.mark.api
def test_a_pod_of_its_own_shares_with_no_other_mode(space: Space) -> None:
    """Persistent Volumes, Access Modes: ReadWriteOncePod stands alone."""
    modes = ["ReadWriteOncePod", "ReadWriteMany"]
    assert refused(space, claim(accessModes=modes)) == {("spec.accessModes", "FieldValueForbidden")}


@pytest.mark.api
@pytest.mark.not_embedded("protection of claims")
def test_a_new_claim_is_pending_and_protected(space: Space) -> None:
    """Persistent Volumes, Storage Object in Use Protection; PersistentVolumeClaim phases."""
    made = space.create(KIND, claim(storageClassName=NO_CLASS))
    assert made["status"] == {"phase": "Pending"}
    assert made["spec"]["volumeMode"] == "Filesystem"
    assert "kubernetes.io/pvc-protection" in made["metadata"]["finalizers"]


@pytest.mark.api
def test_a_claims_spec_is_not_changed(space: Space) -> None:
    """PersistentVolumeClaim: spec is immutable after creation."""
    space.create(KIND, claim(storageClassName=NO_CLASS))
    for change in (
        {"accessModes": ["ReadWriteMany"]},
        {"resources": {"requests": {"storage": "2Mi"}}},
        {"storageClassName": "another"},
    ):
        answer = space.try_patch(KIND, "one", {"spec": change})
        assert causes(answer) == {("spec", "FieldValueForbidden")}, change


def test_a_claim_that_nobody_uses_goes_at_once(space: Space) -> None:
    """Persistent Volumes, Storage Object in Use Protection: a claim that no pod uses is removed."""
    space.create(KIND, claim(storageClassName=NO_CLASS))
    space.delete(KIND, "one")
    space.wait_gone(KIND, "one")


def mounting(space: Space, name: str, code: str) -> Object:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "one"}}
    mount = {"name": "data", "mountPath": "/conformance"}
    return space.run(name, code, container={"volumeMounts": [mount]}, volumes=[volume])


def test_a_pod_waits_for_its_claim(space: Space) -> None:
    """Persistent Volumes, Claims As Volumes: a pod is not scheduled before its claim exists."""
    mounting(space, "early", "")
    event = space.event("FailedScheduling", "early")
    assert 'persistentvolumeclaim "one" not found' in event["message"]
    assert space.get("pods", "early")["status"]["phase"] == "Pending"


def test_what_one_pod_writes_the_next_one_reads(provided: Space) -> None:
    """Persistent Volumes, Claims As Volumes: the data outlive the pod."""
    provided.create(KIND, claim())
    mounting(provided, "writes", "open('/conformance/file', 'w').write('kept')")
    assert provided.finished("writes")["status"]["phase"] == "Succeeded"
    bound = provided.get(KIND, "one")
    assert bound["status"]["phase"] == "Bound"
    assert bound["spec"]["volumeName"]
    assert bound["status"]["accessModes"] == ["ReadWriteOnce"]
    mounting(provided, "reads", "print(open('/conformance/file').read())")
    assert provided.finished("reads")["status"]["phase"] == "Succeeded"
    assert provided.output("reads") == "kept\n"


@pytest.mark.not_embedded("protection of claims")
def test_a_claim_in_use_goes_after_its_pod(provided: Space) -> None:
    """Persistent Volumes, Storage Object in Use Protection: removal is postponed while a pod uses it."""
    provided.create(KIND, claim())
    mounting(provided, "uses", "import time; time.sleep(600)")
    provided.wait("pods", "uses", lambda pod: pod["status"].get("phase") == "Running")
    marked = provided.delete(KIND, "one")
    assert "deletionTimestamp" in marked["metadata"]
    assert "kubernetes.io/pvc-protection" in provided.get(KIND, "one")["metadata"]["finalizers"]
    provided.delete("pods", "uses", {"gracePeriodSeconds": 0})
    provided.wait_gone("pods", "uses")
    provided.wait_gone(KIND, "one")


@pytest.mark.api
def test_a_claim_that_is_not_there_is_not_found(space: Space) -> None:
    """API Concepts: 404 for what does not exist."""
    refusal(space.try_get(KIND, "one"), 404, "NotFound")
