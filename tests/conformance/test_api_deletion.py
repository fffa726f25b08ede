"""Deleting: preconditions, finalizers, what is left to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import causes, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Space

pytestmark = pytest.mark.api

ANOTHER_UID = "11111111-2222-3333-4444-555555555555"


def held(space: Space, name: str = "one") -> dict[str, Any]:
    """A ConfigMap with a finalizer."""
    return space.create("configmaps", config_map(name, finalizers=["example.com/hold"]))


def let_go(space: Space, name: str = "one") -> dict[str, Any]:
    return space.patch("configmaps", name, {"metadata": {"finalizers": None}})


def test_delete_answers_success_and_the_object_is_gone(space: Space) -> None:
    """API Conventions, Response Status Kind: Success, with the uid of what was deleted."""
    created = space.create("configmaps", config_map("one"))
    status = space.delete("configmaps", "one")
    assert (status["kind"], status["status"]) == ("Status", "Success")
    assert status["details"]["uid"] == created["metadata"]["uid"]
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


def test_delete_of_an_absent_object_is_not_found(space: Space) -> None:
    """API Conventions, HTTP Status codes, 404."""
    refusal(space.try_delete("configmaps", "none"), 404, "NotFound")


def test_a_finalizer_holds_a_deleted_object(space: Space) -> None:
    """Finalizers, How finalizers work: deletionTimestamp is set, the object stays readable."""
    held(space)
    answer = space.try_delete("configmaps", "one")
    assert answer.status_code in (200, 202)
    metadata = space.get("configmaps", "one")["metadata"]
    assert metadata["deletionTimestamp"]
    assert metadata["finalizers"] == ["example.com/hold"]
    let_go(space)


def test_the_last_finalizer_lets_the_object_go(space: Space) -> None:
    """Finalizers, How finalizers work: removed once metadata.finalizers is empty."""
    held(space)
    space.try_delete("configmaps", "one")
    let_go(space)
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


def test_removing_a_finalizer_of_a_living_object_deletes_nothing(space: Space) -> None:
    """Finalizers, How finalizers work: only objects marked for deletion go."""
    held(space)
    let_go(space)
    assert "deletionTimestamp" not in space.get("configmaps", "one")["metadata"]


def test_the_order_of_finalizers_does_not_matter(space: Space) -> None:
    """ObjectMeta, finalizers: may be processed and removed in any order."""
    space.create("configmaps", config_map("one", finalizers=["example.com/a", "example.com/b"]))
    space.try_delete("configmaps", "one")
    space.patch("configmaps", "one", {"metadata": {"finalizers": ["example.com/a"]}})
    assert space.get("configmaps", "one")["metadata"]["finalizers"] == ["example.com/a"]
    let_go(space)
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


def test_a_deletion_cannot_be_taken_back(space: Space) -> None:
    """ObjectMeta, deletionTimestamp: once set it may not be unset."""
    held(space)
    space.try_delete("configmaps", "one")
    before = space.get("configmaps", "one")["metadata"]["deletionTimestamp"]
    space.try_patch("configmaps", "one", {"metadata": {"deletionTimestamp": None}})
    assert space.get("configmaps", "one")["metadata"]["deletionTimestamp"] == before
    let_go(space)


def test_no_finalizer_is_added_to_a_deleted_object(space: Space) -> None:
    """ObjectMeta, finalizers: once deletionTimestamp is set, entries can only be removed."""
    held(space)
    space.try_delete("configmaps", "one")
    patch = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    answer = space.try_patch("configmaps", "one", patch)
    assert causes(answer) == {("metadata.finalizers", "FieldValueForbidden")}
    let_go(space)


def test_a_deleted_object_that_is_held_can_still_be_changed(space: Space) -> None:
    """Finalizers, How finalizers work: controllers still work on it."""
    held(space)
    space.try_delete("configmaps", "one")
    assert space.patch("configmaps", "one", {"data": {"a": "1"}})["data"] == {"a": "1"}
    let_go(space)


def test_a_deleted_object_that_is_held_keeps_its_name(space: Space) -> None:
    """Object Names and IDs: one object of a name at a time."""
    held(space)
    space.try_delete("configmaps", "one")
    refusal(space.try_create("configmaps", config_map("one")), 409, "AlreadyExists")
    let_go(space)


def test_a_finalizer_needs_a_qualified_name(space: Space) -> None:
    """Finalizers, and ObjectMeta, finalizers: names are qualified."""
    answer = space.try_create("configmaps", config_map("one", finalizers=["not a name"]))
    assert "metadata.finalizers" in {field.split("[")[0] for field, _ in causes(answer)}


def test_delete_with_the_uid_of_another_occurrence(space: Space) -> None:
    """DeleteOptions, preconditions: must be fulfilled, else 409 Conflict."""
    space.create("configmaps", config_map("one"))
    options = {"preconditions": {"uid": ANOTHER_UID}}
    refusal(space.try_delete("configmaps", "one", options), 409, "Conflict")
    space.get("configmaps", "one")


def test_delete_with_an_old_version(space: Space) -> None:
    """Preconditions, resourceVersion: the target's version."""
    created = space.create("configmaps", config_map("one"))
    space.patch("configmaps", "one", {"data": {"a": "1"}})
    options = {"preconditions": {"resourceVersion": created["metadata"]["resourceVersion"]}}
    refusal(space.try_delete("configmaps", "one", options), 409, "Conflict")
    space.get("configmaps", "one")


def test_delete_with_preconditions_that_hold(space: Space) -> None:
    """DeleteOptions, preconditions."""
    metadata = space.create("configmaps", config_map("one"))["metadata"]
    wanted = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    space.delete("configmaps", "one", {"preconditions": wanted})
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


def test_an_unknown_propagation_is_refused(space: Space) -> None:
    """DeleteOptions, propagationPolicy: Orphan, Background or Foreground."""
    space.create("configmaps", config_map("one"))
    refusal(space.try_delete("configmaps", "one", propagationPolicy="Sideways"), 422, "Invalid")
    space.get("configmaps", "one")


@pytest.mark.not_embedded("orphanDependents")
def test_only_one_way_to_say_what_happens_to_dependents(space: Space) -> None:
    """DeleteOptions, orphanDependents: either it or propagationPolicy may be set, not both."""
    space.create("configmaps", config_map("one"))
    options = {"orphanDependents": True, "propagationPolicy": "Foreground"}
    refusal(space.try_delete("configmaps", "one", options), 422, "Invalid")
    space.get("configmaps", "one")


@pytest.mark.not_embedded("deletion of collections")
def test_a_collection_is_deleted_by_selector(space: Space) -> None:
    """API Reference, Delete Collection: labelSelector."""
    for name, colour in (("one", "red"), ("two", "red"), ("three", "blue")):
        space.create("configmaps", config_map(name, labels={"colour": colour}))
    assert space.try_delete("configmaps", labelSelector="colour=red").status_code == 200
    assert space.names("configmaps", labelSelector="colour") == {"three"}


def test_a_pod_that_runs_nowhere_goes_at_once(space: Space) -> None:
    """Pod Lifecycle, Termination of Pods: the grace period is for what runs."""
    spec = {"nodeSelector": {"conformance": "no-such-node"}, "containers": [{"name": "a", "image": "x"}]}
    space.create("pods", {"metadata": {"name": "one"}, "spec": spec})
    assert space.delete("pods", "one")["kind"] == "Pod"
    refusal(space.try_get("pods", "one"), 404, "NotFound")


def test_a_foreground_deletion_is_marked_on_the_owner(space: Space) -> None:
    """Garbage Collection, Foreground cascading deletion: the finalizer foregroundDeletion."""
    held(space)
    answer = space.try_delete("configmaps", "one", propagationPolicy="Foreground")
    assert answer.status_code in (200, 202)
    # As the deletion left it: where a garbage collector runs, the mark may be gone a moment later.
    metadata = answer.json()["metadata"]
    assert metadata["deletionTimestamp"]
    assert set(metadata["finalizers"]) == {"example.com/hold", "foregroundDeletion"}
    let_go(space)
