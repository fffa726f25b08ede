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


def test_a_page_that_comes_too_late_is_gone(
    http: httpx.Client, api_cluster: EmbeddedCluster, space: str
) -> None:
    make(http, space, "abcd")
    first = page(http, space).json()
    make(http, space, "e")
    api_cluster.call(lambda store: store.compact())
    late = page(http, space, first["metadata"]["continue"])
    assert late.status_code == 410
    status = late.json()
    assert (status["kind"], status["reason"], status["code"]) == ("Status", "Expired", 410)


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
