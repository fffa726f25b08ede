"""Values that no honest client sends: refused by the field's name, or served; never a 500."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

CORE = "/api/v1/namespaces"
APPS = "/apis/apps/v1/namespaces"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}
MERGE = {"Content-Type": "application/merge-patch+json"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
TABLE = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}


@pytest.fixture(scope="module")
def api_cluster() -> Iterator[EmbeddedCluster]:
    """With a node, and Services with addresses."""
    with EmbeddedCluster(images={}) as cluster:
        yield cluster


def service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "odd"}, "spec": {"ports": [{"port": 80}], **spec}}


def deployment(**spec: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }
    base = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    return {"metadata": {"name": "odd"}, "spec": {**base, **spec}}


def pod(**resources: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": resources}
    return {"metadata": {"generateName": "odd-"}, "spec": {"containers": [container]}}


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx.Response, message: str) -> None:
    """As a bad request, which names what is wrong."""
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert message in answer.json()["message"]


def causes(answer: httpx.Response) -> set[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return {(each["field"], each["reason"]) for each in answer.json()["details"]["causes"]}


@pytest.mark.parametrize(
    ("path", "patch", "wrong"),
    [
        ("services/odd", {"spec": {"ports": [{"port": {}}]}}, "spec.ports[1].port: must be of type integer"),
        ("pods/odd", {"spec": {"volumes": [{"name": []}]}}, "spec.volumes[0].name: must be of type string"),
    ],
)
def test_merge_keys_of_a_wrong_type(
    http: httpx.Client, space: str, path: str, patch: dict[str, Any], wrong: str
) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service()))
    made(http.post(f"{CORE}/{space}/pods", json={**pod(), "metadata": {"name": "odd"}}))
    refused(http.patch(f"{CORE}/{space}/{path}", json=patch, headers=STRATEGIC), wrong)


def test_merge_keys_of_a_taint(http: httpx.Client) -> None:
    node = http.get("/api/v1/nodes").json()["items"][0]["metadata"]["name"]
    tainted = {"spec": {"taints": [{"key": "soft", "effect": "PreferNoSchedule"}]}}
    made(http.patch(f"/api/v1/nodes/{node}", json=tainted, headers=STRATEGIC))
    answer = http.patch(f"/api/v1/nodes/{node}", json={"spec": {"taints": [{"key": {}}]}}, headers=STRATEGIC)
    assert answer.status_code == 400


def test_a_taint_without_an_effect(http: httpx.Client) -> None:
    answer = http.post(
        "/api/v1/nodes", json={"metadata": {"name": "odd"}, "spec": {"taints": [{"key": "a"}]}}
    )
    assert causes(answer) == {("spec.taints[0].effect", "FieldValueRequired")}


@pytest.mark.parametrize("operator", ["Is", ""])
def test_a_selector_that_says_nothing(http: httpx.Client, space: str, operator: str) -> None:
    body = deployment(selector={"matchExpressions": [{"key": "a", "operator": operator, "values": ["b"]}]})
    field = "spec.selector.matchExpressions[0].operator"
    assert field in {each for each, _ in causes(http.post(f"{APPS}/{space}/deployments", json=body))}
    without_key = deployment(selector={"matchExpressions": [{"operator": "In", "values": ["b"]}]})
    assert http.post(f"{APPS}/{space}/deployments", json=without_key).status_code == 422


def test_a_replaced_namespace_is_emptied_all_the_same(http: httpx.Client, space: str) -> None:
    made(http.post(f"{CORE}/{space}/configmaps", json={"metadata": {"name": "odd"}}))
    path = f"{CORE}/{space}"
    made(http.put(path, json={"metadata": {"name": space}}))
    assert made(http.get(path))["spec"] == {"finalizers": ["kubernetes"]}
    assert made(http.delete(path))["status"]["phase"] == "Terminating"


def test_strategic_lists_for_what_is_no_list(http: httpx.Client, space: str) -> None:
    made(http.post(f"{APPS}/{space}/deployments", json=deployment(replicas=0)))
    patch = {"spec": {"replicas": [{}]}}
    answer = http.patch(f"{APPS}/{space}/deployments/odd", json=patch, headers=STRATEGIC)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"$retainKeys": 1}}, "invalid patch format of retainKeys"),
        ({"metadata": {"$deleteFromPrimitiveList/finalizers": 1}}, "invalid patch format of primitive list"),
        ({"spec": {"$setElementOrder/ports": 1}}, "invalid patch format of setElementOrder list"),
    ],
)
def test_directives_of_a_wrong_type(http: httpx.Client, space: str, patch: Any, message: str) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service()))
    answer = http.patch(f"{CORE}/{space}/services/odd", json=patch, headers=STRATEGIC)
    refused(answer, message)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"spec": True}, "spec: must be of type object"),
        ({"spec": "x"}, "spec: must be of type object"),
        ({"metadata": 1}, "metadata: must be of type object"),
        ({"spec": {"replicas": "2"}}, "spec.replicas: must be of type integer"),
        ({"spec": {"replicas": 2**31}}, "spec.replicas: must fit into 32 bits"),
    ],
)
def test_a_scale_of_a_wrong_type(http: httpx.Client, space: str, body: Any, why: str) -> None:
    made(http.post(f"{APPS}/{space}/deployments", json=deployment(replicas=0)))
    message = f'Scale in version "v1" cannot be handled as a Scale: {why}'
    path = f"{APPS}/{space}/deployments/odd/scale"
    refused(http.patch(path, json=body, headers=MERGE), message)
    refused(http.put(path, json=body), message)


def test_delete_options_of_a_wrong_type(http: httpx.Client, space: str) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service()))
    path = f"{CORE}/{space}/services/odd"
    answer = http.request("DELETE", path, json={"preconditions": 1})
    refused(answer, "DeleteOptions: preconditions: must be of type object")
    assert http.request("DELETE", path, json=[1]).status_code == 400
    assert http.request("DELETE", path, json={"dryRun": ["Some"]}).status_code == 422
    made(http.get(path))
    made(http.post(f"{CORE}/{space}/pods", json={**pod(), "metadata": {"name": "odd"}}))
    for options in (1, {"preconditions": 1}):
        eviction = {"metadata": {"name": "odd"}, "deleteOptions": options}
        answer = http.post(f"{CORE}/{space}/pods/odd/eviction", json=eviction)
        assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")


THINGS: dict[str, Any] = {
    "metadata": {"name": "things.odd.example.com"},
    "spec": {
        "group": "odd.example.com",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                        "properties": {"n": {"type": "number", "multipleOf": 0.5}},
                    }
                },
                "subresources": {
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
                },
                "additionalPrinterColumns": [{"name": "When", "type": "date", "jsonPath": ".when"}],
            }
        ],
    },
}


@pytest.fixture
def things(http: httpx.Client) -> Iterator[dict[str, Any]]:
    yield made(http.post(DEFINITIONS, json=THINGS))
    made(http.delete(f"{DEFINITIONS}/things.odd.example.com"))


def test_a_definition_without_its_status_is_served_on(
    http: httpx.Client, space: str, things: dict[str, Any]
) -> None:
    path = f"{DEFINITIONS}/things.odd.example.com"
    made(http.put(f"{path}/status", json=THINGS))
    status = http.get(path).json()["status"]
    assert status["storedVersions"] == ["v1"]
    assert {each["type"]: each["status"] for each in status["conditions"]}["Established"] == "True"
    made(http.put(f"{path}/status", json={**THINGS, "status": {"conditions": [{}]}}))
    made(http.patch(path, json={"spec": {"names": {"shortNames": ["th"]}}}, headers=MERGE))
    made(http.get(f"/apis/odd.example.com/v1/namespaces/{space}/things"))


def test_odd_values_of_custom_objects(http: httpx.Client, space: str, things: dict[str, Any]) -> None:
    path = f"/apis/odd.example.com/v1/namespaces/{space}/things"
    body = {"apiVersion": "odd.example.com/v1", "kind": "Thing", "metadata": {"name": "odd"}}
    made(http.post(path, json={**body, "when": "next week", "spec": "x", "n": 1e308}))
    for number in ("1e999", "1" + "0" * 400):
        raw = f'{{"apiVersion": "odd.example.com/v1", "kind": "Thing", "x": {number}}}'
        answer = http.post(path, content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, number


@pytest.mark.parametrize("text", ["1..2", ".", "1e" + "9" * 40])
def test_what_is_no_quantity(http: httpx.Client, space: str, text: str) -> None:
    answer = http.post(f"{CORE}/{space}/pods", json=pod(requests={"cpu": text}))
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")


@pytest.mark.parametrize("surge", [[], {}, 1.5, True])
def test_a_surge_of_a_wrong_type(http: httpx.Client, space: str, surge: Any) -> None:
    body = deployment(strategy={"rollingUpdate": {"maxSurge": surge}})
    why = "Deployment: spec.strategy.rollingUpdate.maxSurge: must be of type integer,string"
    refused(http.post(f"{APPS}/{space}/deployments", json=body), why)


def test_a_surge_that_is_no_percentage(http: httpx.Client, space: str) -> None:
    body = deployment(strategy={"rollingUpdate": {"maxSurge": "abc"}})
    answer = http.post(f"{APPS}/{space}/deployments", json=body)
    assert causes(answer) == {("spec.strategy.rollingUpdate.maxSurge", "FieldValueInvalid")}


@pytest.mark.parametrize(
    "moment",
    ["2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:61Z"],
)
def test_times_that_never_are(http: httpx.Client, space: str, moment: str) -> None:
    about = {"kind": "Pod", "name": "odd", "namespace": space}
    event = {"metadata": {"name": "odd"}, "involvedObject": about, "lastTimestamp": moment}
    refused(http.post(f"{CORE}/{space}/events", json=event), "Event: lastTimestamp: ")


def test_copies_that_grow_without_end(http: httpx.Client, space: str) -> None:
    maps = f"{CORE}/{space}/configmaps"
    made(http.post(maps, json={"metadata": {"name": "odd"}, "data": {"a": "x" * 1000}}))
    copies = [{"op": "copy", "from": "/data", "path": f"/data/{number}"} for number in range(60)]
    answer = http.patch(f"{maps}/odd", json=copies, headers=JSON_PATCH)
    assert answer.status_code == 422
    assert "exceeding the limit" in answer.json()["message"]
    many = [{"op": "test", "path": "/kind", "value": "ConfigMap"}] * 10_001
    assert http.patch(f"{maps}/odd", json=many, headers=JSON_PATCH).status_code == 413


def test_others_are_served_while_somebody_wants_a_billion_pods(http: httpx.Client, space: str) -> None:
    """All of them at once would never end."""
    greedy = deployment(replicas=2**31 - 1)
    greedy["metadata"]["name"] = "greedy"
    made(http.post(f"{APPS}/{space}/deployments", json=greedy))
    job = {"template": copy.deepcopy(greedy["spec"]["template"]), "parallelism": 2**31 - 1}
    job["template"]["spec"]["restartPolicy"] = "Never"
    made(
        http.post(
            f"/apis/batch/v1/namespaces/{space}/jobs", json={"metadata": {"name": "greedy"}, "spec": job}
        )
    )
    made(http.post(f"{CORE}/{space}/configmaps", json={"metadata": {"name": "modest"}}))
    made(http.delete(f"{APPS}/{space}/deployments/greedy"))
    made(
        http.delete(
            f"/apis/batch/v1/namespaces/{space}/jobs/greedy", params={"propagationPolicy": "Background"}
        )
    )
