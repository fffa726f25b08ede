"""Server-side apply: who manages which field, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import APPLY_PATCH, causes, config_map, refusal

if TYPE_CHECKING:
    import httpx

    from helpers.conformance_client import Object, Space

pytestmark = [pytest.mark.api, pytest.mark.not_embedded("server-side apply")]


def settings(data: dict[str, str], **metadata: Any) -> Object:
    """Without data the field is left out: an empty one is a field too, and two managers' quarrel."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", **config_map("one", data, **metadata)}
    return {key: value for key, value in body.items() if key != "data" or value}


def deployment(*containers: Object, **spec: Any) -> Object:
    """Of no replicas: nothing has to run."""
    template = {"metadata": {"labels": {"app": "one"}}, "spec": {"containers": list(containers)}}
    selector = {"matchLabels": {"app": "one"}}
    body = {"replicas": 0, "selector": selector, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "one"}, "spec": body}


def try_apply(space: Space, manager: str, body: Object, **query: Any) -> httpx.Response:
    kind = f"{body['kind'].lower()}s"
    return space.try_patch(kind, body["metadata"]["name"], body, APPLY_PATCH, fieldManager=manager, **query)


def apply(space: Space, manager: str, body: Object, **query: Any) -> Object:
    answer = try_apply(space, manager, body, **query)
    assert answer.status_code in (200, 201), answer.text
    applied: Object = answer.json()
    return applied


def conflicts(answer: httpx.Response) -> dict[str, str]:
    """Field -> message of an apply that was refused."""
    details = refusal(answer, 409, "Conflict")["details"]
    assert {each["reason"] for each in details["causes"]} == {"FieldManagerConflict"}
    return {each["field"]: each["message"] for each in details["causes"]}


def managed(obj: Object, manager: str) -> Object:
    """The fields that a manager has applied; empty if it manages none."""
    found = [
        each["fieldsV1"]
        for each in obj["metadata"].get("managedFields") or []
        if (each["manager"], each["operation"]) == (manager, "Apply")
    ]
    return found[0] if found else {}


def test_apply_creates_an_object_and_then_changes_it(space: Space) -> None:
    """Server-Side Apply, Field management: an apply creates what is not there."""
    assert try_apply(space, "one", settings({"a": "1"})).status_code == 201
    again = try_apply(space, "one", settings({"a": "2"}))
    assert (again.status_code, again.json()["data"]) == (200, {"a": "2"})


def test_the_manager_of_a_field_is_kept_with_the_object(space: Space) -> None:
    """Server-Side Apply, Field management: metadata.managedFields."""
    [entry] = apply(space, "one", settings({"a": "1"}))["metadata"]["managedFields"]
    assert entry.pop("time")
    assert entry == {
        "manager": "one",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}}},
    }


def test_the_same_apply_again_is_no_new_version(space: Space) -> None:
    """API Concepts, Resource versions: a resourceVersion identifies a state of the object."""
    first = apply(space, "one", settings({"a": "1"}))
    assert apply(space, "one", settings({"a": "1"}))["metadata"] == first["metadata"]


def test_a_conflict_names_every_field_and_its_manager(space: Space) -> None:
    """Server-Side Apply, Conflicts: the whole apply is refused."""
    apply(space, "one", settings({"a": "1", "b": "1"}))
    apply(space, "two", settings({"c": "1"}))
    refused = try_apply(space, "three", settings({"a": "2", "c": "2", "d": "2"}))
    assert conflicts(refused) == {".data.a": 'conflict with "one"', ".data.c": 'conflict with "two"'}
    assert space.get("configmaps", "one")["data"] == {"a": "1", "b": "1", "c": "1"}


def test_force_takes_value_and_field(space: Space) -> None:
    """Server-Side Apply, Conflicts: overwrite value, become sole manager."""
    apply(space, "one", settings({"a": "1", "b": "1"}))
    forced = apply(space, "two", settings({"a": "2"}), force="true")
    assert forced["data"] == {"a": "2", "b": "1"}
    assert managed(forced, "one") == {"f:data": {"f:b": {}}}
    assert managed(forced, "two") == {"f:data": {"f:a": {}}}
    refused = try_apply(space, "one", settings({"a": "1", "b": "1"}))
    assert conflicts(refused) == {".data.a": 'conflict with "two"'}


def test_a_field_that_is_left_to_the_other_is_no_conflict(space: Space) -> None:
    """Server-Side Apply, Conflicts: don't overwrite value, give up management claim."""
    apply(space, "one", settings({"a": "1", "b": "1"}))
    apply(space, "two", settings({"a": "2"}), force="true")
    assert apply(space, "one", settings({"b": "1"}))["data"] == {"a": "2", "b": "1"}


def test_the_same_value_is_shared(space: Space) -> None:
    """Server-Side Apply, Conflicts: don't overwrite value, become shared manager."""
    apply(space, "one", settings({"a": "1"}))
    shared = apply(space, "two", settings({"a": "1"}))
    assert managed(shared, "one") == managed(shared, "two") == {"f:data": {"f:a": {}}}
    # Neither of the two changes it alone now.
    assert conflicts(try_apply(space, "one", settings({"a": "2"}))) == {".data.a": 'conflict with "two"'}


def test_a_shared_field_goes_with_its_last_manager(space: Space) -> None:
    """Server-Side Apply, Field management: removed if nobody else manages it."""
    apply(space, "one", settings({"a": "1", "b": "1"}))
    apply(space, "two", settings({"a": "1"}))
    assert apply(space, "one", settings({"b": "1"}))["data"] == {"a": "1", "b": "1"}
    assert apply(space, "two", settings({}, labels={"x": "y"})).get("data") == {"b": "1"}


def test_a_field_that_is_given_up_is_removed(space: Space) -> None:
    """Server-Side Apply, Field management: what a manager leaves out of its next apply goes."""
    apply(space, "one", settings({"a": "1", "b": "1"}, labels={"x": "y"}))
    apply(space, "two", settings({"c": "1"}))
    left = apply(space, "one", settings({"a": "1"}))
    assert left["data"] == {"a": "1", "c": "1"}
    assert not left["metadata"].get("labels")


def test_another_kind_of_write_manages_too(space: Space) -> None:
    """Server-Side Apply, Using Server-Side Apply in a controller; operation Update."""
    apply(space, "one", settings({"a": "1", "b": "1"}))
    space.patch("configmaps", "one", {"data": {"a": "2"}}, fieldManager="editor")
    [message] = conflicts(try_apply(space, "one", settings({"a": "1", "b": "1"}))).values()
    assert message.startswith('conflict with "editor" using v1')
    assert apply(space, "one", settings({"a": "1", "b": "1"}), force="true")["data"]["a"] == "1"


def test_an_object_that_was_not_applied_is_somebodys(space: Space) -> None:
    """Server-Side Apply, Conflicts: with those who wrote without apply as well."""
    space.create("configmaps", config_map("one", {"a": "1"}), fieldManager="maker")
    assert set(conflicts(try_apply(space, "one", settings({"a": "2"})))) == {".data.a"}
    assert apply(space, "one", settings({"b": "1"}))["data"] == {"a": "1", "b": "1"}


MAIN = {"name": "main", "image": "one"}


def test_lists_are_merged_by_their_keys(space: Space) -> None:
    """Server-Side Apply, Merge strategy: listType map, as containers by name and env by name."""
    apply(space, "one", deployment({**MAIN, "env": [{"name": "A", "value": "1"}]}))
    # The second manager says nothing of the selector, nor of the image of the first one's container.
    main = {"name": "main", "env": [{"name": "B", "value": "2"}]}
    second = deployment(main, {"name": "side", "image": "two"})
    del second["spec"]["selector"]
    del second["spec"]["replicas"]
    containers = apply(space, "two", second)["spec"]["template"]["spec"]["containers"]
    assert {each["name"]: each["image"] for each in containers} == {"main": "one", "side": "two"}
    env = next(each["env"] for each in containers if each["name"] == "main")
    assert {each["name"]: each["value"] for each in env} == {"A": "1", "B": "2"}


def test_an_item_that_is_given_up_is_removed(space: Space) -> None:
    """Server-Side Apply, Merge strategy: items of other managers stay."""
    apply(space, "one", deployment(MAIN, {"name": "side", "image": "two"}))
    second = deployment({"name": "third", "image": "three"})
    apply(space, "two", second)
    left = apply(space, "one", deployment(MAIN))
    assert {each["name"] for each in left["spec"]["template"]["spec"]["containers"]} == {"main", "third"}


def test_a_conflict_in_a_list_names_the_item(space: Space) -> None:
    """Server-Side Apply, Conflicts: a path with the item's key."""
    apply(space, "one", deployment(MAIN))
    refused = try_apply(space, "two", deployment({"name": "main", "image": "other"}))
    assert set(conflicts(refused)) == {'.spec.template.spec.containers[name="main"].image'}


def test_an_atomic_list_has_one_manager(space: Space) -> None:
    """Server-Side Apply, Merge strategy: listType atomic is replaced as a whole."""
    apply(space, "one", deployment({**MAIN, "args": ["1", "2"]}))
    refused = try_apply(space, "two", deployment({"name": "main", "args": ["3"]}))
    path = '.spec.template.spec.containers[name="main"].args'
    assert set(conflicts(refused)) == {path}
    forced = apply(space, "two", deployment({"name": "main", "args": ["3"]}), force="true")
    assert forced["spec"]["template"]["spec"]["containers"][0]["args"] == ["3"]


def test_a_set_holds_what_each_manager_put_in(space: Space) -> None:
    """Server-Side Apply, Merge strategy: listType set, as finalizers."""
    apply(space, "one", settings({}, finalizers=["example.com/one"]))
    both = apply(space, "two", settings({}, finalizers=["example.com/two"]))
    assert set(both["metadata"]["finalizers"]) == {"example.com/one", "example.com/two"}
    left = apply(space, "one", settings({}, labels={"x": "y"}))
    assert left["metadata"]["finalizers"] == ["example.com/two"]
    space.patch("configmaps", "one", {"metadata": {"finalizers": None}})


def test_a_dry_run_of_apply_stores_nothing(space: Space) -> None:
    """API Concepts, Dry-run: for apply too, with its conflicts."""
    first = apply(space, "one", settings({"a": "1"}))
    assert apply(space, "one", settings({"a": "2"}), dryRun="All")["data"] == {"a": "2"}
    assert conflicts(try_apply(space, "two", settings({"a": "2"}), dryRun="All"))
    assert space.get("configmaps", "one") == first


def test_apply_with_an_old_version_is_a_conflict(space: Space) -> None:
    """API Concepts, Updates to existing resources: a resourceVersion makes an apply conditional."""
    first = apply(space, "one", settings({"a": "1"}))
    apply(space, "one", settings({"a": "2"}))
    version = first["metadata"]["resourceVersion"]
    refused = try_apply(space, "one", settings({"a": "3"}, resourceVersion=version))
    status = refusal(refused, 409, "Conflict")
    assert "the object has been modified" in status["message"]
    assert space.get("configmaps", "one")["data"] == {"a": "2"}


def test_who_applies_must_be_named(space: Space) -> None:
    """PatchOptions, fieldManager: required for apply requests."""
    answer = space.try_patch("configmaps", "one", settings({}), APPLY_PATCH)
    assert causes(answer) == {("fieldManager", "FieldValueRequired")}


def test_only_apply_can_be_forced(space: Space) -> None:
    """PatchOptions, force: must be unset for non-apply patch requests."""
    space.create("configmaps", config_map("one"))
    answer = space.try_patch("configmaps", "one", {"data": {"a": "1"}}, force="true")
    assert causes(answer) == {("force", "FieldValueForbidden")}


def test_managed_fields_are_not_applied(space: Space) -> None:
    """Server-Side Apply: metadata.managedFields must be nil in what is applied."""
    entry = {"manager": "other", "operation": "Apply", "apiVersion": "v1"}
    refusal(try_apply(space, "one", settings({}, managedFields=[entry])), 400, "BadRequest")
