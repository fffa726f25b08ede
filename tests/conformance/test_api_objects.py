"""One object at a time: create, read, replace, and what the server keeps for itself."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import MERGE_PATCH, config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Cluster, Space

pytestmark = pytest.mark.api


def deployment(name: str, **spec: Any) -> dict[str, Any]:
    """One that asks for no pods: nothing has to run."""
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "example"}]},
    }
    selector = {"matchLabels": {"app": name}}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": selector, "template": template, **spec},
    }


def test_create_answers_201_with_what_the_server_added(space: Space) -> None:
    """API Conventions, Metadata: uid, resourceVersion and creationTimestamp are set by the system."""
    answer = space.try_create("configmaps", config_map("one", {"a": "b"}))
    assert answer.status_code == 201
    created = answer.json()
    metadata = created["metadata"]
    assert (created["kind"], created["apiVersion"], created["data"]) == ("ConfigMap", "v1", {"a": "b"})
    assert (metadata["name"], metadata["namespace"]) == ("one", space.name)
    assert metadata["uid"]
    assert metadata["resourceVersion"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", metadata["creationTimestamp"])
    assert space.get("configmaps", "one") == created


def test_uid_and_version_of_a_new_object_are_not_the_clients_to_choose(space: Space) -> None:
    """API Conventions, Metadata: a uid is unique in time and space, and set by the server."""
    wanted = config_map("one", uid="11111111-2222-3333-4444-555555555555")
    created = space.create("configmaps", wanted)
    assert created["metadata"]["uid"] != wanted["metadata"]["uid"]


def test_the_same_name_again_is_a_conflict(space: Space) -> None:
    """API Conventions, HTTP Status codes, 409: AlreadyExists on create."""
    space.create("configmaps", config_map("one"))
    status = refusal(space.try_create("configmaps", config_map("one")), 409, "AlreadyExists")
    assert status["details"] == {"name": "one", "kind": "configmaps"}


def test_names_are_unique_for_a_kind_and_a_namespace_only(space: Space) -> None:
    """Object Names and IDs, Names: unique for that type of resource."""
    space.create("configmaps", config_map("one"))
    space.create("secrets", {"metadata": {"name": "one"}})


def test_a_recreated_object_has_another_uid(space: Space) -> None:
    """Object Names and IDs, UIDs: distinguish between historical occurrences of similar entities."""
    first = space.create("configmaps", config_map("one"))
    space.delete("configmaps", "one")
    assert space.create("configmaps", config_map("one"))["metadata"]["uid"] != first["metadata"]["uid"]


def test_generate_name_makes_unique_names(space: Space) -> None:
    """API Concepts, Generated values: generateName is a prefix of a unique name."""
    body = {"metadata": {"generateName": "some-"}}
    names = {space.create("configmaps", body)["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(re.fullmatch(r"some-[a-z0-9]{5}", name) for name in names)


def test_a_name_wins_over_generate_name(space: Space) -> None:
    """ObjectMeta, generateName: an optional prefix, used only if the name has not been provided."""
    created = space.create("configmaps", config_map("chosen", generateName="some-"))
    assert created["metadata"]["name"] == "chosen"


def test_an_object_needs_a_name(space: Space) -> None:
    """ObjectMeta, name: required when creating resources, unless generateName is given."""
    status = refusal(space.try_create("configmaps", {"metadata": {}}), 422, "Invalid")
    assert status["details"]["causes"][0]["field"] == "metadata.name"


def test_create_in_a_namespace_that_is_not_there(cluster: Cluster) -> None:
    """Namespaces: objects live in a namespace that exists."""
    path = "/api/v1/namespaces/conformance-nowhere/configmaps"
    status = refusal(cluster.call("POST", path, config_map("one")), 404, "NotFound")
    assert status["details"] == {"name": "conformance-nowhere", "kind": "namespaces"}


def test_an_absent_object_is_not_found(space: Space) -> None:
    """API Conventions, Response Status Kind: details name the object that was asked for."""
    status = refusal(space.try_get("jobs", "none"), 404, "NotFound")
    assert status["details"] == {"name": "none", "group": "batch", "kind": "jobs"}


def test_the_objects_namespace_must_be_the_paths(space: Space) -> None:
    """API Conventions, Idempotency: name and namespace in the body must match the URL."""
    refusal(space.try_create("configmaps", config_map("one", namespace="another")), 400, "BadRequest")


def test_the_objects_kind_must_be_the_paths(space: Space) -> None:
    """API Conventions, Types (Kinds): a kind tells a client what schema the object has."""
    body = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "one"}}
    refusal(space.try_create("configmaps", body), 400, "BadRequest")


def test_the_objects_version_must_be_the_paths(space: Space) -> None:
    """API Conventions, Types (Kinds): apiVersion identifies the schema."""
    body = {"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "one"}}
    refusal(space.try_create("configmaps", body), 400, "BadRequest")


def test_a_body_that_is_no_json_is_a_bad_request(space: Space) -> None:
    """API Conventions, HTTP Status codes, 400: invalid or malformed."""
    refusal(space.try_create("configmaps", '{"metadata":'), 400, "BadRequest")


def test_a_value_of_the_wrong_type_is_a_bad_request(space: Space) -> None:
    """API Conventions, Primitive types: a string is not a number."""
    body = {"metadata": {"name": "one"}, "data": {"a": 1}}
    refusal(space.try_create("configmaps", body), 400, "BadRequest")


@pytest.mark.not_embedded("bodies in YAML")
def test_yaml_is_accepted(space: Space) -> None:
    """API Concepts, Alternate representations: YAML."""
    answer = space.try_create("configmaps", "metadata: {name: one}\ndata: {a: b}\n", media="application/yaml")
    assert answer.status_code == 201
    assert answer.json()["data"] == {"a": "b"}


def test_an_unknown_media_type_is_refused(space: Space) -> None:
    """API Concepts, Alternate representations: 415 for a body that cannot be read."""
    answer = space.try_create("configmaps", "<one/>", media="application/xml")
    refusal(answer, 415, "UnsupportedMediaType")


def test_an_answer_that_cannot_be_had_is_not_acceptable(space: Space) -> None:
    """API Concepts, Alternate representations: 406 when no representation asked for is supported."""
    headers = {"Accept": "application/xml"}
    answer = space.cluster.http.get(space.path("configmaps"), headers=headers)
    refusal(answer, 406, "NotAcceptable")


def test_replace_drops_what_is_left_out(space: Space) -> None:
    """API Conventions, Verbs on Resources: PUT replaces the whole object."""
    space.create("configmaps", config_map("one", {"a": "b"}, labels={"x": "y"}))
    replaced = space.update("configmaps", config_map("one", {"c": "d"}))
    assert replaced["data"] == {"c": "d"}
    assert "labels" not in replaced["metadata"]


def test_replace_with_the_version_that_was_read(space: Space) -> None:
    """API Concepts, Updates to existing resources: the resourceVersion read is sent back."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    created["data"]["a"] = "2"
    replaced = space.update("configmaps", created)
    assert replaced["data"] == {"a": "2"}
    assert replaced["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"]
    assert replaced["metadata"]["uid"] == created["metadata"]["uid"]


def test_replace_with_an_old_version_is_a_conflict(space: Space) -> None:
    """API Conventions, Concurrency Control and Consistency: optimistic concurrency, 409."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    space.update("configmaps", config_map("one", {"a": "2"}))
    created["data"]["a"] = "3"
    status = refusal(space.try_update("configmaps", created), 409, "Conflict")
    assert status["details"] == {"name": "one", "kind": "configmaps"}
    assert space.get("configmaps", "one")["data"] == {"a": "2"}


def test_replace_without_a_version_is_unconditional(space: Space) -> None:
    """API Conventions, Concurrency Control and Consistency: without one the last writer wins."""
    space.create("configmaps", config_map("one", {"a": "1"}))
    assert space.update("configmaps", config_map("one", {"a": "2"}))["data"] == {"a": "2"}


def test_replace_with_another_uid_is_a_conflict(space: Space) -> None:
    """ObjectMeta, uid: the object meant is another occurrence."""
    space.create("configmaps", config_map("one"))
    other = config_map("one", uid="11111111-2222-3333-4444-555555555555")
    refusal(space.try_update("configmaps", other), 409, "Conflict")


def test_replace_of_an_absent_object_is_not_found(space: Space) -> None:
    """API Conventions, HTTP Status codes, 404."""
    refusal(space.try_update("configmaps", config_map("none")), 404, "NotFound")


def test_the_name_in_the_body_must_be_the_paths(space: Space) -> None:
    """API Conventions, Idempotency: the name in the body must match the URL."""
    space.create("configmaps", config_map("one"))
    answer = space.cluster.call("PUT", space.path("configmaps", "one"), config_map("two"))
    refusal(answer, 400, "BadRequest")


def test_a_replace_that_changes_nothing_is_no_new_version(space: Space) -> None:
    """API Concepts, Resource versions: a resourceVersion identifies a state of the object."""
    created = space.create("configmaps", config_map("one", {"a": "b"}))
    assert space.update("configmaps", created)["metadata"] == created["metadata"]


def test_creation_time_cannot_be_changed(space: Space) -> None:
    """ObjectMeta, creationTimestamp: populated by the system, read-only."""
    created = space.create("configmaps", config_map("one"))
    patch = {"metadata": {"creationTimestamp": "2001-01-01T00:00:00Z"}}
    patched = space.patch("configmaps", "one", patch)
    assert patched["metadata"]["creationTimestamp"] == created["metadata"]["creationTimestamp"]


@pytest.mark.not_embedded("minReadySeconds")
def test_generation_counts_changes_of_the_spec_only(space: Space) -> None:
    """API Conventions, Metadata: generation is a sequence number of the desired state."""
    created = space.create("deployments", deployment("one"))
    assert created["metadata"]["generation"] == 1
    labelled = space.patch("deployments", "one", {"metadata": {"labels": {"x": "y"}}})
    assert labelled["metadata"]["generation"] == 1
    changed = space.patch("deployments", "one", {"spec": {"minReadySeconds": 3}})
    assert changed["metadata"]["generation"] == 2


def test_status_is_ignored_when_an_object_is_created(space: Space) -> None:
    """API Conventions, Spec and Status: POST ignores the status of kinds with a status sub-resource."""
    created = space.create("jobs", {**job("one"), "status": {"succeeded": 7}})
    assert "succeeded" not in created.get("status", {})


def job(name: str) -> dict[str, Any]:
    """A Job that is suspended: nothing has to run."""
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example"}]}
    return {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": spec}}}


def test_replace_does_not_touch_the_status(space: Space) -> None:
    """API Conventions, Spec and Status: PUT of the object ignores changes to the status."""
    made = space.create("pods", unscheduled("one"))
    space.patch("pods", "one", {"status": {"message": "seen"}}, subresource="status")
    made = space.get("pods", "one")
    made["status"]["message"] = "forged"
    made["metadata"]["labels"] = {"x": "y"}
    # A scheduler may have written its condition in between.
    del made["metadata"]["resourceVersion"]
    replaced = space.update("pods", made)
    assert replaced["metadata"]["labels"] == {"x": "y"}
    assert replaced["status"]["message"] == "seen"


def unscheduled(name: str, **spec: Any) -> dict[str, Any]:
    """A pod that no node is good for: nothing has to run."""
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"conformance": "no-such-node"},
            "containers": [{"name": "main", "image": "example"}],
            **spec,
        },
    }


def test_the_status_is_written_through_its_sub_resource_alone(space: Space) -> None:
    """API Conventions, Spec and Status: PUT of /status ignores changes to the spec."""
    made = space.create("pods", unscheduled("one"))
    made["spec"]["activeDeadlineSeconds"] = 5
    made["status"]["message"] = "seen"
    # A scheduler may have written its condition in between.
    del made["metadata"]["resourceVersion"]
    written = space.update("pods", made, "status")
    assert written["status"]["message"] == "seen"
    assert "activeDeadlineSeconds" not in written["spec"]


def test_strict_field_validation_refuses_unknown_fields(space: Space) -> None:
    """API Concepts, Field validation, Strict: 400 that names the unknown fields."""
    body = deployment("one", replicaz=3)
    status = refusal(space.try_create("deployments", body, fieldValidation="Strict"), 400, "BadRequest")
    assert 'strict decoding error: unknown field "spec.replicaz"' in status["message"]


def test_strict_field_validation_names_fields_in_lists(space: Space) -> None:
    """API Concepts, Field validation, Strict: 400 that names the unknown fields."""
    body = unscheduled("one")
    body["spec"]["containers"][0]["imagee"] = "x"
    status = refusal(space.try_create("pods", body, fieldValidation="Strict"), 400, "BadRequest")
    assert 'unknown field "spec.containers[0].imagee"' in status["message"]


@pytest.mark.not_embedded("check of fields that are named twice")
def test_strict_field_validation_refuses_duplicate_fields(space: Space) -> None:
    """API Concepts, Field validation, Strict: duplicate fields are refused too."""
    body = '{"metadata":{"name":"one"},"data":{"a":"b"},"data":{"a":"c"}}'
    status = refusal(space.try_create("configmaps", body, fieldValidation="Strict"), 400, "BadRequest")
    assert 'duplicate field "data"' in status["message"]


def test_strict_field_validation_applies_to_patches(space: Space) -> None:
    """API Concepts, Field validation: for POST, PUT and PATCH."""
    space.create("deployments", deployment("one"))
    answer = space.try_patch("deployments", "one", {"spec": {"replicaz": 3}}, fieldValidation="Strict")
    # A patch that leads to an invalid object is unprocessable; a body that cannot be read is a bad request.
    assert answer.status_code in (400, 422)
    assert 'unknown field "spec.replicaz"' in answer.json()["message"]


def test_by_default_unknown_fields_are_dropped_with_a_warning(space: Space) -> None:
    """API Concepts, Field validation, Warn: the default; a warning for each field."""
    answer = space.try_create("deployments", deployment("one", replicaz=3))
    assert answer.status_code == 201
    assert "replicaz" not in answer.json()["spec"]
    assert 'unknown field \\"spec.replicaz\\"' in answer.headers["Warning"]
    assert answer.headers["Warning"].startswith("299 ")


def test_ignored_unknown_fields_are_dropped_silently(space: Space) -> None:
    """API Concepts, Field validation, Ignore."""
    answer = space.try_create("deployments", deployment("one", replicaz=3), fieldValidation="Ignore")
    assert answer.status_code == 201
    assert "replicaz" not in answer.json()["spec"]
    assert "Warning" not in answer.headers


def test_an_unknown_kind_of_field_validation_is_refused(space: Space) -> None:
    """API Concepts, Field validation: Ignore, Warn or Strict."""
    answer = space.try_create("configmaps", config_map("one"), fieldValidation="Sometimes")
    refusal(answer, 422, "Invalid")
    assert not space.list("configmaps", fieldSelector="metadata.name=one")


def test_a_dry_run_of_create_stores_nothing(space: Space) -> None:
    """API Concepts, Dry-run: the answer is as if it had been done, and nothing is kept."""
    answer = space.try_create("configmaps", config_map("one", {"a": "b"}), dryRun="All")
    assert answer.status_code == 201
    assert answer.json()["metadata"]["uid"]
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


def test_a_dry_run_validates_and_defaults(space: Space) -> None:
    """API Concepts, Dry-run: admission, validation and defaults take place."""
    made = space.create("deployments", deployment("one"), dryRun="All")
    assert made["spec"]["strategy"]["type"] == "RollingUpdate"
    body = deployment("one", replicas=-1)
    refusal(space.try_create("deployments", body, dryRun="All"), 422, "Invalid")


def test_a_dry_run_of_a_patch_changes_nothing(space: Space) -> None:
    """API Concepts, Dry-run: for PATCH too."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    assert space.patch("configmaps", "one", {"data": {"a": "2"}}, dryRun="All")["data"] == {"a": "2"}
    assert space.get("configmaps", "one") == created


def test_a_dry_run_of_delete_deletes_nothing(space: Space) -> None:
    """API Concepts, Dry-run: for DELETE too."""
    created = space.create("configmaps", config_map("one"))
    assert space.try_delete("configmaps", "one", dryRun="All").status_code == 200
    assert space.get("configmaps", "one") == created


def test_an_unknown_dry_run_is_refused_and_does_nothing(space: Space) -> None:
    """API Concepts, Dry-run: the only value is All."""
    refusal(space.try_create("configmaps", config_map("one"), dryRun="Some"), 422, "Invalid")
    refusal(space.try_get("configmaps", "one"), 404, "NotFound")


@pytest.mark.not_embedded("answers with metadata alone")
def test_only_the_metadata_of_an_object(space: Space) -> None:
    """API Concepts, Metadata-only fetches: PartialObjectMetadata."""
    created = space.create("configmaps", config_map("one", {"a": "b"}, labels={"x": "y"}))
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    answer = space.cluster.http.get(space.path("configmaps", "one"), headers={"Accept": accept}).json()
    assert (answer["kind"], answer["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert answer["metadata"]["uid"] == created["metadata"]["uid"]
    assert answer["metadata"]["labels"] == {"x": "y"}
    assert "data" not in answer


def test_annotations_hold_any_text(space: Space) -> None:
    """Annotations, Syntax and character set: values are not restricted."""
    text = json.dumps({"ü": ["\n", "'", '"']})
    created = space.create("configmaps", config_map("one", annotations={"example.com/any": text}))
    assert created["metadata"]["annotations"] == {"example.com/any": text}


def test_the_scale_of_a_deployment_is_read(space: Space) -> None:
    """API Conventions, Verbs on Resources: /scale is a view of the replicas."""
    made = space.create("deployments", deployment("one"))
    scale = space.cluster.call("GET", space.path("deployments", "one", "scale")).json()
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["metadata"]["uid"] == made["metadata"]["uid"]
    assert scale["status"]["selector"] == "app=one"
    assert scale["spec"].get("replicas", 0) == 0


@pytest.mark.not_embedded("pause of a rollout")
def test_the_scale_of_a_deployment_is_changed(space: Space) -> None:
    """API Conventions, Verbs on Resources: writing /scale changes the replicas alone."""
    space.create("deployments", deployment("one", paused=True))
    patched = space.patch("deployments", "one", {"spec": {"replicas": 3}}, MERGE_PATCH, "scale")
    assert patched["spec"]["replicas"] == 3
    assert space.get("deployments", "one")["spec"]["replicas"] == 3
    space.patch("deployments", "one", {"spec": {"replicas": 0}}, MERGE_PATCH, "scale")


def test_an_unknown_sub_resource_is_not_found(space: Space) -> None:
    """API Concepts, Resource URIs: sub-resources are part of the URI."""
    space.create("configmaps", config_map("one"))
    answer = space.cluster.call("GET", space.path("configmaps", "one", "status"))
    assert answer.status_code == 404


def test_a_method_that_means_nothing_is_not_allowed(space: Space) -> None:
    """API Conventions, HTTP Status codes, 405."""
    answer = space.cluster.call("POST", space.path("configmaps", "one"), config_map("one"))
    refusal(answer, 405, "MethodNotAllowed")
