"""The kinds of patch. Apply has a page of its own in the documentation and tests beside its code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import JSON_PATCH, STRATEGIC_PATCH, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Space

pytestmark = pytest.mark.api


def deployment(name: str, containers: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """Of no replicas: nothing has to run."""
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers, **spec}}
    selector = {"matchLabels": {"app": name}}
    return {"metadata": {"name": name}, "spec": {"replicas": 0, "selector": selector, "template": template}}


def pod_spec(obj: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = obj["spec"]["template"]["spec"]
    return spec


def in_template(**spec: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": spec}}}


TWO = [
    {"name": "a", "image": "one", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
    {"name": "b", "image": "two"},
]


def test_json_patch_adds_replaces_and_removes(space: Space) -> None:
    """API Concepts, PATCH: application/json-patch+json, RFC 6902."""
    space.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    patch = [
        {"op": "add", "path": "/data/c", "value": "3"},
        {"op": "replace", "path": "/data/a", "value": "0"},
        {"op": "remove", "path": "/data/b"},
    ]
    assert space.patch("configmaps", "one", patch, JSON_PATCH)["data"] == {"a": "0", "c": "3"}


def test_json_patch_moves_copies_and_appends(space: Space) -> None:
    """RFC 6902, 4: move and copy; "-" is the end of an array."""
    space.create("deployments", deployment("one", [{"name": "a", "image": "x", "args": ["1"]}]))
    base = "/spec/template/spec/containers/0"
    patch = [
        {"op": "add", "path": f"{base}/args/-", "value": "2"},
        {"op": "copy", "from": f"{base}/args", "path": f"{base}/command"},
        {"op": "move", "from": f"{base}/args/1", "path": f"{base}/args/0"},
    ]
    [container] = pod_spec(space.patch("deployments", "one", patch, JSON_PATCH))["containers"]
    assert (container["command"], container["args"]) == (["1", "2"], ["2", "1"])


def test_json_patch_does_all_or_nothing(space: Space) -> None:
    """RFC 6902, 5: a test that fails ends the whole patch."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    patch = [
        {"op": "replace", "path": "/data/a", "value": "2"},
        {"op": "test", "path": "/data/a", "value": "3"},
    ]
    refusal(space.try_patch("configmaps", "one", patch, JSON_PATCH), 422, "Invalid")
    assert space.get("configmaps", "one") == created


def test_json_patch_of_a_path_that_is_not_there(space: Space) -> None:
    """RFC 6902, 4.2: the target of remove must exist."""
    space.create("configmaps", config_map("one"))
    patch = [{"op": "remove", "path": "/data/none"}]
    refusal(space.try_patch("configmaps", "one", patch, JSON_PATCH), 422, "Invalid")


def test_json_patch_escapes_slashes(space: Space) -> None:
    """RFC 6901, 3: ~1 stands for a slash."""
    space.create("configmaps", config_map("one", annotations={"example.com/a": "1"}))
    patch = [{"op": "replace", "path": "/metadata/annotations/example.com~1a", "value": "2"}]
    patched = space.patch("configmaps", "one", patch, JSON_PATCH)
    assert patched["metadata"]["annotations"] == {"example.com/a": "2"}


def test_json_patch_must_be_a_list(space: Space) -> None:
    """API Conventions, HTTP Status codes, 400: malformed."""
    space.create("configmaps", config_map("one"))
    refusal(space.try_patch("configmaps", "one", {"data": {}}, JSON_PATCH), 400, "BadRequest")


def test_merge_patch_merges_objects_and_null_removes(space: Space) -> None:
    """API Concepts, PATCH: application/merge-patch+json, RFC 7386."""
    space.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    patched = space.patch("configmaps", "one", {"data": {"a": None, "c": "3"}})
    assert patched["data"] == {"b": "2", "c": "3"}


def test_merge_patch_replaces_lists(space: Space) -> None:
    """RFC 7386, 1: no way to change a part of an array."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(containers=[{"name": "c", "image": "three"}])
    assert [each["name"] for each in pod_spec(space.patch("deployments", "one", patch))["containers"]] == [
        "c"
    ]


def test_strategic_merge_patch_merges_containers_by_name(space: Space) -> None:
    """Update API Objects in Place, Use a strategic merge patch: patchMergeKey name."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(containers=[{"name": "b", "image": "new"}, {"name": "c", "image": "three"}])
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    images = {each["name"]: each["image"] for each in patched["containers"]}
    assert images == {"a": "one", "b": "new", "c": "three"}


def test_strategic_merge_patch_merges_lists_inside_of_lists(space: Space) -> None:
    """Update API Objects in Place, Notes on the strategic merge patch: env merges by name."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(containers=[{"name": "a", "env": [{"name": "Y", "value": "3"}]}])
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    [env] = [each["env"] for each in patched["containers"] if each["name"] == "a"]
    assert sorted((each["name"], each["value"]) for each in env) == [("X", "1"), ("Y", "3")]


def test_strategic_merge_patch_deletes_by_merge_key(space: Space) -> None:
    """Strategic Merge Patch, Delete Directive: $patch: delete with the merge key."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(containers=[{"name": "a", "$patch": "delete"}])
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    assert [each["name"] for each in patched["containers"]] == ["b"]


def test_strategic_merge_patch_replaces_a_list_when_told(space: Space) -> None:
    """Strategic Merge Patch, Replace Directive: $patch: replace in a list."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(containers=[{"$patch": "replace"}, {"name": "c", "image": "three"}])
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    assert [each["name"] for each in patched["containers"]] == ["c"]


def test_strategic_merge_patch_replaces_an_object_when_told(space: Space) -> None:
    """Strategic Merge Patch, Replace Directive: $patch: replace in a map."""
    space.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    patch = {"data": {"$patch": "replace", "c": "3"}}
    assert space.patch("configmaps", "one", patch, STRATEGIC_PATCH)["data"] == {"c": "3"}


@pytest.mark.not_embedded("Recreate")
def test_strategic_merge_patch_retains_keys(space: Space) -> None:
    """Update API Objects in Place, Use strategic merge patch to update with retainKeys."""
    space.create("deployments", deployment("one", TWO))
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    patched = space.patch("deployments", "one", patch, STRATEGIC_PATCH)
    assert patched["spec"]["strategy"] == {"type": "Recreate"}


def test_strategic_merge_patch_adds_to_finalizers(space: Space) -> None:
    """ObjectMeta, finalizers: patchStrategy merge."""
    space.create("configmaps", config_map("one", finalizers=["example.com/a"]))
    patch = {"metadata": {"finalizers": ["example.com/b"]}}
    patched = space.patch("configmaps", "one", patch, STRATEGIC_PATCH)
    assert set(patched["metadata"]["finalizers"]) == {"example.com/a", "example.com/b"}
    space.patch("configmaps", "one", {"metadata": {"finalizers": None}})


def test_strategic_merge_patch_deletes_from_lists_of_scalars(space: Space) -> None:
    """Strategic Merge Patch, deleteFromPrimitiveList Directive."""
    space.create("configmaps", config_map("one", finalizers=["example.com/a", "example.com/b"]))
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a"]}}
    patched = space.patch("configmaps", "one", patch, STRATEGIC_PATCH)
    assert patched["metadata"]["finalizers"] == ["example.com/b"]
    space.patch("configmaps", "one", {"metadata": {"finalizers": None}})


def test_strategic_merge_patch_orders_lists(space: Space) -> None:
    """Strategic Merge Patch, setElementOrder Directive."""
    space.create("deployments", deployment("one", TWO))
    patch = in_template(
        **{
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
            "containers": [{"name": "a", "image": "x"}],
        }
    )
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    assert [each["name"] for each in patched["containers"]] == ["b", "a"]


def test_strategic_merge_patch_replaces_atomic_lists(space: Space) -> None:
    """Update API Objects in Place, Notes: tolerations have no merge strategy and are replaced."""
    space.create("deployments", deployment("one", TWO, tolerations=[{"key": "a", "operator": "Exists"}]))
    patch = in_template(tolerations=[{"key": "b", "operator": "Exists"}])
    patched = pod_spec(space.patch("deployments", "one", patch, STRATEGIC_PATCH))
    assert patched["tolerations"] == [{"key": "b", "operator": "Exists"}]


def test_strategic_merge_patch_null_removes_a_field(space: Space) -> None:
    """Update API Objects in Place, Notes: null deletes."""
    space.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    assert space.patch("configmaps", "one", {"data": {"a": None}}, STRATEGIC_PATCH)["data"] == {"b": "2"}


def test_strategic_merge_patch_merges_ports_of_a_service(space: Space) -> None:
    """ServiceSpec, ports: patchMergeKey port."""
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    space.create("services", {"metadata": {"name": "one"}, "spec": {"ports": ports}})
    patch = {"spec": {"ports": [{"port": 81, "targetPort": 8081}]}}
    patched = space.patch("services", "one", patch, STRATEGIC_PATCH)
    targets = {each["name"]: each["targetPort"] for each in patched["spec"]["ports"]}
    assert targets == {"a": 80, "b": 8081}


def test_strategic_merge_patch_merges_conditions_of_a_status(space: Space) -> None:
    """PodStatus, conditions: patchMergeKey type."""
    body = {"nodeSelector": {"conformance": "no-such-node"}, "containers": [{"name": "a", "image": "x"}]}
    space.create("pods", {"metadata": {"name": "one"}, "spec": body})
    for kind in ("example.com/a", "example.com/b"):
        patch = {"status": {"conditions": [{"type": kind, "status": "True"}]}}
        patched = space.patch("pods", "one", patch, STRATEGIC_PATCH, "status")
    kinds = {each["type"] for each in patched["status"]["conditions"]}
    assert {"example.com/a", "example.com/b"} <= kinds


def test_a_patch_with_an_old_version_is_a_conflict(space: Space) -> None:
    """API Concepts, PATCH: with a resourceVersion in the patch the change is conditional."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    space.patch("configmaps", "one", {"data": {"a": "2"}})
    version = created["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version}, "data": {"a": "3"}}
    refusal(space.try_patch("configmaps", "one", patch), 409, "Conflict")
    assert space.get("configmaps", "one")["data"] == {"a": "2"}


def test_a_patch_of_an_absent_object_is_not_found(space: Space) -> None:
    """API Concepts, PATCH: only apply creates."""
    refusal(space.try_patch("configmaps", "none", {"data": {"a": "1"}}), 404, "NotFound")


def test_a_patch_cannot_rename(space: Space) -> None:
    """Object Names and IDs: the name is the object's for as long as it lives."""
    space.create("configmaps", config_map("one"))
    answer = space.try_patch("configmaps", "one", {"metadata": {"name": "two"}})
    refusal(answer, 400, "BadRequest")


def test_a_patch_is_validated(space: Space) -> None:
    """API Conventions, HTTP Status codes, 422: the patched object is held to the same rules."""
    space.create("deployments", deployment("one", TWO))
    refusal(space.try_patch("deployments", "one", {"spec": {"replicas": -1}}), 422, "Invalid")


def test_a_patch_that_changes_nothing_is_no_new_version(space: Space) -> None:
    """API Concepts, Resource versions: a resourceVersion identifies a state of the object."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    assert space.patch("configmaps", "one", {"data": {"a": "1"}})["metadata"] == created["metadata"]


def test_an_unknown_kind_of_patch_is_refused(space: Space) -> None:
    """API Concepts, PATCH: 415 names a patch type that is not supported."""
    space.create("configmaps", config_map("one"))
    answer = space.try_patch("configmaps", "one", {"data": {}}, "application/json")
    refusal(answer, 415, "UnsupportedMediaType")


def test_a_patch_of_the_status_changes_nothing_else(space: Space) -> None:
    """API Conventions, Spec and Status: PATCH of /status ignores the rest."""
    body = {"nodeSelector": {"conformance": "no-such-node"}, "containers": [{"name": "a", "image": "x"}]}
    space.create("pods", {"metadata": {"name": "one"}, "spec": body})
    patch = {"spec": {"activeDeadlineSeconds": 9}, "status": {"message": "seen"}}
    patched = space.patch("pods", "one", patch, subresource="status")
    assert patched["status"]["message"] == "seen"
    assert "activeDeadlineSeconds" not in patched["spec"]
