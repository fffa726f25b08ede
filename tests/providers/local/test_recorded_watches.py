"""The watches of a recorded cluster: the same changes, seen by the same watches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

RECORDING = Path(__file__).parent / "recordings" / "list-watch.jsonl"
MERGE = {"Content-Type": "application/merge-patch+json"}
# What every cluster decides by itself.
OWN = ("uid", "resourceVersion", "creationTimestamp", "namespace")


def recorded(stream: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    return [each for each in lines if each["from"] == stream]


def seen(http: httpx.Client, path: str, **query: str) -> list[dict[str, Any]]:
    answer = http.get(path, params={"watch": "true", "timeoutSeconds": "1", **query})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def shape(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    obj = dict(event["object"])
    metadata = {key: value for key, value in obj["metadata"].items() if key not in OWN}
    return event["type"], {**obj, "metadata": metadata}


def steps(events: list[dict[str, Any]]) -> list[int]:
    """How far each event's version is from the first one's."""
    versions = [int(each["object"]["metadata"]["resourceVersion"]) for each in events]
    return [version - versions[0] for version in versions]


def test_watches_show_what_recorded_watches_showed(http: httpx.Client, space: str) -> None:
    path = f"/api/v1/namespaces/{space}/configmaps"
    made = {}
    for number, name in enumerate(("c0", "c1", "c2")):
        body = {"metadata": {"name": name, "labels": {"n": str(number % 2)}}}
        made[name] = http.post(path, json=body).json()
    since = http.get(path).json()["metadata"]["resourceVersion"]
    for name, patch in (("c0", {"data": {"x": "1"}}), ("c1", {"metadata": {"labels": {"n": "0"}}})):
        http.patch(f"{path}/{name}", headers=MERGE, content=json.dumps(patch)).raise_for_status()
    http.delete(f"{path}/c2").raise_for_status()
    compared = 0
    for stream, selector in (("watch", ""), ("watch label n=0", "n=0")):
        expected = recorded(stream)
        own = seen(http, path, resourceVersion=since, labelSelector=selector)
        assert [shape(each) for each in own] == [shape(each) for each in expected], stream
        assert steps(own) == steps(expected), stream
        for event in own:
            metadata, before = event["object"]["metadata"], made[event["object"]["metadata"]["name"]]
            assert metadata["uid"] == before["metadata"]["uid"]
            assert metadata["creationTimestamp"] == before["metadata"]["creationTimestamp"]
        compared += len(own)
    assert compared == 6


def test_initial_events_are_refused_in_recorded_words(http: httpx.Client, space: str) -> None:
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    own = seen(http, f"/api/v1/namespaces/{space}/configmaps", allowWatchBookmarks="true", **query)
    [expected] = recorded("watch-initial")
    assert own == [{"type": expected["type"], "object": expected["object"]}]
