"""The same requests that a real cluster was asked, and its answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

RECORDINGS = (Path(__file__).parents[2] / "data" / "recordings", Path(__file__).parent / "recordings")

UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

# What is wrong with an object or a request is told in words of its own, and these hold the cluster's own
# numbers: code, reason and the causes' fields and reasons must be the same.
OWN_WORDS = (400, 422)
OWN_NUMBERS = ("watch from a version long gone", "version from the future")


def exchanges(name: str) -> list[dict[str, Any]]:
    path = next(each / f"{name}.jsonl" for each in RECORDINGS if (each / f"{name}.jsonl").exists())
    lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [each for each in found if each["from"] == "http" and each.get("request")]


def normal(value: Any) -> Any:
    """Without what every cluster decides by itself."""
    if isinstance(value, dict):
        skipped = ("resourceVersion", "continue")
        return {key: normal(item) for key, item in value.items() if key not in skipped}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, str):
        return TIME.sub("TIME", UID.sub("UID", value))
    return value


def outline(body: dict[str, Any]) -> Any:
    body = body.get("object", body)
    causes = [(each.get("field"), each["reason"]) for each in (body.get("details") or {}).get("causes", ())]
    return body.get("kind"), body.get("code"), body.get("reason"), causes


class Replay:
    """Sends recorded requests with the versions and uids of this cluster in place of the recorded ones."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._own: dict[str, str] = {}

    def send(self, request: dict[str, Any]) -> httpx.Response:
        body = self._own_words(json.dumps(request["body"])) if request.get("body") is not None else None
        headers = {"Content-Type": request["contentType"]} if request.get("contentType") else {}
        path = self._own_words(request["path"])
        return self._http.request(request["method"], path, content=body, headers=headers)

    def learn(self, recorded: Any, own: Any) -> None:
        """Pairs of recorded and own values, from two answers of the same shape."""
        if isinstance(recorded, dict) and isinstance(own, dict):
            for key, value in recorded.items():
                if key in ("resourceVersion", "uid", "continue") and value and key in own:
                    self._own[value] = own[key]
                self.learn(value, own.get(key))

    def _own_words(self, text: str) -> str:
        for recorded, own in self._own.items():
            pattern = rf"(?<![\w.-]){re.escape(recorded)}(?![\w-])"
            text = re.sub(pattern, own.replace("\\", "\\\\"), text)
        return text


def answer(response: httpx.Response) -> Any:
    if "json" not in response.headers.get("content-type", ""):
        return {"text": response.text}
    return json.loads(response.text.splitlines()[0])


@pytest.mark.parametrize("name", ["api-errors", "lease"])
def test_answers_what_a_real_cluster_answered(http: httpx.Client, name: str) -> None:
    http.post("/api/v1/namespaces", json={"metadata": {"name": "rec"}})
    http.get("/api/v1/namespaces/rec").raise_for_status()
    replay = Replay(http)
    compared = 0
    for exchange in exchanges(name):
        request, expected = exchange["request"], exchange["response"]
        if "resourceVersion=1&" in request["path"]:
            # Long gone there; here the cluster has just begun.
            continue
        response = replay.send(request)
        note = exchange["note"] or f"{request['method']} {request['path']}"
        assert response.status_code == expected["status"], f"{note}: {response.text}"
        own = answer(response)
        if response.status_code in OWN_WORDS or exchange["note"] in OWN_NUMBERS:
            assert outline(own) == outline(expected["body"]), note
        else:
            assert normal(own) == normal(expected["body"]), note
        assert response.headers.get("warning") == expected["headers"].get("Warning"), note
        replay.learn(expected["body"], own)
        compared += 1
    assert compared >= 3


def test_pages_and_selects_as_a_real_cluster_did(http: httpx.Client) -> None:
    http.post("/api/v1/namespaces", json={"metadata": {"name": "paged"}})
    replay = Replay(http)
    for number, name in enumerate(("c0", "c1", "c2", "kube-root-ca.crt", "ssa")):
        metadata: dict[str, Any] = {"name": name}
        if number < 3:
            metadata["labels"] = {"n": str(number % 2)}
        http.post("/api/v1/namespaces/paged/configmaps", json={"metadata": metadata}).raise_for_status()
    for exchange in exchanges("list-watch"):
        request, expected = exchange["request"], exchange["response"]
        request["path"] = request["path"].replace("/rec/", "/paged/")
        own = answer(replay.send(request))
        replay.learn(expected["body"], own)
        recorded = expected["body"]
        assert own["kind"] == recorded["kind"]
        assert ("continue" in own["metadata"]) == ("continue" in recorded["metadata"])
        assert own["metadata"].get("remainingItemCount") == recorded["metadata"].get("remainingItemCount")
        names = [each["metadata"]["name"] for each in own["items"]]
        assert names == [each["metadata"]["name"] for each in recorded["items"]]
        assert [sorted(each) for each in own["items"]] == [
            sorted(set(each) - {"data"}) for each in recorded["items"]
        ]


def test_discovery_lists_what_is_served_as_a_real_cluster_does(http: httpx.Client) -> None:
    checked = 0
    for exchange in exchanges("discovery"):
        path, note = exchange["request"]["path"], exchange["note"]
        if note or path in ("/api", "/apis", "/version") or path.startswith(("/openapi", "/apis/apiext")):
            continue
        recorded = {each["name"]: each for each in exchange["response"]["body"]["resources"]}
        own = http.get(path).json()["resources"]
        assert own
        for each in own:
            expected = dict(recorded[each["name"]])
            expected.pop("storageVersionHash", None)
            expected["verbs"] = [verb for verb in expected["verbs"] if verb != "deletecollection"]
            assert each == expected
            checked += 1
    assert checked > 15


def test_a_forbidden_namespace_refuses_in_a_real_clusters_words(http: httpx.Client) -> None:
    checked = 0
    for exchange in exchanges("forbidden"):
        request, expected = exchange["request"], exchange["response"]
        if "/namespaces/rec" not in request["path"]:
            continue
        path = request["path"].replace("/namespaces/rec", "/namespaces/closed")
        response = http.request(request["method"], path, json=request["body"])
        recorded = (
            json.dumps(expected["body"]).replace("alice", "nighttrain").replace('\\"rec\\"', '\\"closed\\"')
        )
        assert response.status_code == 403
        assert response.json() == json.loads(recorded)
        checked += 1
    assert checked == 3
