"""A CustomResourceDefinition and its objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def definition(
    plural: str, spec: dict[str, Any], *, scope: str = "Namespaced", version: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A definition of one version whose objects have this schema of ``spec``."""
    kind = plural.capitalize().removesuffix("s")
    schema = {"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}
    versions = [
        {
            "name": "v1",
            "served": True,
            "storage": True,
            "schema": {"openAPIV3Schema": schema},
            **(version or {}),
        }
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.test.example.com"},
        "spec": {
            "group": "test.example.com",
            "scope": scope,
            "names": {"plural": plural, "kind": kind},
            "versions": versions,
        },
    }


def place(plural: str, space: str) -> str:
    return f"/apis/test.example.com/v1/namespaces/{space}/{plural}"


def declare(http: httpx.Client, plural: str, spec: dict[str, Any], **rest: Any) -> httpx.Response:
    answer = http.post(DEFINITIONS, json=definition(plural, spec, **rest))
    assert answer.status_code == 201, answer.text
    return answer


def refused(http: httpx.Client, path: str, spec: Any) -> list[tuple[str, str, str]]:
    answer = http.post(path, json={"metadata": {"name": "wrong"}, "spec": spec})
    assert answer.status_code == 422, answer.text
    causes = answer.json()["details"]["causes"]
    return [(each["field"], each["reason"], each["message"]) for each in causes]


@pytest.mark.parametrize(
    ("schema", "right", "wrong", "reason", "says"),
    [
        ({"type": "string", "enum": ["a", "b"]}, "a", "c", "NotSupported", 'supported values: "a", "b"'),
        ({"type": "string", "enum": ["a"], "nullable": True}, None, "c", "NotSupported", '"c"'),
        ({"type": "integer", "maximum": 3}, 3, 4, "Invalid", "4: must be less than or equal to 3"),
        ({"type": "number", "minimum": 0.5}, 0.5, 0, "Invalid", "0: must be greater than or equal to 0.5"),
        ({"type": "integer"}, 2, 2.5, "TypeInvalid", 'must be of type integer: "number"'),
        ({"type": "boolean"}, True, "yes", "TypeInvalid", 'must be of type boolean: "string"'),
        ({"x-kubernetes-int-or-string": True}, "25%", [1], "TypeInvalid", "must be of type integer,string"),
        ({"type": "string", "nullable": False}, "a", 1, "TypeInvalid", 'of type string: "integer"'),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"a": 1},
            {"a": "one"},
            "TypeInvalid",
            "spec.it.a in body must be of type integer",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"a": "1"},
            {},
            "Required",
            "Required value",
        ),
    ],
)
def test_values_are_held_to_the_schema(
    schema: dict[str, Any],
    right: Any,
    wrong: Any,
    reason: str,
    says: str,
    http: httpx.Client,
    space: str,
    request: pytest.FixtureRequest,
) -> None:
    plural = f"t{zlib.crc32(request.node.name.encode()):x}s"
    declare(http, plural, {"type": "object", "properties": {"it": schema}})
    path = place(plural, space)
    accepted = http.post(path, json={"metadata": {"name": "right"}, "spec": {"it": right}})
    assert accepted.status_code == 201, accepted.text
    assert accepted.json()["spec"]["it"] == right
    causes = refused(http, path, {"it": wrong})
    assert any(each[1] == f"FieldValue{reason}" and says in each[2] for each in causes), causes
    assert causes[0][0].startswith("spec.it")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, "a" * 40 + "b"),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "self == 'never'"}]}, "a"),
        ({"type": "string", "maxLength": 2}, "aaa"),
        ({"type": "string", "format": "ipv4"}, "10.0.0"),
        ({"type": "string", "format": "port"}, "a"),
        ({"format": "dns-label", "x-kubernetes-preserve-unknown-fields": True}, {"a": [None, {}]}),
        ({"type": "integer", "multipleOf": 5}, 7),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 1}, ["a", "b"]),
        ({"type": "string", "not": {"enum": ["c"]}}, "c"),
        ({"x-kubernetes-preserve-unknown-fields": True, "minimum": 3}, "text"),
        ({"type": "object", "additionalProperties": True}, {"empty": {}, "also": []}),
    ],
)
def test_what_is_not_checked_is_stored(
    schema: dict[str, Any], value: Any, http: httpx.Client, space: str, request: pytest.FixtureRequest
) -> None:
    """Rules in CEL, patterns, sizes, formats, combinations: docs/embedded-cluster.md."""
    plural = f"u{zlib.crc32(request.node.name.encode()):x}s"
    declare(http, plural, {"type": "object", "properties": {"it": schema}})
    made = http.post(place(plural, space), json={"metadata": {"name": "a"}, "spec": {"it": value}})
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["it"] == value


@pytest.mark.parametrize(
    "forbidden",
    [
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"patternProperties": {"(a+)+$": {"type": "string"}}, "additionalProperties": False},
        {"dependencies": {"a": ["b"]}},
    ],
)
def test_what_kubernetes_forbids_in_a_schema_does_no_harm(
    forbidden: dict[str, Any], http: httpx.Client, space: str, request: pytest.FixtureRequest
) -> None:
    plural = f"f{zlib.crc32(request.node.name.encode()):x}s"
    spec = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, **forbidden}
    asked = {"fieldValidation": "Strict"}
    assert http.post(DEFINITIONS, json=definition(plural, spec), params=asked).status_code == 400
    # Without being asked to be strict, the server leaves it out.
    declare(http, plural, spec)
    body = {"metadata": {"name": "a"}, "spec": {"a" * 40 + "b": 1, "a": 1}}
    assert http.post(place(plural, space), json=body).status_code in (201, 422)


def test_defaults_nulls_and_unknown_fields(http: httpx.Client, space: str) -> None:
    deep = {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 3}}}
    open_ended = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {"closed": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    properties = {
        "deep": deep,
        "open": open_ended,
        "maybe": {"type": "string", "nullable": True},
        "never": {"type": "string"},
        "list": {"type": "array", "items": deep},
    }
    declare(http, "defaults", {"type": "object", "properties": properties})
    spec = {
        "open": {"x": {"y": 1}, "closed": {"a": "1", "b": "2"}},
        "maybe": None,
        "never": None,
        "list": [{"n": 1, "z": 1}, {}],
    }
    made = http.post(place("defaults", space), json={"metadata": {"name": "a"}, "spec": spec})
    assert made.json()["spec"] == {
        "deep": {"n": 3},
        "open": {"x": {"y": 1}, "closed": {"a": "1"}},
        "maybe": None,
        "list": [{"n": 1}, {"n": 3}],
    }
    assert "spec.open.closed.b" in made.headers["warning"]
    assert "spec.list[0].z" in made.headers["warning"]


def test_without_a_status_of_its_own_every_change_is_a_generation(http: httpx.Client, space: str) -> None:
    declare(http, "plains", {"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    path = place("plains", space)
    body = {"metadata": {"name": "a"}, "spec": {"a": 1}, "status": {}}
    assert http.post(path, json=body).json()["status"] == {}
    merge = {"Content-Type": "application/merge-patch+json"}
    labelled = http.patch(f"{path}/a", headers=merge, content='{"metadata":{"labels":{"x":"y"}}}').json()
    assert labelled["metadata"]["generation"] == 1
    assert (
        http.patch(f"{path}/a", headers=merge, content='{"spec":{"a":2}}').json()["metadata"]["generation"]
        == 2
    )
    assert http.get(f"{path}/a/status").status_code == 404


def test_cluster_scope_and_names(http: httpx.Client) -> None:
    open_ended = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    declare(http, "globals", open_ended, scope="Cluster")
    path = "/apis/test.example.com/v1/globals"
    assert http.post(path, json={"metadata": {"name": "g"}, "spec": {"size": 3}}).status_code == 201
    assert http.get(path).json()["kind"] == "GlobalList"


def test_a_definition_goes_when_its_last_object_has_gone(http: httpx.Client, space: str) -> None:
    declare(http, "lasts", {"type": "object"})
    path = place("lasts", space)
    body = {"metadata": {"name": "a", "finalizers": ["example.com/held"]}, "spec": {}}
    http.post(path, json=body).raise_for_status()
    where = f"{DEFINITIONS}/lasts.test.example.com"
    conditions = http.delete(where).json()["status"]["conditions"]
    assert conditions[-1]["type"] == "Terminating"
    assert "deletionTimestamp" in http.get(f"{path}/a").json()["metadata"]
    assert http.post(path, json={"metadata": {"name": "b"}}).status_code == 405
    merge = {"Content-Type": "application/merge-patch+json"}
    http.patch(f"{path}/a", headers=merge, content='{"metadata":{"finalizers":null}}').raise_for_status()
    assert http.get(where).status_code == 404
    assert http.get(path).status_code == 404
    # The same name again begins anew.
    declare(http, "lasts", {"type": "object"})
    assert http.get(path).json()["items"] == []


def test_what_an_object_owned_goes_with_it(http: httpx.Client, space: str) -> None:
    declare(http, "owners", {"type": "object"})
    owner = http.post(place("owners", space), json={"metadata": {"name": "o"}}).json()
    reference = {
        "apiVersion": "test.example.com/v1",
        "kind": "Owner",
        "name": "o",
        "uid": owner["metadata"]["uid"],
    }
    maps = f"/api/v1/namespaces/{space}/configmaps"
    http.post(maps, json={"metadata": {"name": "c", "ownerReferences": [reference]}}).raise_for_status()
    http.delete(f"{place('owners', space)}/o", params={"propagationPolicy": "Foreground"}).raise_for_status()
    assert http.get(f"{place('owners', space)}/o").status_code == 404
    assert http.get(f"{maps}/c").status_code == 404


def test_an_updated_definition_serves_its_objects_on(http: httpx.Client, space: str) -> None:
    declare(http, "moves", {"type": "object", "properties": {"a": {"type": "string"}}})
    http.post(place("moves", space), json={"metadata": {"name": "m"}, "spec": {"a": "1"}}).raise_for_status()
    where = f"{DEFINITIONS}/moves.test.example.com"
    current = http.get(where).json()
    first = current["spec"]["versions"][0]
    second = {**json.loads(json.dumps(first)), "name": "v2"}
    spec = second["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["b"] = {"type": "integer", "default": 7}
    first["storage"] = False
    current["spec"]["versions"].append(second)
    current["spec"]["names"]["shortNames"] = ["mv"]
    changed = http.put(where, json=current)
    assert changed.status_code == 200, changed.text
    assert http.get(where).json()["status"]["storedVersions"] == ["v1", "v2"]
    newer = place("moves", space).replace("/v1/", "/v2/")
    assert http.get(f"{newer}/m").json()["apiVersion"] == "test.example.com/v2"
    made = http.post(newer, json={"metadata": {"name": "n"}, "spec": {}})
    assert made.json()["spec"] == {"b": 7}
    group = http.get("/apis/test.example.com").json()
    assert [each["version"] for each in group["versions"]] == ["v2", "v1"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda body: body["metadata"].update(name="other"), "metadata.name"),
        (lambda body: body["spec"].update(scope="World"), "spec.scope"),
        (lambda body: body["spec"]["versions"][0].update(storage=False), "spec.versions"),
        (lambda body: body["spec"]["versions"][0].pop("schema"), "openAPIV3Schema"),
        (lambda body: body["spec"].update(conversion={"strategy": "Webhook"}), "spec.conversion.strategy"),
        (lambda body: body["spec"]["names"].pop("kind"), "spec.names.kind"),
        (
            lambda body: body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(
                spec={"type": "number of things"}
            ),
            "openAPIV3Schema",
        ),
    ],
)
def test_a_wrong_definition_is_refused(change: Any, field: str, http: httpx.Client) -> None:
    body = definition("wrongs", {"type": "object"})
    change(body)
    answer = http.post(DEFINITIONS, json=body)
    assert answer.status_code == 422, answer.text
    assert any(field in each["field"] for each in answer.json()["details"]["causes"]), answer.text


def test_a_dry_run_deletes_nothing_and_a_definition_goes_with_its_objects(
    http: httpx.Client, space: str
) -> None:
    body = definition("collecteds", {"type": "object"})
    http.post(DEFINITIONS, json=body).raise_for_status()
    path = place("collecteds", space)
    http.post(path, json={"metadata": {"name": "a"}}).raise_for_status()
    http.delete(f"{DEFINITIONS}/collecteds.test.example.com", params={"dryRun": "All"}).raise_for_status()
    assert http.get(f"{path}/a").status_code == 200
    http.delete(f"{DEFINITIONS}/collecteds.test.example.com").raise_for_status()
    assert http.get(path).status_code == 404
    http.post(DEFINITIONS, json=body).raise_for_status()
    assert http.get(path).json()["items"] == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_works_with_a_kind_of_its_own(
    api_cluster: EmbeddedCluster, space: str, tmp_path: Path
) -> None:
    def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--kubeconfig", str(api_cluster.kubeconfig), "-n", space, *words]
        env = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)

    def manifest(name: str, body: dict[str, Any]) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(body))
        return str(path)

    spec = {"type": "object", "properties": {"size": {"type": "integer"}}}
    own = {"apiVersion": "test.example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}}
    declared = manifest("definition.json", definition("gadgets", spec))
    right = manifest("right.json", {**own, "spec": {"size": 1}})
    wrong = manifest("wrong.json", {**own, "spec": {"sise": 1}})
    assert kubectl("apply", "-f", declared).returncode == 0
    name = "crd/gadgets.test.example.com"
    assert kubectl("wait", "--for=condition=Established", name, "--timeout=10s").returncode == 0
    assert kubectl("apply", "-f", right).stdout == "gadget.test.example.com/g created\n"
    assert kubectl("apply", "-f", right).stdout == "gadget.test.example.com/g unchanged\n"
    assert 'unknown field "spec.sise"' in kubectl("apply", "-f", wrong).stderr
    shown = kubectl("get", "gadget", "g", "-o", "yaml").stdout
    assert "size: 1" in shown
    assert "managedFields" not in shown
    assert kubectl("delete", name, "--timeout=10s").returncode == 0
    assert kubectl("get", "gadgets").returncode == 1
