"""Watches: what comes, from where on, and how they end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from helpers.conformance_client import config_map

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

pytestmark = pytest.mark.api

# A server that sends bookmarks sends one shortly before it ends a watch, and otherwise about once a minute.
BOOKMARK_SECONDS = (6, 75)


def version(space: Space, kind: str = "configmaps") -> str:
    found: str = space.try_list(kind).json()["metadata"]["resourceVersion"]
    return found


def test_a_watch_goes_on_from_a_list(space: Space) -> None:
    """API Concepts, Efficient detection of changes: every change after the version, in order."""
    since = version(space)
    space.create("configmaps", config_map("one", {"a": "1"}))
    space.patch("configmaps", "one", {"data": {"a": "2"}})
    space.delete("configmaps", "one")
    with space.watch("configmaps", resourceVersion=since, fieldSelector="metadata.name=one") as events:
        seen = [next(events) for _ in range(3)]
    assert [each["type"] for each in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert [each["object"]["data"]["a"] for each in seen] == ["1", "2", "2"]
    versions = [int(each["object"]["metadata"]["resourceVersion"]) for each in seen]
    assert versions == sorted(set(versions))


def test_a_watch_shows_changes_as_they_happen(space: Space) -> None:
    """API Concepts, Efficient detection of changes."""
    with space.watch("configmaps", fieldSelector="metadata.name=one") as events:
        space.create("configmaps", config_map("one"))
        event = next(events)
    assert (event["type"], event["object"]["kind"]) == ("ADDED", "ConfigMap")


def test_a_watch_without_a_version_begins_with_what_is_there(space: Space) -> None:
    """API Concepts, Semantics for watch: unset, synthetic ADDED events come first."""
    space.create("configmaps", config_map("one"))
    with space.watch("configmaps", fieldSelector="metadata.name=one") as events:
        event = next(events)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "one")
        space.delete("configmaps", "one")
        assert next(events)["type"] == "DELETED"


def test_a_watch_from_an_objects_version_shows_only_what_follows(space: Space) -> None:
    """API Concepts, Semantics for watch: start at exact."""
    created = space.create("configmaps", config_map("one", {"a": "1"}))
    since = created["metadata"]["resourceVersion"]
    with space.watch("configmaps", fieldSelector="metadata.name=one", resourceVersion=since) as events:
        space.patch("configmaps", "one", {"data": {"a": "2"}})
        event = next(events)
    assert (event["type"], event["object"]["data"]) == ("MODIFIED", {"a": "2"})


def test_an_object_that_is_not_selected_any_more_is_deleted_to_the_watch(space: Space) -> None:
    """API Concepts, Efficient detection of changes: a selector sees what enters and leaves it."""
    space.create("configmaps", config_map("one", labels={"show": "yes"}))
    since = version(space)
    with space.watch("configmaps", labelSelector="show=yes", resourceVersion=since) as events:
        space.patch("configmaps", "one", {"metadata": {"labels": {"show": "no"}}})
        assert next(events)["type"] == "DELETED"
        space.patch("configmaps", "one", {"metadata": {"labels": {"show": "yes"}}})
        assert next(events)["type"] == "ADDED"


def test_a_watch_ends_after_its_time(space: Space) -> None:
    """API Reference, Common parameters, timeoutSeconds: limits the duration, regardless of activity."""
    began = time.monotonic()
    with space.watch("configmaps", timeoutSeconds=1, resourceVersion=version(space)) as events:
        assert [each for each in events if each["type"] == "ERROR"] == []
    assert 0.5 < time.monotonic() - began < 10


def test_a_watch_from_a_version_long_gone_says_so(space: Space) -> None:
    """API Concepts, "410 Gone" responses: an ERROR event with a Status of code 410."""
    with space.watch("configmaps", resourceVersion="1", timeoutSeconds=5) as events:
        event = next(events, None)
        if event is None or event["type"] != "ERROR":
            pytest.skip("this server is so young that it still knows its first changes")
        status = event["object"]
        assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")
        # The stream is over then.
        assert list(events) == []


def until_bookmark(space: Space, selector: str = "") -> list[Object]:
    """What a watch of ConfigMaps tells up to its first bookmark."""
    for number, seconds in enumerate(BOOKMARK_SECONDS):
        query = {"allowWatchBookmarks": "true", "timeoutSeconds": seconds, "resourceVersion": version(space)}
        seen = []
        with space.watch("configmaps", labelSelector=selector, **query) as events:
            # Something of the kind has to change: before the first change no bookmark is due.
            space.create("configmaps", config_map(f"change-{number}", labels={"show": "yes"}))
            for event in events:
                seen.append(event)
                if event["type"] == "BOOKMARK":
                    return seen
    pytest.skip("no bookmark came: a server may send none")


def test_bookmarks_tell_a_version_and_nothing_else(space: Space) -> None:
    """API Concepts, Watch bookmarks: an object with only its resourceVersion filled in."""
    *changes, bookmark = until_bookmark(space)
    # A controller may make a ConfigMap in a new namespace too.
    assert {each["type"] for each in changes} == {"ADDED"}
    told, metadata = bookmark["object"], dict(bookmark["object"]["metadata"])
    assert (told["kind"], told["apiVersion"]) == ("ConfigMap", "v1")
    assert int(metadata.pop("resourceVersion")) >= int(changes[-1]["object"]["metadata"]["resourceVersion"])
    assert not told.get("data")
    assert not any(metadata.values())


def test_a_bookmarks_version_can_be_watched_from(space: Space) -> None:
    """API Concepts, Watch bookmarks: all changes up to it have been sent."""
    *_, bookmark = until_bookmark(space, "show=yes")
    since = bookmark["object"]["metadata"]["resourceVersion"]
    space.create("configmaps", config_map("later", labels={"show": "yes"}))
    with space.watch("configmaps", resourceVersion=since, labelSelector="show=yes") as events:
        event = next(events)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "later")


def test_nobody_gets_bookmarks_who_did_not_ask(space: Space) -> None:
    """API Concepts, Watch bookmarks: on request by allowWatchBookmarks=true."""
    with space.watch("configmaps", timeoutSeconds=4, resourceVersion=version(space)) as events:
        space.create("configmaps", config_map("change"))
        assert {event["type"] for event in events} == {"ADDED"}


def test_a_dry_run_is_no_event(space: Space) -> None:
    """API Concepts, Dry-run: no side effects."""
    since = version(space)
    space.create("configmaps", config_map("dry"), dryRun="All")
    space.create("configmaps", config_map("wet"))
    with space.watch("configmaps", resourceVersion=since) as events:
        names = []
        while "wet" not in names:
            names.append(next(events)["object"]["metadata"]["name"])
    assert "dry" not in names


def test_a_write_that_changes_nothing_is_no_event(space: Space) -> None:
    """API Concepts, Resource versions: no new version, nothing to tell."""
    space.create("configmaps", config_map("one", {"a": "1"}))
    since = version(space)
    space.patch("configmaps", "one", {"data": {"a": "1"}})
    space.patch("configmaps", "one", {"data": {"a": "2"}})
    query = {"resourceVersion": since, "fieldSelector": "metadata.name=one"}
    with space.watch("configmaps", **query) as events:
        assert next(events)["object"]["data"] == {"a": "2"}
