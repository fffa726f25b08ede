"""Values that no honest client sends: refused in the API's words, or served; never a 500."""

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
    """With a node, which has taints, and Services with addresses."""
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


def refused(answer: httpx.Response, code: int, message: str) -> None:
    assert (answer.status_code, answer.json()["message"]) == (code, message)


def test_a_label_may_be_called_matchlabels(http: httpx.Client, space: str) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service(selector={"matchLabels": "x"})))
    for path in (f"{CORE}/{space}/services", "/api/v1/services"):
        rows = http.get(path, headers=TABLE).json()["rows"]
        assert "matchLabels=x" in next(row["cells"] for row in rows if row["cells"][0] == "odd")


@pytest.mark.parametrize(
    ("path", "patch", "field", "type_"),
    [
        (
            "services/odd",
            {"spec": {"ports": [{"port": {}}]}},
            "Service: json: cannot unmarshal object into Go struct field ServicePort.spec.ports.port",
            "int32",
        ),
        (
            "pods/odd",
            {"spec": {"volumes": [{"name": []}]}},
            "Pod: json: cannot unmarshal array into Go struct field Volume.spec.volumes.name",
            "string",
        ),
    ],
)
def test_merge_keys_of_a_wrong_type(
    http: httpx.Client, space: str, path: str, patch: dict[str, Any], field: str, type_: str
) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service()))
    made(http.post(f"{CORE}/{space}/pods", json={**pod(), "metadata": {"name": "odd"}}))
    answer = http.patch(f"{CORE}/{space}/{path}", json=patch, headers=STRATEGIC)
    kind = field.partition(":")[0]
    refused(answer, 400, f'{kind} in version "v1" cannot be handled as a {field} of type {type_}')


def test_merge_keys_of_a_taint(http: httpx.Client) -> None:
    node = http.get("/api/v1/nodes").json()["items"][0]["metadata"]["name"]
    tainted = {"spec": {"taints": [{"key": "soft", "effect": "PreferNoSchedule"}]}}
    made(http.patch(f"/api/v1/nodes/{node}", json=tainted, headers=STRATEGIC))
    answer = http.patch(f"/api/v1/nodes/{node}", json={"spec": {"taints": [{"key": {}}]}}, headers=STRATEGIC)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("taint", "message"),
    [
        ({"key": "a"}, "spec.taints[0].effect: Required value"),
        (
            {"key": "a", "effect": "Never"},
            'spec.taints[0].effect: Unsupported value: "Never": supported values: "NoSchedule", '
            '"PreferNoSchedule", "NoExecute"',
        ),
    ],
)
def test_a_taint_without_a_known_effect(http: httpx.Client, taint: dict[str, str], message: str) -> None:
    body = {"metadata": {"name": "odd"}, "spec": {"taints": [taint]}}
    refused(http.post("/api/v1/nodes", json=body), 422, f'Node "odd" is invalid: {message}')


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            {"key": "a", "operator": "In"},
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is "
            "'In' or 'NotIn'",
        ),
        (
            {"key": "a", "operator": "Is", "values": ["b"]},
            'spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator',
        ),
    ],
)
def test_a_selector_that_says_nothing(
    http: httpx.Client, space: str, expression: dict[str, Any], message: str
) -> None:
    body = deployment(selector={"matchExpressions": [expression]})
    refused(
        http.post(f"{APPS}/{space}/deployments", json=body),
        422,
        f'Deployment.apps "odd" is invalid: {message}',
    )
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
    refused(answer, 400, message)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"spec": True}, "bool into Go struct field Scale.spec of type v1.ScaleSpec"),
        ({"spec": "x"}, "string into Go struct field Scale.spec of type v1.ScaleSpec"),
        ({"metadata": 1}, "number into Go struct field Scale.metadata of type v1.ObjectMeta"),
        ({"spec": {"replicas": "2"}}, "string into Go struct field ScaleSpec.spec.replicas of type int32"),
        (
            {"spec": {"replicas": 2**31}},
            "number 2147483648 into Go struct field ScaleSpec.spec.replicas of type int32",
        ),
    ],
)
def test_a_scale_of_a_wrong_type(http: httpx.Client, space: str, body: Any, why: str) -> None:
    made(http.post(f"{APPS}/{space}/deployments", json=deployment(replicas=0)))
    message = f'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal {why}'
    path = f"{APPS}/{space}/deployments/odd/scale"
    refused(http.patch(path, json=body, headers=MERGE), 400, message)
    refused(http.put(path, json=body), 400, message)


def test_delete_options_of_a_wrong_type(http: httpx.Client, space: str) -> None:
    made(http.post(f"{CORE}/{space}/services", json=service()))
    path = f"{CORE}/{space}/services/odd"
    refused(
        http.request("DELETE", path, json={"preconditions": 1}),
        400,
        'DeleteOptions in version "v1" cannot be handled as a DeleteOptions: json: cannot unmarshal number '
        "into Go struct field DeleteOptions.preconditions of type v1.Preconditions",
    )
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


@pytest.mark.parametrize(
    ("surge", "word"), [([], "array"), ({}, "object"), (1.5, "number 1.5"), (True, "bool")]
)
def test_a_surge_of_a_wrong_type(http: httpx.Client, space: str, surge: Any, word: str) -> None:
    body = deployment(strategy={"rollingUpdate": {"maxSurge": surge}})
    why = f"json: cannot unmarshal {word} into Go value of type int32"
    refused(
        http.post(f"{APPS}/{space}/deployments", json=body),
        400,
        f'Deployment in version "v1" cannot be handled as a Deployment: {why}',
    )


def test_a_surge_that_is_no_percentage(http: httpx.Client, space: str) -> None:
    body = deployment(strategy={"rollingUpdate": {"maxSurge": "abc"}})
    why = (
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', "
        "regex used for validation is '[0-9]+%')"
    )
    refused(
        http.post(f"{APPS}/{space}/deployments", json=body),
        422,
        'Deployment.apps "odd" is invalid: spec.strategy.rollingUpdate.maxSurge: Invalid value: "abc": '
        + why,
    )


@pytest.mark.parametrize(
    ("moment", "why"),
    [
        ("2026-13-01T00:00:00Z", "month out of range"),
        ("2026-02-30T00:00:00Z", "day out of range"),
        ("2026-01-01T24:00:00Z", "hour out of range"),
        ("2026-01-01T00:00:61Z", "second out of range"),
    ],
)
def test_times_that_never_are(http: httpx.Client, space: str, moment: str, why: str) -> None:
    about = {"kind": "Pod", "name": "odd", "namespace": space}
    event = {"metadata": {"name": "odd"}, "involvedObject": about, "lastTimestamp": moment}
    refused(
        http.post(f"{CORE}/{space}/events", json=event),
        400,
        f'Event in version "v1" cannot be handled as a Event: parsing time "{moment}": {why}',
    )


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
