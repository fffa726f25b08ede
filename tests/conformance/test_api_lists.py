"""Lists: selectors, pages, versions, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import config_map, refusal

if TYPE_CHECKING:
    from helpers.conformance_client import Cluster, Space

pytestmark = pytest.mark.api

LABELS = {
    "red": {"colour": "red", "size": "1"},
    "green": {"colour": "green", "size": "2"},
    "blue": {"colour": "blue"},
    "plain": {},
}


@pytest.fixture
def colours(space: Space) -> Space:
    for name, labels in LABELS.items():
        space.create("configmaps", config_map(name, labels={"conformance": "yes", **labels}))
    return space


def selected(space: Space, selector: str) -> set[str]:
    """What the selector finds among the test's own objects (a cluster may add some)."""
    return space.names("configmaps", labelSelector=f"conformance=yes,{selector}")


def test_a_list_has_a_kind_and_a_version(colours: Space) -> None:
    """API Conventions, Lists and Simple kinds: kind, metadata.resourceVersion and items."""
    listed = colours.try_list("configmaps").json()
    assert (listed["kind"], listed["apiVersion"]) == ("ConfigMapList", "v1")
    assert listed["metadata"]["resourceVersion"]
    assert {each["metadata"]["name"] for each in listed["items"]} >= set(LABELS)


def test_an_empty_list_has_items(space: Space) -> None:
    """API Conventions, Lists and Simple kinds: an empty list is [], never null."""
    assert space.try_list("jobs").json()["items"] == []


def test_a_list_is_of_its_namespace(colours: Space, cluster: Cluster) -> None:
    """API Concepts, Resource URIs: a namespace's list holds that namespace's objects only."""
    other = cluster.make_space()
    other.create("configmaps", config_map("elsewhere", labels={"conformance": "yes"}))
    assert "elsewhere" not in colours.names("configmaps")
    other.remove()


def test_a_list_over_all_namespaces(colours: Space, cluster: Cluster) -> None:
    """API Concepts, Resource URIs: without a namespace, the objects of all."""
    listed = cluster.call("GET", "/api/v1/configmaps", labelSelector="conformance=yes").json()
    found = {
        (each["metadata"]["namespace"], each["metadata"]["name"])
        for each in listed["items"]
        if each["metadata"]["namespace"] == colours.name
    }
    assert found == {(colours.name, name) for name in LABELS}


def test_labels_equal(colours: Space) -> None:
    """Labels and Selectors, Equality-based requirement: = and ==."""
    assert selected(colours, "colour=red") == {"red"}
    assert selected(colours, "colour==red") == {"red"}


def test_labels_not_equal_include_absent_ones(colours: Space) -> None:
    """Labels and Selectors, Equality-based requirement: != selects resources without the key too."""
    assert selected(colours, "colour!=red") == {"green", "blue", "plain"}


def test_labels_in_a_set(colours: Space) -> None:
    """Labels and Selectors, Set-based requirement: in."""
    assert selected(colours, "colour in (red, blue)") == {"red", "blue"}


def test_labels_not_in_a_set_include_absent_ones(colours: Space) -> None:
    """Labels and Selectors, Set-based requirement: notin selects resources without the key too."""
    assert selected(colours, "colour notin (red, blue)") == {"green", "plain"}


def test_labels_exist_or_not(colours: Space) -> None:
    """Labels and Selectors, Set-based requirement: exists and does not exist."""
    assert selected(colours, "size") == {"red", "green"}
    assert selected(colours, "!colour") == {"plain"}


def test_label_requirements_are_all_met(colours: Space) -> None:
    """Labels and Selectors: the comma is a logical AND."""
    assert selected(colours, "colour in (red,green),size!=1") == {"green"}


def test_a_label_selector_that_is_none(space: Space) -> None:
    """Labels and Selectors, API: a selector must parse."""
    refusal(space.try_list("configmaps", labelSelector="colour in (red"), 400, "BadRequest")


def test_fields_select_by_name(colours: Space) -> None:
    """Field Selectors: metadata.name, with = and !=."""
    assert colours.names("configmaps", fieldSelector="metadata.name=red") == {"red"}
    selector = {"labelSelector": "conformance=yes", "fieldSelector": "metadata.name!=red"}
    assert colours.names("configmaps", **selector) == {"green", "blue", "plain"}


def test_fields_select_pods_by_phase(space: Space) -> None:
    """Field Selectors, List of supported fields: status.phase of pods."""
    spec = {"nodeSelector": {"conformance": "no-such-node"}, "containers": [{"name": "a", "image": "x"}]}
    space.create("pods", {"metadata": {"name": "one"}, "spec": spec})
    assert space.names("pods", fieldSelector="status.phase=Pending,spec.nodeName=") == {"one"}
    assert space.names("pods", fieldSelector="status.phase=Running") == set()
    assert space.names("pods", fieldSelector="spec.restartPolicy=Always") == {"one"}


def test_an_unsupported_field_is_a_bad_request(space: Space) -> None:
    """Field Selectors, Supported fields: an unsupported one is an error."""
    refusal(space.try_list("configmaps", fieldSelector="data.a=b"), 400, "BadRequest")


@pytest.fixture
def many(space: Space) -> Space:
    for index in range(5):
        space.create("secrets", {"metadata": {"name": f"s{index}", "labels": {"conformance": "yes"}}})
    return space


def page(space: Space, **query: Any) -> dict[str, Any]:
    answer: dict[str, Any] = space.try_list("secrets", labelSelector="conformance=yes", **query).json()
    return answer


def test_pages_show_every_object_once(many: Space) -> None:
    """API Concepts, Retrieving large results sets in chunks: limit and continue."""
    seen: list[str] = []
    token = ""
    sizes = []
    while True:
        part = page(many, limit=2, **({"continue": token} if token else {}))
        seen += [each["metadata"]["name"] for each in part["items"]]
        sizes.append(len(part["items"]))
        token = part["metadata"].get("continue", "")
        if not token:
            break
    assert sorted(seen) == ["s0", "s1", "s2", "s3", "s4"]
    assert sizes == [2, 2, 1]


def test_later_pages_show_the_state_of_the_first(many: Space) -> None:
    """API Concepts, Retrieving large results sets in chunks: a consistent snapshot."""
    first = page(many, limit=3)
    many.create("secrets", {"metadata": {"name": "s9", "labels": {"conformance": "yes"}}})
    rest = page(many, **{"limit": 3, "continue": first["metadata"]["continue"]})
    assert [each["metadata"]["name"] for each in rest["items"]] == ["s3", "s4"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_page_says_how_many_are_left(many: Space) -> None:
    """ListMeta, remainingItemCount: set when the list has no selectors."""
    total = len(many.list("secrets"))
    metadata = many.try_list("secrets", limit=2).json()["metadata"]
    assert metadata["remainingItemCount"] == total - 2


def test_a_continue_token_that_is_none(space: Space) -> None:
    """API Concepts, Retrieving large results sets in chunks: the token is the server's."""
    refusal(space.try_list("secrets", limit=1, **{"continue": "nonsense"}), 400, "BadRequest")


def test_a_list_at_an_exact_version(space: Space) -> None:
    """API Concepts, Resource versions, resourceVersionMatch=Exact: the state at that version."""
    created = space.create("secrets", {"metadata": {"name": "one"}})
    version = created["metadata"]["resourceVersion"]
    space.delete("secrets", "one")
    answer = space.try_list("secrets", resourceVersion=version, resourceVersionMatch="Exact").json()
    assert "one" in {each["metadata"]["name"] for each in answer["items"]}
    assert answer["metadata"]["resourceVersion"] == version


def test_a_list_not_older_than_a_version(space: Space) -> None:
    """API Concepts, Resource versions, resourceVersionMatch=NotOlderThan."""
    created = space.create("secrets", {"metadata": {"name": "one"}})
    version = created["metadata"]["resourceVersion"]
    answer = space.try_list("secrets", resourceVersion=version, resourceVersionMatch="NotOlderThan").json()
    assert "one" in {each["metadata"]["name"] for each in answer["items"]}
    assert int(answer["metadata"]["resourceVersion"]) >= int(version)


def test_a_match_needs_a_version(space: Space) -> None:
    """API Concepts, Resource versions: resourceVersionMatch may not be set without resourceVersion."""
    answer = space.try_list("secrets", resourceVersionMatch="Exact")
    assert answer.status_code in (400, 422)
    assert answer.json()["kind"] == "Status"


def test_a_list_at_a_version_long_gone(space: Space) -> None:
    """API Concepts, "410 Gone" responses: versions are kept for a limited time."""
    answer = space.try_list("secrets", resourceVersion="1", resourceVersionMatch="Exact")
    if answer.status_code == 200:
        assert answer.json()["metadata"]["resourceVersion"] == "1"
        pytest.skip("this cluster is so young that it has forgotten nothing yet")
    status = refusal(answer, 410, "Expired")
    assert "too old" in status["message"] or "compacted" in status["message"]


def test_a_version_from_the_future_is_a_timeout(space: Space) -> None:
    """API Concepts, Unavailable resource versions: 504, ResourceVersionTooLarge, Retry-After."""
    version = str(int(space.try_list("secrets").json()["metadata"]["resourceVersion"]) + 10_000_000)
    answer = space.try_list("secrets", resourceVersion=version, resourceVersionMatch="NotOlderThan")
    status = refusal(answer, 504, "Timeout")
    assert status["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert int(status["details"]["retryAfterSeconds"]) >= 1


@pytest.mark.not_embedded("table of ConfigMaps")
def test_a_table_has_columns_and_a_row_for_each_object(colours: Space) -> None:
    """API Concepts, Receiving resources as Tables."""
    headers = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    query = {"labelSelector": "colour=red"}
    table = colours.cluster.http.get(colours.path("configmaps"), headers=headers, params=query).json()
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [each["name"] for each in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    [row] = table["rows"]
    assert row["cells"][:2] == ["red", 0]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert row["object"]["metadata"]["name"] == "red"


def test_a_table_holds_whole_objects_when_asked(colours: Space) -> None:
    """Table, includeObject: None, Metadata or Object."""
    headers = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    path = colours.path("configmaps", "red")
    for include, kind in (("Object", "ConfigMap"), ("None", None)):
        table = colours.cluster.http.get(path, headers=headers, params={"includeObject": include}).json()
        assert (table["rows"][0].get("object") or {}).get("kind") == kind


def test_a_client_may_accept_a_table_or_the_objects(space: Space) -> None:
    """API Concepts, Receiving resources as Tables: several types, the first that is served."""
    accept = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json"
    assert space.cluster.http.get(space.path("pods"), headers={"Accept": accept}).json()["kind"] == "Table"


@pytest.mark.not_embedded("answers with metadata alone")
def test_a_list_of_metadata(colours: Space) -> None:
    """API Concepts, Metadata-only fetches: PartialObjectMetadataList."""
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = colours.cluster.http.get(colours.path("configmaps"), headers={"Accept": accept}).json()
    assert listed["kind"] == "PartialObjectMetadataList"
    assert {each["metadata"]["name"] for each in listed["items"]} >= set(LABELS)
    assert all("data" not in each for each in listed["items"])
