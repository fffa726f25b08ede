"""CustomResourceDefinitions and their objects. They need the right to create definitions."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import MERGE_PATCH, WAIT_SECONDS, causes, condition, conditions, refusal
from helpers.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from helpers.conformance_client import Cluster, Object, Space

pytestmark = pytest.mark.api

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TABLE = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}

SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1},
        "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "replicas": {"type": "integer"},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "weight": {"type": "integer", "default": 1}},
            },
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
    "x-kubernetes-validations": [
        {"rule": "self.size < 10 || self.colour == 'blue'", "message": "what is big is blue"}
    ],
}
STATUS = {
    "type": "object",
    "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}},
}


def version(name: str = "v1", **more: Any) -> Object:
    schema = {"type": "object", "properties": {"spec": SPEC, "status": STATUS}}
    return {"name": name, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, **more}


class Kind:
    """One definition, of a group of its own, so that nobody else's is touched."""

    def __init__(self, cluster: Cluster, group: str) -> None:
        self.cluster = cluster
        self.group = group
        self.name = f"widgets.{group}"

    def definition(self, *versions: Object) -> Object:
        names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wdg"]}
        spec = {"group": self.group, "scope": "Namespaced", "names": names, "versions": list(versions)}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name},
            "spec": spec,
        }

    def try_declare(self, definition: Object) -> httpx.Response:
        answer = self.cluster.call("POST", DEFINITIONS, definition)
        if answer.status_code == 403:
            pytest.skip("no right to create CustomResourceDefinitions")
        return answer

    def declare(self, *versions: Object) -> Object:
        """Until its objects are served: a server takes a moment for it."""
        answer = self.try_declare(self.definition(*(versions or (version(),))))
        assert answer.status_code == 201, answer.text
        served = [each["name"] for each in answer.json()["spec"]["versions"] if each["served"]]
        until(lambda: conditions(self.read()).get("Established") == "True", WAIT_SECONDS)
        for name in served:
            # Discovery and the objects become known one by one.
            for path in (f"/apis/{self.group}/{name}", f"/apis/{self.group}/{name}/widgets"):
                until(lambda path=path: self.cluster.call("GET", path).status_code == 200, WAIT_SECONDS)
        return self.read()

    def read(self) -> Object:
        found: Object = self.cluster.call("GET", f"{DEFINITIONS}/{self.name}").json()
        return found

    def delete(self) -> httpx.Response:
        return self.cluster.call("DELETE", f"{DEFINITIONS}/{self.name}")

    def gone(self) -> bool:
        return self.cluster.call("GET", f"{DEFINITIONS}/{self.name}").status_code == 404

    def path(self, space: Space, name: str = "", subresource: str = "", version: str = "v1") -> str:
        parts = ["/apis", self.group, version, "namespaces", space.name, "widgets", name, subresource]
        return "/".join(part for part in parts if part)

    def try_create(self, space: Space, spec: Object, *, version: str = "v1", **query: Any) -> httpx.Response:
        body = {
            "apiVersion": f"{self.group}/{version}",
            "kind": "Widget",
            "metadata": {"name": "one"},
            "spec": spec,
        }
        return self.cluster.call("POST", self.path(space, version=version), body, **query)

    def create(self, space: Space, spec: Object, **query: Any) -> Object:
        answer = self.try_create(space, spec, **query)
        assert answer.status_code == 201, answer.text
        made: Object = answer.json()
        return made

    def patch(self, space: Space, patch: Object, subresource: str = "") -> Object:
        path = self.path(space, "one", subresource)
        answer = self.cluster.call("PATCH", path, patch, media=MERGE_PATCH)
        assert answer.status_code == 200, answer.text
        patched: Object = answer.json()
        return patched

    def table(self, space: Space) -> Object:
        found: Object = self.cluster.http.get(self.path(space), headers=TABLE).json()
        return found


@pytest.fixture
def kind(cluster: Cluster) -> Iterator[Kind]:
    made = Kind(cluster, f"conformance-{secrets.token_hex(6)}.example.com")
    yield made
    # Its objects have no finalizers: they go with it.
    made.delete()
    until(made.gone, WAIT_SECONDS)


def test_a_definition_is_established(kind: Kind) -> None:
    """Extend the Kubernetes API with CustomResourceDefinitions: the condition Established."""
    declared = kind.declare()
    assert conditions(declared)["NamesAccepted"] == "True"
    assert condition(declared, "Established")["reason"] == "InitialNamesAccepted"
    assert declared["status"]["acceptedNames"]["kind"] == "Widget"
    assert declared["status"]["acceptedNames"]["listKind"] == "WidgetList"
    assert declared["status"]["storedVersions"] == ["v1"]


def test_a_definition_is_discovered(kind: Kind) -> None:
    """Extend the Kubernetes API with CustomResourceDefinitions: a new RESTful resource path."""
    kind.declare(version(subresources={"status": {}}))
    resources = kind.cluster.call("GET", f"/apis/{kind.group}/v1").json()["resources"]
    rows = {each["name"]: each for each in resources}
    assert set(rows) == {"widgets", "widgets/status"}
    assert (rows["widgets"]["kind"], rows["widgets"]["namespaced"]) == ("Widget", True)
    assert rows["widgets"]["shortNames"] == ["wdg"]


def test_a_definition_is_named_by_plural_and_group(kind: Kind) -> None:
    """CustomResourceDefinition: name must match the spec, in the form plural.group."""
    body = kind.definition(version())
    body["metadata"]["name"] = f"gadgets.{kind.group}"
    found = causes(kind.try_declare(body))
    assert "metadata.name" in {field for field, _ in found}


def test_exactly_one_version_is_stored(kind: Kind) -> None:
    """Versions in CustomResourceDefinitions: one and only one version must be marked as storage."""
    for other in (version("v2"), version("v2", storage=False)):
        first = version(storage=other["storage"])
        found = causes(kind.try_declare(kind.definition(first, other)))
        assert ("spec.versions", "FieldValueInvalid") in found


@pytest.mark.not_embedded("check of structural schemas")
def test_a_schema_is_structural(kind: Kind) -> None:
    """Specifying a structural schema: a type for every field."""
    body = version()
    body["schema"] = {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"description": "any"}}}}
    found = causes(kind.try_declare(kind.definition(body)))
    where = "spec.validation.openAPIV3Schema.properties[spec].type"
    elsewhere = "spec.versions[0].schema.openAPIV3Schema.properties[spec].type"
    assert found & {(where, "FieldValueRequired"), (elsewhere, "FieldValueRequired")}


def test_missing_fields_have_their_defaults(kind: Kind, space: Space) -> None:
    """Defaulting: in requests, and when reading from etcd."""
    kind.declare()
    made = kind.create(space, {"size": 1, "parts": [{"name": "a"}, {"name": "b", "weight": 2}]})
    assert made["spec"]["colour"] == "red"
    assert made["spec"]["parts"] == [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]
    assert kind.cluster.call("GET", kind.path(space, "one")).json() == made


def test_a_null_that_may_not_be_gets_the_default(kind: Kind, space: Space) -> None:
    """Defaulting and Nullable: null is pruned before defaulting happens."""
    kind.declare()
    assert kind.create(space, {"size": 1, "colour": None})["spec"] == {"size": 1, "colour": "red"}


def test_unknown_fields_are_pruned(kind: Kind, space: Space) -> None:
    """Field pruning: unknown fields are not stored, unless they are preserved."""
    kind.declare()
    spec = {"size": 1, "other": 1, "parts": [{"name": "a", "more": 1}], "free": {"any": {"thing": [1]}}}
    made = kind.create(space, spec, fieldValidation="Ignore")
    assert made["spec"] == {
        "size": 1,
        "colour": "red",
        "parts": [{"name": "a", "weight": 1}],
        "free": {"any": {"thing": [1]}},
    }


def test_unknown_fields_are_refused_when_asked(kind: Kind, space: Space) -> None:
    """API Concepts, Field validation, Strict: for custom resources too."""
    kind.declare()
    answer = kind.try_create(space, {"size": 1, "other": 1}, fieldValidation="Strict")
    status = refusal(answer, 400, "BadRequest")
    assert 'unknown field "spec.other"' in status["message"]


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        ({"size": 0}, "spec.size", "FieldValueInvalid"),
        ({"size": "big"}, "spec.size", "FieldValueTypeInvalid"),
        ({"size": 1, "colour": "green"}, "spec.colour", "FieldValueNotSupported"),
        ({"colour": "red"}, "spec.size", "FieldValueRequired"),
        ({"size": 1, "parts": [{"weight": 1}]}, "spec.parts[0].name", "FieldValueRequired"),
        pytest.param(
            {"size": 1, "parts": [{"name": "a"}, {"name": "a"}]},
            "spec.parts[1]",
            "FieldValueDuplicate",
            marks=pytest.mark.not_embedded("keys of lists in custom objects"),
        ),
        pytest.param(
            {"size": 10}, "spec", "FieldValueInvalid", marks=pytest.mark.not_embedded("rules in CEL")
        ),
    ],
)
def test_objects_are_validated(kind: Kind, space: Space, spec: Object, field: str, reason: str) -> None:
    """Validation, and Validation rules: refused with the path of the field."""
    kind.declare()
    # A value that is not valid can be the reason for which a rule is not looked at: a cause of its own.
    assert (field, reason) in causes(kind.try_create(space, spec))
    assert kind.cluster.call("GET", kind.path(space)).json()["items"] == []


@pytest.mark.not_embedded("rules in CEL")
def test_a_rule_says_why(kind: Kind, space: Space) -> None:
    """Validation rules: the message of x-kubernetes-validations."""
    kind.declare()
    assert "what is big is blue" in kind.try_create(space, {"size": 10}).json()["message"]
    assert kind.create(space, {"size": 10, "colour": "blue"})["spec"]["size"] == 10


def test_a_patch_is_validated(kind: Kind, space: Space) -> None:
    """Validation: on updates as well."""
    kind.declare()
    kind.create(space, {"size": 1})
    path = kind.path(space, "one")
    answer = kind.cluster.call("PATCH", path, {"spec": {"size": 0}}, media=MERGE_PATCH)
    assert ("spec.size", "FieldValueInvalid") in causes(answer)
    assert kind.cluster.call("GET", path).json()["spec"]["size"] == 1


def test_the_status_has_a_path_of_its_own(kind: Kind, space: Space) -> None:
    """Status subresource: each path ignores what is the other's; only the spec is a new generation."""
    kind.declare(version(subresources={"status": {}}))
    body = kind.create(space, {"size": 1})
    assert body["metadata"]["generation"] == 1
    both = {"spec": {"size": 2}, "status": {"replicas": 2}}
    changed = kind.patch(space, both)
    assert (changed["spec"]["size"], changed.get("status")) == (2, None)
    assert changed["metadata"]["generation"] == 2
    both = {"spec": {"size": 3}, "status": {"replicas": 3}}
    changed = kind.patch(space, both, "status")
    assert (changed["spec"]["size"], changed["status"]) == (2, {"replicas": 3})
    assert changed["metadata"]["generation"] == 2


def test_a_status_is_not_created(kind: Kind, space: Space) -> None:
    """Status subresource: POST ignores it."""
    kind.declare(version(subresources={"status": {}}))
    body = {"metadata": {"name": "one"}, "spec": {"size": 1}, "status": {"replicas": 3}}
    full = {"apiVersion": f"{kind.group}/v1", "kind": "Widget", **body}
    assert "status" not in kind.cluster.call("POST", kind.path(space), full).json()


def test_without_a_status_subresource_there_is_none(kind: Kind, space: Space) -> None:
    """Status subresource: served when it is enabled."""
    kind.declare()
    kind.create(space, {"size": 1})
    assert kind.cluster.call("GET", kind.path(space, "one", "status")).status_code == 404


@pytest.mark.not_embedded("scale of custom objects")
def test_an_object_is_scaled(kind: Kind, space: Space) -> None:
    """Scale subresource: a view of the replicas at the paths the definition names."""
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    kind.declare(version(subresources={"status": {}, "scale": scale}))
    made = kind.create(space, {"size": 1, "replicas": 2})
    kind.patch(space, {"status": {"replicas": 1, "selector": "app=one"}}, "status")
    seen = kind.cluster.call("GET", kind.path(space, "one", "scale")).json()
    assert (seen["kind"], seen["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert seen["metadata"]["uid"] == made["metadata"]["uid"]
    assert (seen["spec"], seen["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "app=one"})
    assert kind.patch(space, {"spec": {"replicas": 5}}, "scale")["spec"] == {"replicas": 5}
    spec = kind.cluster.call("GET", kind.path(space, "one")).json()["spec"]
    assert spec == {"size": 1, "colour": "red", "replicas": 5}


def test_an_object_is_read_in_every_version(kind: Kind, space: Space) -> None:
    """Versions in CustomResourceDefinitions, conversion None: only apiVersion changes."""
    kind.declare(version(), version("v2", storage=False), version("v3", storage=False, served=False))
    made = kind.create(space, {"size": 1}, version="v2")
    assert made["apiVersion"] == f"{kind.group}/v2"
    read = kind.cluster.call("GET", kind.path(space, "one")).json()
    assert read["apiVersion"] == f"{kind.group}/v1"
    assert (read["spec"], read["metadata"]["uid"]) == (made["spec"], made["metadata"]["uid"])
    listed = kind.cluster.call("GET", kind.path(space, version="v2")).json()
    assert [each["apiVersion"] for each in listed["items"]] == [f"{kind.group}/v2"]
    # Not served is not found, whatever is stored.
    assert kind.cluster.call("GET", kind.path(space, "one", version="v3")).status_code == 404


def test_the_newest_stable_version_is_preferred(kind: Kind) -> None:
    """Versions in CustomResourceDefinitions, Version priority."""
    names = ("v1beta1", "v2", "v10", "v1alpha1")
    kind.declare(*(version(name, storage=name == "v2") for name in names))
    until(lambda: kind.cluster.call("GET", f"/apis/{kind.group}").status_code == 200, WAIT_SECONDS)
    group = kind.cluster.call("GET", f"/apis/{kind.group}").json()
    assert [each["version"] for each in group["versions"]] == ["v10", "v2", "v1beta1", "v1alpha1"]
    assert group["preferredVersion"]["version"] == "v10"


@pytest.mark.not_embedded("columns of custom objects")
def test_a_table_has_the_columns_of_the_definition(kind: Kind, space: Space) -> None:
    """Additional printer columns."""
    columns = [
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Colour", "type": "string", "jsonPath": ".spec.colour", "priority": 1},
        {"name": "Replicas", "type": "integer", "jsonPath": ".status.replicas"},
    ]
    kind.declare(version(additionalPrinterColumns=columns))
    kind.create(space, {"size": 3})
    table = kind.table(space)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    seen = [(each["name"], each["type"], each["priority"]) for each in table["columnDefinitions"]]
    assert seen == [
        ("Name", "string", 0),
        ("Size", "integer", 0),
        ("Colour", "string", 1),
        ("Replicas", "integer", 0),
    ]
    [row] = table["rows"]
    assert row["cells"] == ["one", 3, "red", None]


def test_a_table_without_columns_of_its_own(kind: Kind, space: Space) -> None:
    """Additional printer columns: by default the name and the age."""
    kind.declare()
    kind.create(space, {"size": 3})
    table = kind.table(space)
    assert [each["name"] for each in table["columnDefinitions"]] == ["Name", "Age"]
    assert table["rows"][0]["cells"][0] == "one"


def test_a_deleted_definition_takes_its_objects_along(kind: Kind, space: Space) -> None:
    """Delete a CustomResourceDefinition: the endpoint goes, with all objects stored in it."""
    kind.declare()
    kind.create(space, {"size": 3})
    assert kind.delete().status_code == 200
    until(kind.gone, WAIT_SECONDS)
    until(lambda: kind.cluster.call("GET", kind.path(space)).status_code == 404, WAIT_SECONDS)
    # The same definition again begins with nothing.
    kind.declare()
    assert kind.cluster.call("GET", kind.path(space)).json()["items"] == []
