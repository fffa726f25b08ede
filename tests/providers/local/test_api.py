"""The API over HTTP, where the recordings are silent."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from nighttrain.providers.local.cluster.http import reading

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

MERGE = {"Content-Type": "application/merge-patch+json"}
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}


def pod(name: str = "p", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "trainer:1"}
    return {"metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def deployment(name: str = "d") -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": pod()["spec"]}
    return {
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def causes(response: httpx.Response) -> list[tuple[str, str]]:
    assert response.status_code == 422, response.text
    return [(each["field"], each["reason"]) for each in response.json()["details"]["causes"]]


def watched(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


# Who may ask.


def test_health_needs_no_token(api_cluster: EmbeddedCluster) -> None:
    for path in ("/healthz", "/readyz", "/livez"):
        assert httpx.get(f"{api_cluster.url}{path}").text == "ok"


def test_a_wrong_token_is_401_and_a_page_in_a_browser_is_nobody(api_cluster: EmbeddedCluster) -> None:
    url = f"{api_cluster.url}/api/v1/namespaces/default/pods"
    wrong = httpx.get(url, headers={"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.json()["reason"]) == (401, "Unauthorized")
    for headers in (
        {"Origin": "http://example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "example.com"},
    ):
        anonymous = httpx.get(url, headers=headers)
        assert anonymous.status_code == 403
        assert 'User "system:anonymous" cannot list resource "pods"' in anonymous.json()["message"]


# Create and its rules.


def test_pods_get_their_defaults(http: httpx.Client, space: str) -> None:
    body = pod(
        volumes=[{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
        containers=[
            {
                "name": "main",
                "image": "trainer",
                "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            }
        ],
    )
    created = http.post(f"/api/v1/namespaces/{space}/pods", json=body).json()
    spec, container = created["spec"], created["spec"]["containers"][0]
    assert created["status"] == {"phase": "Pending", "qosClass": "Guaranteed"}
    assert spec["volumes"] == [
        {"name": "v", "emptyDir": {}},
        {"name": "c", "configMap": {"name": "x", "defaultMode": 0o644}},
    ]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert container["imagePullPolicy"] == "Always"
    assert container["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert container["readinessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [{"name": "main"}]}, ("spec.containers[0].image", "FieldValueRequired")),
        ({"containers": [{"image": "x"}]}, ("spec.containers[0].name", "FieldValueRequired")),
        ({"containers": [{"name": "A", "image": "x"}]}, ("spec.containers[0].name", "FieldValueInvalid")),
        (
            {"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]},
            ("spec.containers[1].name", "FieldValueDuplicate"),
        ),
        ({"restartPolicy": "Sometimes"}, ("spec.restartPolicy", "FieldValueNotSupported")),
        (
            {"containers": [{"name": "a", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            ("spec.containers[0].volumeMounts[0].name", "FieldValueNotFound"),
        ),
        (
            {
                "containers": [
                    {
                        "name": "a",
                        "image": "x",
                        "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}},
                    }
                ]
            },
            ("spec.containers[0].resources.requests", "FieldValueInvalid"),
        ),
        (
            {"containers": [{"name": "a", "image": "x", "readinessProbe": {"periodSeconds": 1}}]},
            ("spec.containers[0].readinessProbe", "FieldValueRequired"),
        ),
        ({"activeDeadlineSeconds": 0}, ("spec.activeDeadlineSeconds", "FieldValueInvalid")),
    ],
)
def test_pods_that_break_a_rule_are_refused(
    http: httpx.Client, spec: dict[str, Any], expected: tuple[str, str]
) -> None:
    response = http.post("/api/v1/namespaces/default/pods", json=pod("broken", **spec))
    assert expected in causes(response)
    assert http.get("/api/v1/namespaces/default/pods/broken").status_code == 404


def test_a_service_account_must_exist(http: httpx.Client, space: str) -> None:
    refused = http.post(f"/api/v1/namespaces/{space}/pods", json=pod(serviceAccountName="robot"))
    assert refused.status_code == 403
    http.post(f"/api/v1/namespaces/{space}/serviceaccounts", json={"metadata": {"name": "robot"}})
    assert (
        http.post(f"/api/v1/namespaces/{space}/pods", json=pod(serviceAccountName="robot")).status_code == 201
    )


def test_dry_run_stores_nothing(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    assert http.post(f"{base}?dryRun=All", json={"metadata": {"name": "a"}}).status_code == 201
    assert http.get(f"{base}/a").status_code == 404
    http.post(base, json={"metadata": {"name": "a"}, "data": {"k": "v"}})
    changed = http.patch(f"{base}/a?dryRun=All", content='{"data":{"k":"w"}}', headers=MERGE)
    assert changed.json()["data"] == {"k": "w"}
    assert http.delete(f"{base}/a?dryRun=All").status_code == 200
    assert http.get(f"{base}/a").json()["data"] == {"k": "v"}


def test_unknown_fields_are_dropped_with_a_warning_or_ignored(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    warned = http.post(base, json={"metadata": {"name": "w"}, "colour": "red"})
    assert warned.headers["warning"] == '299 - "unknown field \\"colour\\""'
    assert "colour" not in warned.json()
    ignored = http.post(f"{base}?fieldValidation=Ignore", json={"metadata": {"name": "i"}, "colour": "red"})
    assert ignored.status_code == 201
    assert "warning" not in ignored.headers


def test_secrets_take_plain_text_and_keep_base64(http: httpx.Client, space: str) -> None:
    body = {"metadata": {"name": "s"}, "stringData": {"password": "geheim"}}
    created = http.post(f"/api/v1/namespaces/{space}/secrets", json=body).json()
    assert created["data"] == {"password": "Z2VoZWlt"}
    assert created["type"] == "Opaque"
    assert "stringData" not in created


# Change.


def test_strategic_patch_merges_containers_by_name(http: httpx.Client, space: str) -> None:
    base = f"/apis/apps/v1/namespaces/{space}/deployments"
    http.post(base, json=deployment()).raise_for_status()
    env = [{"name": "A", "value": "1"}]
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "main", "env": env}]}}}}
    patched = http.patch(f"{base}/d", content=json.dumps(patch), headers=STRATEGIC).json()
    container = patched["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["env"]) == ("trainer:1", env)
    assert patched["metadata"]["generation"] == 2
    patch["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "$patch": "delete"}]
    patched = http.patch(f"{base}/d", content=json.dumps(patch), headers=STRATEGIC).json()
    assert "env" not in patched["spec"]["template"]["spec"]["containers"][0]


def test_json_patch_and_merge_patch(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    http.post(base, json={"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}})
    operations = [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "remove", "path": "/data/x"}]
    headers = {"Content-Type": "application/json-patch+json"}
    assert http.patch(f"{base}/a", content=json.dumps(operations), headers=headers).json()["data"] == {
        "y": "2"
    }
    merged = http.patch(f"{base}/a", content='{"data":{"y":null,"z":"3"}}', headers=MERGE).json()
    assert merged["data"] == {"z": "3"}


def test_status_and_spec_are_written_apart(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/pods"
    http.post(base, json={**pod(), "status": {"phase": "Running"}})
    assert http.get(f"{base}/p").json()["status"]["phase"] == "Pending"
    http.patch(f"{base}/p", content='{"status":{"phase":"Running"}}', headers=MERGE)
    assert http.get(f"{base}/p").json()["status"]["phase"] == "Pending"
    body = '{"status":{"phase":"Running"},"metadata":{"labels":{"a":"b"}}}'
    http.patch(f"{base}/p/status", content=body, headers=MERGE)
    stored = http.get(f"{base}/p/status").json()
    assert stored["status"]["phase"] == "Running"
    assert "labels" not in stored["metadata"]


def test_what_a_pod_runs_cannot_change(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/pods"
    http.post(base, json=pod())
    image = '{"spec":{"containers":[{"name":"main","image":"trainer:2"}]}}'
    assert http.patch(f"{base}/p", content=image, headers=STRATEGIC).status_code == 200
    command = '{"spec":{"containers":[{"name":"main","command":["x"]}]}}'
    assert causes(http.patch(f"{base}/p", content=command, headers=STRATEGIC)) == [
        ("spec", "FieldValueForbidden")
    ]


def test_scale_is_a_view(http: httpx.Client, space: str) -> None:
    base = f"/apis/apps/v1/namespaces/{space}/deployments"
    http.post(base, json=deployment())
    scaled = http.patch(f"{base}/d/scale", content='{"spec":{"replicas":3}}', headers=MERGE).json()
    assert (scaled["kind"], scaled["spec"]) == ("Scale", {"replicas": 3})
    scaled["spec"]["replicas"] = 2
    assert http.put(f"{base}/d/scale", json=scaled).json()["spec"] == {"replicas": 2}
    assert http.get(f"{base}/d").json()["spec"]["replicas"] == 2


def test_a_lease_is_only_replaced_by_who_saw_it(http: httpx.Client, space: str) -> None:
    base = f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases"
    http.post(base, json={"metadata": {"name": "l"}, "spec": {"holderIdentity": "one"}})
    blind = http.put(f"{base}/l", json={"metadata": {"name": "l"}, "spec": {"holderIdentity": "two"}})
    assert causes(blind) == [("metadata.resourceVersion", "FieldValueInvalid")]


# Delete.


def test_deleting_a_job_orphans_unless_told_otherwise(http: httpx.Client, space: str) -> None:
    base = f"/apis/batch/v1/namespaces/{space}/jobs"
    body = {"spec": {"template": {"spec": {**pod()["spec"], "restartPolicy": "Never"}}}}
    for name, query, finalizers in (
        ("o", "", ["orphan"]),
        ("f", "?propagationPolicy=Foreground", ["foregroundDeletion"]),
    ):
        http.post(base, json={"metadata": {"name": name}, **body}).raise_for_status()
        assert http.delete(f"{base}/{name}{query}").json()["metadata"]["finalizers"] == finalizers
    http.post(base, json={"metadata": {"name": "b"}, **body}).raise_for_status()
    gone = http.request("DELETE", f"{base}/b", json={"propagationPolicy": "Background"}).json()
    assert (gone["kind"], gone["status"]) == ("Status", "Success")
    wrong = http.delete(f"{base}/o?propagationPolicy=Sideways")
    assert wrong.status_code == 422


def test_a_deleted_namespace_takes_everything_along(http: httpx.Client, space: str) -> None:
    http.post(f"/api/v1/namespaces/{space}/pods", json=pod())
    http.post(f"/api/v1/namespaces/{space}/configmaps", json={"metadata": {"name": "a"}})
    with http.stream(
        "GET", f"/api/v1/namespaces?watch=true&timeoutSeconds=10&fieldSelector=metadata.name%3D{space}"
    ) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines))["type"] == "ADDED"
        assert http.delete(f"/api/v1/namespaces/{space}").json()["status"]["phase"] == "Terminating"
        types = [json.loads(next(lines))["type"]]
        while types[-1] != "DELETED":
            types.append(json.loads(next(lines))["type"])
    assert http.get(f"/api/v1/namespaces/{space}").status_code == 404
    assert http.get(f"/api/v1/namespaces/{space}/pods").json()["items"] == []


# Read.


def test_pages_show_one_moment(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    for name in "abcd":
        http.post(base, json={"metadata": {"name": name}})
    first = http.get(f"{base}?limit=2").json()
    http.delete(f"{base}/c")
    http.post(base, json={"metadata": {"name": "e"}})
    token = first["metadata"]["continue"]
    second = http.get(f"{base}?limit=2&continue={token}").json()
    assert [each["metadata"]["name"] for each in second["items"]] == ["c", "d"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]


def test_a_watch_resumes_where_a_list_ended(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    version = http.get(base).json()["metadata"]["resourceVersion"]
    http.post(base, json={"metadata": {"name": "a"}})
    http.delete(f"{base}/a")
    seen = watched(http.get(f"{base}?watch=True&resourceVersion={version}&timeoutSeconds=1"))
    assert [each["type"] for each in seen] == ["ADDED", "DELETED"]
    assert seen[0]["object"]["kind"] == "ConfigMap"


def test_a_watch_sees_what_happens_later(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    with http.stream("GET", f"{base}?watch=1&timeoutSeconds=20") as stream:
        thread = threading.Thread(
            target=http.post, args=(base,), kwargs={"json": {"metadata": {"name": "a"}}}
        )
        thread.start()
        assert json.loads(next(stream.iter_lines()))["object"]["metadata"]["name"] == "a"
        thread.join()


def test_a_watch_from_a_forgotten_version_says_410_inside(
    http: httpx.Client, api_cluster: EmbeddedCluster
) -> None:
    version = http.get("/api/v1/configmaps").json()["metadata"]["resourceVersion"]
    http.post("/api/v1/namespaces/default/configmaps", json={"metadata": {"name": "later"}})
    api_cluster.call(lambda store: store.compact())
    response = http.get(f"/api/v1/configmaps?watch=true&resourceVersion={version}&timeoutSeconds=5")
    assert response.status_code == 200
    (event,) = watched(response)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_initial_events_are_refused_in_the_stream_as_recorded(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    http.post(base, json={"metadata": {"name": "a"}})
    query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    answer = http.get(f"{base}?{query}&timeoutSeconds=1")
    assert answer.status_code == 200
    [refused] = watched(answer)
    assert (refused["type"], refused["object"]["code"]) == ("ERROR", 500)
    assert "RequestWatchProgress is disabled" in refused["object"]["message"]


def test_volumes_and_their_classes_are_kinds_that_are_not_served(http: httpx.Client) -> None:
    base = "/api/v1/persistentvolumes"
    for answer in (
        http.get(base),
        http.post(base, json={"metadata": {"name": "v"}}),
        http.get("/apis/storage.k8s.io/v1/storageclasses"),
    ):
        assert answer.status_code == 404
    served = {each["name"] for each in http.get("/api/v1").json()["resources"]}
    assert "persistentvolumes" not in served


@pytest.mark.parametrize(
    ("key", "path", "why"),
    [
        ("subPath", "/etc", "must be a relative path"),
        ("subPath", "a/../b", "must not contain '..'"),
        ("subPathExpr", "$(X)", "does not serve it"),
    ],
)
def test_a_part_of_a_volume_outside_of_it_is_invalid(
    http: httpx.Client, space: str, key: str, path: str, why: str
) -> None:
    mount = {"name": "v", "mountPath": "/v", key: path}
    spec = {
        "containers": [{"name": "m", "image": "i", "volumeMounts": [mount]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    answer = http.post(f"/api/v1/namespaces/{space}/pods", json={"metadata": {"name": "p"}, "spec": spec})
    assert answer.status_code == 422
    [cause] = answer.json()["details"]["causes"]
    assert cause["field"] == f"spec.containers[0].volumeMounts[0].{key}"
    assert why in cause["message"]


def test_bookmarks_tell_idle_watchers_where_they_stand(
    http: httpx.Client, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_BOOKMARK_SECONDS", 0.05)
    base = f"/api/v1/namespaces/{space}/configmaps"
    version = http.get(base).json()["metadata"]["resourceVersion"]
    query = f"watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=20"
    with http.stream("GET", f"{base}?{query}") as stream:
        bookmark = json.loads(next(stream.iter_lines()))
    assert bookmark["type"] == "BOOKMARK"
    assert int(bookmark["object"]["metadata"]["resourceVersion"]) >= int(version)


def test_pods_as_a_table(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/pods"
    http.post(base, json=pod())
    table = http.get(
        base, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    )
    names = [each["name"] for each in table.json()["columnDefinitions"]]
    row = dict(zip(names, table.json()["rows"][0]["cells"], strict=True))
    assert (row["Name"], row["Ready"], row["Status"], row["Restarts"]) == ("p", "0/1", "Pending", "0")


# What is not done.


@pytest.mark.parametrize("action", ["exec", "attach", "portforward"])
def test_interactive_requests_are_refused_with_a_sentence(
    http: httpx.Client, space: str, action: str
) -> None:
    http.post(f"/api/v1/namespaces/{space}/pods", json=pod())
    for method in ("GET", "POST"):
        refused = http.request(method, f"/api/v1/namespaces/{space}/pods/p/{action}")
        assert (refused.status_code, refused.json()["reason"]) == (501, "NotImplemented")
        assert "embedded cluster" in refused.json()["message"]


@pytest.mark.parametrize("kind", ["namespaces", "namespaces/default/configmaps"])
def test_protobuf_is_refused_with_a_way_out(http: httpx.Client, kind: str) -> None:
    headers = {"Content-Type": "application/vnd.kubernetes.protobuf"}
    refused = http.post(f"/api/v1/{kind}", content=b"k8s\0", headers=headers)
    assert (refused.status_code, refused.json()["reason"]) == (415, "UnsupportedMediaType")
    assert "JSON" in refused.json()["message"]


def test_metadata_alone_is_no_form_of_an_answer(http: httpx.Client) -> None:
    alone = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    refused = http.get("/api/v1/namespaces", headers={"Accept": alone})
    assert (refused.status_code, refused.json()["reason"]) == (406, "NotAcceptable")
    # A client that takes whole objects too gets those.
    whole = http.get("/api/v1/namespaces", headers={"Accept": f"{alone},application/json"}).json()
    assert whole["kind"] == "NamespaceList"


def test_a_collection_is_not_deleted_at_once(http: httpx.Client, space: str) -> None:
    base = f"/api/v1/namespaces/{space}/configmaps"
    http.post(base, json={"metadata": {"name": "a"}}).raise_for_status()
    refused = http.delete(base)
    assert (refused.status_code, refused.json()["reason"]) == (405, "MethodNotAllowed")
    assert [each["metadata"]["name"] for each in http.get(base).json()["items"]] == ["a"]


def test_malformed_json_is_400(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    refused = http.post("/api/v1/namespaces/default/configmaps", content=b"{", headers=headers)
    assert (refused.status_code, refused.json()["reason"]) == (400, "BadRequest")


def test_a_container_must_be_named_when_there_are_two(http: httpx.Client, space: str) -> None:
    containers = [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]
    http.post(f"/api/v1/namespaces/{space}/pods", json=pod(containers=containers))
    refused = http.get(f"/api/v1/namespaces/{space}/pods/p/log")
    assert refused.status_code == 400
    assert "choose one of: [a b]" in refused.json()["message"]
    assert http.get(f"/api/v1/namespaces/{space}/pods/p/log?container=a").status_code == 204
