"""Lists whose version the server does not keep any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from nighttrain.providers.local.cluster.server import EmbeddedCluster


def make(http: httpx.Client, space: str, names: str) -> None:
    for name in names:
        answer = http.post(f"/api/v1/namespaces/{space}/configmaps", json={"metadata": {"name": name}})
        answer.raise_for_status()


def page(http: httpx.Client, space: str, token: str = "", **query: str) -> httpx.Response:
    params = {"limit": "2", "continue": token, **query}
    return http.get(f"/api/v1/namespaces/{space}/configmaps", params=params)


def names(listed: dict[str, Any]) -> list[str]:
    return [each["metadata"]["name"] for each in listed["items"]]


def test_a_page_that_comes_too_late_says_how_to_go_on(
    http: httpx.Client, api_cluster: EmbeddedCluster, space: str
) -> None:
    make(http, space, "abcd")
    first = page(http, space).json()
    http.delete(f"/api/v1/namespaces/{space}/configmaps/c").raise_for_status()
    make(http, space, "e")
    api_cluster.call(lambda store: store.compact())
    late = page(http, space, first["metadata"]["continue"])
    assert late.status_code == 410
    status = late.json()
    assert (status["kind"], status["reason"], status["code"]) == ("Status", "Expired", 410)
    assert status["message"] == (
        "The provided continue parameter is too old to display a consistent list result. You can start a new "
        "list without the continue parameter, or use the continue token in this response to retrieve the "
        "remainder of the results. Continuing with the provided token results in an inconsistent list - "
        "objects that were created, modified, or deleted between the time the first chunk was returned and "
        "now may show up in the list."
    )
    # What follows is not what the first page began: c is gone, e is new.
    rest = page(http, space, status["metadata"]["continue"]).json()
    assert names(rest) == ["d", "e"]
    assert int(rest["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_the_pages_after_it_show_one_moment_again(
    http: httpx.Client, api_cluster: EmbeddedCluster, space: str
) -> None:
    make(http, space, "abcdef")
    first = page(http, space).json()
    make(http, space, "g")
    api_cluster.call(lambda store: store.compact())
    token = page(http, space, first["metadata"]["continue"]).json()["metadata"]["continue"]
    second = page(http, space, token).json()
    assert (names(second), second["metadata"]["remainingItemCount"]) == (["c", "d"], 3)
    make(http, space, "h")
    third = page(http, space, second["metadata"]["continue"], limit="9").json()
    assert names(third) == ["e", "f", "g"]
    assert third["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


def test_a_list_at_a_version_that_is_gone(
    http: httpx.Client, api_cluster: EmbeddedCluster, space: str
) -> None:
    make(http, space, "a")
    version = page(http, space).json()["metadata"]["resourceVersion"]
    make(http, space, "b")
    api_cluster.call(lambda store: store.compact())
    gone = page(http, space, resourceVersion=version, resourceVersionMatch="Exact")
    assert (gone.status_code, gone.json()["reason"]) == (410, "Expired")
    assert gone.json()["message"] == "The resourceVersion for the provided list is too old."
    assert gone.json()["metadata"] == {}
