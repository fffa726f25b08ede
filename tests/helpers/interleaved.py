"""Recorded watch streams as somebody else could have seen them: in any interleaving, up to any point.

The streams of a recording are separate connections. Each keeps its own order; their order relative to one
another could have been any.
"""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helpers import RECORDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Object = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """One event of a watch."""

    at: float
    stream: str
    type: str
    object: Object


@dataclass
class Present:
    """What whoever follows every stream holds at one moment.

    :param at: the time of the last event of each stream
    """

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)

    def of(self, stream: str) -> list[Object]:
        return [found for (kind, _), found in self.objects.items() if kind == stream]

    def take(self, seen: Seen) -> None:
        key = (seen.stream, seen.object["metadata"]["name"])
        self.at[seen.stream] = seen.at
        if seen.type == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = seen.object


def recorded(name: str, folder: Path = RECORDINGS) -> list[Seen]:
    """The events of a recording, in the order in which they were seen."""
    lines = map(json.loads, (folder / f"{name}.jsonl").read_text("utf-8").splitlines())
    return [
        Seen(line["t"], line["from"], line["type"], line["object"])
        for line in lines
        if line.get("type") in ("ADDED", "MODIFIED", "DELETED")
    ]


def as_recorded(events: list[Seen]) -> Iterator[Present]:
    """What is held after each event, in the order of the recording."""
    present = Present()
    for event in events:
        present.take(event)
        yield present


def interleaved(events: list[Seen], seed: int) -> Iterator[Present]:
    """What is held after each event of one interleaving; uids are others than the recorded ones."""
    chance = random.Random(seed)
    streams: dict[str, list[Seen]] = {}
    for event in _renamed(events, chance):
        streams.setdefault(event.stream, []).append(event)
    # Streams that run ahead, and streams that lag behind.
    pace = {stream: chance.choice((0.2, 1, 5)) for stream in streams}
    present = Present()
    while streams:
        names = list(streams)
        stream = chance.choices(names, [pace[name] * len(streams[name]) for name in names])[0]
        present.take(streams[stream].pop(0))
        if not streams[stream]:
            del streams[stream]
        yield present


def _renamed(events: list[Seen], chance: random.Random) -> list[Seen]:
    uids = {event.object["metadata"].get("uid") for event in events} - {None}
    others = {uid: str(uuid.UUID(int=chance.getrandbits(128))) for uid in uids}
    text = json.dumps([event.object for event in events])
    for uid, other in others.items():
        text = text.replace(uid, other)
    return [
        Seen(event.at, event.stream, event.type, found)
        for event, found in zip(events, json.loads(text), strict=True)
    ]
