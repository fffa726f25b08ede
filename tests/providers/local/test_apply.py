"""Server-side apply, as a real cluster does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

RECORDING = Path(__file__).parents[2] / "data" / "recordings" / "server-side-apply.jsonl"
APPLY = {"Content-Type": "application/apply-patch+yaml"}


def apply(http: httpx.Client, path: str, body: dict[str, Any], manager: str, **query: str) -> httpx.Response:
    params = {"fieldManager": manager, **query}
    return http.patch(path, params=params, headers=APPLY, content=json.dumps(body))


def deployment(**container: Any) -> dict[str, Any]:
    main = {"name": "main", "image": "trainer", **container}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [main]}},
        },
    }


def test_recorded_exchanges(http: httpx.Client) -> None:
    http.post("/api/v1/namespaces", json={"metadata": {"name": "rec"}}).raise_for_status()
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    for each in lines[1:]:
        request, recorded = each["request"], each["response"]
        answer = http.patch(request["path"], headers=APPLY, content=json.dumps(request["body"]))
        assert answer.status_code == recorded["status"], answer.text
        own = answer.json()
        for body in (own, recorded["body"]):
            for name in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
                body["metadata"].pop(name, None)
        assert own == recorded["body"]


def test_the_fields_of_a_manager_are_listed(http: httpx.Client, space: str) -> None:
    path = f"/api/v1/namespaces/{space}/configmaps/c"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    created = apply(http, path, body, "one")
    assert created.status_code == 201
    (entry,) = created.json()["metadata"]["managedFields"]
    assert entry.pop("time")
    assert entry == {
        "manager": "one",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}}},
    }
    # Applying the same again changes nothing, not even the version.
    again = apply(http, path, body, "one").json()
    assert again["metadata"]["resourceVersion"] == created.json()["metadata"]["resourceVersion"]


def test_lists_are_merged_by_their_keys(http: httpx.Client, space: str) -> None:
    path = f"/apis/apps/v1/namespaces/{space}/deployments/d"
    apply(http, path, deployment(env=[{"name": "A", "value": "1"}]), "one").raise_for_status()
    sidecar = {"name": "sidecar", "image": "other"}
    second = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "template": {
                "spec": {"containers": [sidecar, {"name": "main", "env": [{"name": "B", "value": "2"}]}]}
            }
        },
    }
    merged = apply(http, path, second, "two")
    assert merged.status_code == 200, merged.text
    containers = merged.json()["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in containers] == ["main", "sidecar"]
    assert [each["name"] for each in containers[0]["env"]] == ["A", "B"]
    # What the second manager gives up goes; what the first one has stays.
    second["spec"]["template"]["spec"]["containers"] = [{"name": "main", "env": []}]
    given = apply(http, path, second, "two").json()["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in given] == ["main"]
    assert given[0]["env"] == [{"name": "A", "value": "1"}]
    assert given[0]["image"] == "trainer"


def test_a_conflict_names_manager_and_field(http: httpx.Client, space: str) -> None:
    path = f"/apis/apps/v1/namespaces/{space}/deployments/d"
    apply(http, path, deployment(), "one").raise_for_status()
    refused = apply(http, path, deployment(image="other", command=["x"]), "two")
    assert refused.status_code == 409
    (cause,) = refused.json()["details"]["causes"]
    assert cause == {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "one"',
        "field": '.spec.template.spec.containers[name="main"].image',
    }
    forced = apply(http, path, deployment(image="other"), "two", force="true")
    assert forced.json()["spec"]["template"]["spec"]["containers"][0]["image"] == "other"
    lost = apply(http, path, deployment(), "one")
    assert lost.json()["details"]["causes"][0]["message"] == 'conflict with "two"'


def test_other_writes_take_ownership(http: httpx.Client, space: str) -> None:
    path = f"/apis/apps/v1/namespaces/{space}/deployments/d"
    wanted = deployment()
    wanted["spec"]["replicas"] = 1
    apply(http, path, wanted, "one").raise_for_status()
    merge = {"Content-Type": "application/merge-patch+json"}
    http.patch(
        f"{path}/scale", params={"fieldManager": "scaler"}, headers=merge, content='{"spec":{"replicas":3}}'
    ).raise_for_status()
    refused = apply(http, path, wanted, "one")
    assert refused.status_code == 409
    (cause,) = refused.json()["details"]["causes"]
    assert cause["field"] == ".spec.replicas"
    assert cause["message"].startswith('conflict with "scaler" using apps/v1 at ')
    # Whoever does not care about the field any more leaves it to the other.
    del wanted["spec"]["replicas"]
    assert apply(http, path, wanted, "one").json()["spec"]["replicas"] == 3


def test_an_object_made_otherwise_is_owned_by_who_was_there_before(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": "1"}}
    created = http.post(base, json=body).json()
    assert "managedFields" not in created["metadata"]
    body["data"] = {"a": "2"}
    refused = apply(http, f"{base}/c", body, "one")
    assert refused.status_code == 409
    assert 'conflict with "before-first-apply" using v1' in refused.json()["message"]
    forced = apply(http, f"{base}/c", body, "one", force="true").json()
    assert forced["data"] == {"a": "2", "b": "1"}


LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def applied_by_the_client(http: httpx.Client, base: str, **data: str) -> dict[str, Any]:
    """A ConfigMap as ``kubectl apply`` without ``--server-side`` makes it; what was applied."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}
    note = {"annotations": {LAST_APPLIED: json.dumps(body)}}
    http.post(base, json={**body, "metadata": {"name": "c", **note}}).raise_for_status()
    return body


def owners(obj: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (each["manager"], each["operation"]): each["fieldsV1"].get("f:data")
        for each in obj["metadata"]["managedFields"]
    }


def test_what_the_client_applied_is_taken_over_by_kubectl_alone(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    body = applied_by_the_client(http, base, a="1", b="1")
    merge = {"Content-Type": "application/merge-patch+json"}
    http.patch(f"{base}/c", headers=merge, content='{"data":{"b":"edited","c":"1"}}').raise_for_status()
    body["data"] = {"a": "2"}
    other = apply(http, f"{base}/c", body, "other")
    assert 'conflict with "kubectl-client-side-apply" using v1' in other.json()["message"]
    taken = apply(http, f"{base}/c", body, "kubectl")
    assert taken.json()["data"] == {"a": "2", "b": "edited", "c": "1"}
    # What was edited since is not the client's any more.
    body["data"] = {"a": "2", "b": "2"}
    refused = apply(http, f"{base}/c", body, "kubectl")
    (cause,) = refused.json()["details"]["causes"]
    assert cause["field"] == ".data.b"
    assert cause["message"].startswith('conflict with "before-first-apply"')


def test_managers_can_be_rewritten_as_kubectl_does(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    body = applied_by_the_client(http, base, a="1", b="1")
    body["data"] = {"a": "1"}
    first = apply(http, f"{base}/c", body, "kubectl").json()
    note = {"f:metadata": {"f:annotations": {f"f:{LAST_APPLIED}": {}}}}
    assert owners(first) == {
        ("kubectl-client-side-apply", "Update"): {"f:a": {}, "f:b": {}},
        ("kubectl", "Apply"): {"f:a": {}},
    }
    kept = next(each for each in first["metadata"]["managedFields"] if each["operation"] == "Apply")
    kept["fieldsV1"] = {"f:data": {".": {}, "f:a": {}, "f:b": {}}, **note}
    change = [
        {"op": "replace", "path": "/metadata/managedFields", "value": [kept]},
        {
            "op": "replace",
            "path": "/metadata/resourceVersion",
            "value": first["metadata"]["resourceVersion"],
        },
    ]
    as_json = {"Content-Type": "application/json-patch+json"}
    moved = http.patch(f"{base}/c", headers=as_json, content=json.dumps(change))
    assert owners(moved.json()) == {("kubectl", "Apply"): {"f:a": {}, "f:b": {}}}
    assert apply(http, f"{base}/c", body, "kubectl").json()["data"] == {"a": "1"}
    # The same with the version of before is a conflict.
    assert http.patch(f"{base}/c", headers=as_json, content=json.dumps(change)).status_code == 409


@pytest.mark.parametrize(
    "given",
    [
        [{}],
        [{"manager": "m"}],
        *(
            [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsV1": fields}]
            for fields in (
                {"f:data": 1},
                {"f:data": [1]},
                {"k:{": {}},
                {"k:3": {}},
                {"v:": {"f:a": {}}},
                {"v:{}": {}},
                {"": {}},
            )
        ),
    ],
    ids=str,
)
def test_managers_that_cannot_be_read_leave_those_that_are(
    http: httpx.Client, space: str, given: Any
) -> None:
    path = f"/api/v1/namespaces/{space}/configmaps/c"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    before = apply(http, path, body, "one").json()
    body["metadata"] = {"name": "c", "managedFields": given}
    after = http.put(path, json=body)
    assert after.status_code == 200, after.text
    assert after.json()["metadata"]["managedFields"] == before["metadata"]["managedFields"]
    assert apply(http, path, {**body, "metadata": {"name": "c"}}, "one").status_code == 200


def test_managers_are_nobodys_to_make_up(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    metadata = {"name": "c", "managedFields": [{}]}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "1"}}
    for answer in (http.post(base, json=body), http.put(f"{base}/c", json=body)):
        assert "managedFields" not in answer.json()["metadata"]
    assert apply(http, f"{base}/c", {**body, "metadata": {"name": "c"}}, "one").status_code == 200


@pytest.mark.parametrize("text", ["", "x", "[]", "3", "{", '{"data": 1}', "[" * 100_000, '{"metadata": []}'])
def test_a_last_configuration_that_cannot_be_read_counts_as_none(
    http: httpx.Client, space: str, text: str
) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    note = {"annotations": {LAST_APPLIED: text}}
    http.post(base, json={**body, "metadata": {"name": "c", **note}}).raise_for_status()
    body["data"] = {"a": "2"}
    assert 'conflict with "before-first-apply"' in apply(http, f"{base}/c", body, "kubectl").json()["message"]


@pytest.mark.parametrize("body", ["[]", "{}", "3", '{"metadata": 1}', "a: [", '{"spec": {"containers": 1}}'])
def test_what_is_no_object_is_refused(http: httpx.Client, space: str, body: str) -> None:
    path = f"/api/v1/namespaces/{space}/pods/p"
    answer = http.patch(path, params={"fieldManager": "x"}, headers=APPLY, content=body)
    assert 400 <= answer.status_code < 500, answer.text


def test_a_manager_must_be_named(http: httpx.Client, space: str) -> None:
    answer = http.patch(f"/api/v1/namespaces/{space}/pods/p", headers=APPLY, content="{}")
    assert answer.status_code == 422
    assert "fieldManager: Required value" in answer.json()["message"]
