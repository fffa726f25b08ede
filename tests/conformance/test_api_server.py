"""What the server tells about itself, and the small kinds: Events, Leases, access reviews."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.conformance_client import causes, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Cluster, Space

pytestmark = pytest.mark.api


def test_the_server_is_healthy(cluster: Cluster) -> None:
    """Kubernetes API health endpoints: livez and readyz."""
    for path in ("/livez", "/readyz", "/healthz"):
        answer = cluster.call("GET", path)
        assert (answer.status_code, answer.text) == (200, "ok")


def test_the_server_says_its_version(cluster: Cluster) -> None:
    """API Overview: /version."""
    version = cluster.call("GET", "/version").json()
    assert version["major"] == "1"
    assert version["gitVersion"].startswith("v1.")


def test_a_path_that_is_not_served(cluster: Cluster) -> None:
    """API Concepts, Resource URIs."""
    assert cluster.call("GET", "/apis/example.com/v1/things").status_code == 404


def test_a_wrong_token_is_unauthorized(cluster: Cluster) -> None:
    """Authenticating: 401 for bad credentials."""
    # A client certificate of the kubeconfig would be good enough: this one goes without.
    base = str(cluster.http.base_url)
    with httpx.Client(base_url=base, verify=False, trust_env=False) as stranger:  # noqa: S501 - nothing is sent
        answer = stranger.get("/api/v1/namespaces", headers={"Authorization": "Bearer nobody"})
    refusal(answer, 401, "Unauthorized")


def test_the_core_versions(cluster: Cluster) -> None:
    """API Overview, Discovery API: /api."""
    document = cluster.call("GET", "/api").json()
    assert (document["kind"], document["versions"]) == ("APIVersions", ["v1"])


def test_the_groups(cluster: Cluster) -> None:
    """API Overview, Discovery API: /apis."""
    document = cluster.call("GET", "/apis").json()
    assert document["kind"] == "APIGroupList"
    preferred = {each["name"]: each["preferredVersion"]["groupVersion"] for each in document["groups"]}
    assert preferred["apps"] == "apps/v1"
    assert preferred["batch"] == "batch/v1"


def test_the_resources_of_a_group(cluster: Cluster) -> None:
    """API Overview, Discovery API, Unaggregated discovery."""
    document = cluster.call("GET", "/apis/apps/v1").json()
    assert (document["kind"], document["groupVersion"]) == ("APIResourceList", "apps/v1")
    rows = {each["name"]: each for each in document["resources"]}
    assert rows["deployments"]["kind"] == "Deployment"
    assert rows["deployments"]["namespaced"] is True
    assert {"create", "delete", "get", "list", "patch", "update", "watch"} <= set(
        rows["deployments"]["verbs"]
    )
    assert "deploy" in rows["deployments"]["shortNames"]
    assert rows["deployments/scale"]["kind"] == "Scale"


@pytest.mark.not_embedded("aggregated discovery")
def test_aggregated_discovery(cluster: Cluster) -> None:
    """API Overview, Discovery API, Aggregated discovery."""
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    document = cluster.http.get("/apis", headers={"Accept": accept}).json()
    assert document["kind"] == "APIGroupDiscoveryList"
    [batch] = [each for each in document["items"] if each["metadata"]["name"] == "batch"]
    resources = {each["resource"]: each for each in batch["versions"][0]["resources"]}
    assert resources["jobs"]["responseKind"]["kind"] == "Job"
    assert resources["jobs"]["scope"] == "Namespaced"


@pytest.mark.not_embedded("schemas in OpenAPI")
def test_openapi_describes_a_kind(cluster: Cluster) -> None:
    """API Overview, OpenAPI V3: an index with a document for each group version."""
    index = cluster.call("GET", "/openapi/v3").json()["paths"]
    url = index["apis/batch/v1"]["serverRelativeURL"]
    path, _, query = url.partition("?")
    document = cluster.http.get(f"{path}?{query}").json()
    schemas = document["components"]["schemas"]
    [job] = [
        schema
        for schema in schemas.values()
        if {"group": "batch", "version": "v1", "kind": "Job"}
        in schema.get("x-kubernetes-group-version-kind", ())
    ]
    assert {"spec", "status", "metadata"} <= set(job["properties"])


def test_openapi_says_that_fields_are_validated(cluster: Cluster) -> None:
    """API Concepts, Field validation: clients learn of it from the parameters of POST."""
    document = cluster.call("GET", "/openapi/v3/apis/batch/v1").json()
    operation = document["paths"]["/apis/batch/v1/namespaces/{namespace}/jobs"]["post"]
    assert "fieldValidation" in {each.get("name") for each in operation["parameters"]}


def review(cluster: Cluster, **attributes: str) -> httpx.Response:
    body = {
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": attributes},
    }
    return cluster.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)


@pytest.mark.not_embedded("access reviews")
def test_a_user_can_ask_what_they_may(space: Space) -> None:
    """Authorization Overview, Checking API access: SelfSubjectAccessReview."""
    answer = review(space.cluster, namespace=space.name, verb="create", group="batch", resource="jobs")
    assert answer.status_code == 201
    assert answer.json()["status"]["allowed"] is True


def event(space: Space, name: str, about: str, **more: Any) -> dict[str, Any]:
    involved = {"kind": "ConfigMap", "name": about, "namespace": space.name, "uid": f"uid-{about}"}
    return {
        "metadata": {"name": name},
        "involvedObject": involved,
        "reason": "Tried",
        "message": "a message",
        "type": "Normal",
        **more,
    }


def test_events_are_selected_by_what_they_are_about(space: Space) -> None:
    """Field Selectors, List of supported fields: involvedObject of Events."""
    space.create("events", event(space, "a", "one"))
    space.create("events", event(space, "b", "two", reason="Failed", type="Warning"))
    assert space.names("events", fieldSelector="involvedObject.name=one") == {"a"}
    assert space.names("events", fieldSelector="involvedObject.uid=uid-two,reason=Failed") == {"b"}
    assert space.names("events", fieldSelector="type=Warning") == {"b"}


def test_an_event_is_in_the_namespace_of_what_it_is_about(space: Space) -> None:
    """Event, involvedObject: its namespace is the event's."""
    body = event(space, "a", "one")
    body["involvedObject"]["namespace"] = "another"
    assert causes(space.try_create("events", body)) == {("involvedObject.namespace", "FieldValueInvalid")}


def test_a_series_is_counted_on_one_event(space: Space) -> None:
    """Event, count: the number of times this event has occurred."""
    space.create("events", event(space, "a", "one", count=1))
    assert space.patch("events", "a", {"count": 2, "message": "again"})["count"] == 2


def lease(name: str, holder: str) -> dict[str, Any]:
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }
    return {"metadata": {"name": name}, "spec": spec}


def test_a_lease_is_renewed(space: Space) -> None:
    """Leases: holderIdentity and renewTime, in microseconds."""
    made = space.create("leases", lease("one", "me"))
    made["spec"]["renewTime"] = "2026-01-01T00:00:05.123456Z"
    assert space.update("leases", made)["spec"]["renewTime"] == "2026-01-01T00:00:05.123456Z"


def test_one_of_two_gets_a_lease(space: Space) -> None:
    """Leases, Leader election: the second to write finds a conflict."""
    made = space.create("leases", lease("one", "nobody"))
    mine = {**made, "spec": {**made["spec"], "holderIdentity": "me"}}
    yours = {**made, "spec": {**made["spec"], "holderIdentity": "you"}}
    space.update("leases", mine)
    refusal(space.try_update("leases", yours), 409, "Conflict")
    assert space.get("leases", "one")["spec"]["holderIdentity"] == "me"


def test_a_lease_is_not_replaced_blindly(space: Space) -> None:
    """API Conventions, Concurrency Control: kinds may demand a resourceVersion for an update."""
    space.create("leases", lease("one", "me"))
    answer = space.try_update("leases", lease("one", "you"))
    assert causes(answer) == {("metadata.resourceVersion", "FieldValueInvalid")}


def test_a_lease_lasts_some_time(space: Space) -> None:
    """LeaseSpec, leaseDurationSeconds: greater than 0."""
    body = lease("one", "me")
    body["spec"]["leaseDurationSeconds"] = 0
    assert causes(space.try_create("leases", body)) == {("spec.leaseDurationSeconds", "FieldValueInvalid")}


def test_a_namespace_carries_its_name_as_a_label(cluster: Cluster, space: Space) -> None:
    """Namespaces, Automatic labelling: kubernetes.io/metadata.name."""
    made = cluster.call("GET", f"/api/v1/namespaces/{space.name}").json()
    assert made["metadata"]["labels"]["kubernetes.io/metadata.name"] == space.name
    assert made["spec"]["finalizers"] == ["kubernetes"]
    assert made["status"]["phase"] == "Active"


def test_a_namespace_is_named_by_a_label(cluster: Cluster) -> None:
    """Object Names and IDs, RFC 1123 Label Names: namespaces have no dots."""
    answer = cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": "with.dots"}})
    assert causes(answer) == {("metadata.name", "FieldValueInvalid")}
