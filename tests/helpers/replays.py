"""Recordings of a serving system's controllers, replayed to what reads them: from any prefix, in any order.

A recording's streams are separate connections: inside one, order is kept; among them it could have been any.
Names, uids, versions and times are others in each replay. What a recording should end as is written by hand,
in a table beside the test or in ``NAME.end.json`` beside the recording; without either the invariants alone
are checked.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.interleaved import Present, Seen, as_recorded, interleaved

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Look, Target

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

# A gateway follows its route up to two seconds late; clients count whole seconds.
_ANSWERS_FOLLOW_SECONDS = 4.0


@dataclass(frozen=True)
class Request:
    """A call that the scenario made."""

    at: float
    method: str
    path: str
    content_type: str | None
    body: Any
    status: int


@dataclass(frozen=True)
class Recording:
    """One scenario.

    :param answers: of steady clients: second -> version -> number; ``-`` for none
    """

    name: str
    about: str
    events: list[Seen]
    requests: list[Request]
    answers: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def streams(self) -> set[str]:
        return {event.stream for event in self.events}

    def writes(self) -> list[Request]:
        """The calls that changed something."""
        return [each for each in self.requests if each.method != "GET" and each.status < 400]


def load(path: Path) -> Recording:
    """Read a recording, plain or compressed.

    :raises ValueError: it is none, or cut off; names the file and the line
    """
    events, requests, about = [], [], ""
    answers: dict[int, dict[str, int]] = {}
    for line in _lines(path):
        if line["from"] == "about":
            about = line["text"]
        elif line["from"] == "http" and "request" in line:
            asked = line["request"]
            kind = asked.get("contentType")
            code = line["response"]["status"]
            requests.append(Request(line["t"], asked["method"], asked["path"], kind, asked.get("body"), code))
        elif line["from"] == "client":
            for second, counts in (line.get("by_second") or {}).items():
                versions = answers.setdefault(int(second), {})
                for answer, number in counts.items():
                    version = answer.split(" ")[0]
                    versions[version] = versions.get(version, 0) + number
        elif line.get("type") in ("ADDED", "MODIFIED", "DELETED"):
            events.append(Seen(line["t"], line["from"], line["type"], line["object"]))
    return Recording(path.name.split(".jsonl")[0], about, events, requests, answers)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        texts = raw.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(line, dict) or "from" not in line:
            raise ValueError(f"{path}, line {number}: not a line of a recording, which has 'from'")
        yield line


def shuffled(recording: Recording, names: Sequence[str], seed: int) -> tuple[Recording, dict[str, str]]:
    """The recording with other names, uids, resourceVersions and times; and the new names.

    :param names: that the scenario chose; what is made of them follows
    """
    chance = random.Random(seed)
    others = {name: f"{chance.choice('abcdefgh')}{chance.getrandbits(32):08x}" for name in names}
    tokens = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    token = re.compile(rf"(?<![A-Za-z0-9_-])({tokens})(?![A-Za-z0-9_])|(?<=-)({tokens})(?![A-Za-z0-9_])")
    later = timedelta(seconds=chance.randrange(-(10**7), 10**7))
    versions = chance.randrange(10**6)
    uids: dict[str, str] = {}

    def text(value: str) -> str:
        value = _UID.sub(lambda found: uids.setdefault(found[0], _uuid(chance)), value)
        value = _TIME.sub(lambda found: _moved(found[0], later), value)
        return token.sub(lambda found: others[found[1] or found[2]], value) if names else value

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: walk(held, name) for name, held in value.items()}
        if isinstance(value, list):
            return [walk(held) for held in value]
        if key == "resourceVersion" and isinstance(value, str) and value.isdecimal():
            return str(int(value) + versions)
        return text(value) if isinstance(value, str) and key not in ("kind", "type", "reason") else value

    events = [replace(event, object=walk(event.object)) for event in recording.events]
    requests = [replace(each, path=text(each.path), body=walk(each.body)) for each in recording.requests]
    return replace(recording, events=events, requests=requests), others


def _uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128)))


def _moved(stamp: str, later: timedelta) -> str:
    return (datetime.fromisoformat(stamp) + later).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Case:
    """One rollout as it could be read into a recording.

    :param look: the backend's pure reading of what is there
    :param vouches: the test's own, blunt check that a claim ("promoted", "undone", "ready") is borne out
    :param spec: the stream of the object that says what is asked for
    :param answers_as: the names under which the clients counted a version
    """

    target: Target
    look: Callable[[Present], Look]
    vouches: Callable[[str, Present], bool]
    spec: str
    answers_as: Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class End:
    """What a recording ends as, for one case; what is ``None`` is not compared.

    :param never: what is never so
    :param windows: claim -> the seconds of the recording between which it is so
    """

    promoted: bool = False
    undone: bool = False
    asked: int | None = None
    routed: float | str | None = None
    ready: bool | None = None
    stable_ready: bool | None = None
    never: tuple[str, ...] = ()
    windows: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @classmethod
    def beside(cls, path: Path) -> End | None:
        """The end that a file beside the recording names, if there is one."""
        found = path.with_name(path.name.split(".jsonl")[0] + ".end.json")
        if not found.exists():
            return None
        given = json.loads(found.read_text("utf-8"))
        windows = {claim: tuple(map(tuple, each)) for claim, each in given.get("windows", {}).items()}
        return cls(**{**given, "never": tuple(given.get("never", ())), "windows": windows})

    def allows(self, claim: str, present: Present, spec: str) -> bool:
        """True if it was so by the newest that is known, and since the spec was as it is seen."""
        if claim in self.never:
            return False
        newest, asked = max(present.at.values()), present.at.get(spec, 0.0)
        spans = self.windows.get(claim, ((0.0, math.inf),))
        return any(start <= newest and asked <= end for start, end in spans)


UNSEEN = "unseen"
"""As :attr:`End.routed`: the share is not reported."""


def orders(recording: Recording, seeds: int) -> Iterator[tuple[str, Iterator[Present]]]:
    """As recorded; each stream first, and last; and shuffled."""
    yield "as recorded", as_recorded(recording.events)
    for stream in sorted(recording.streams):
        own = [event for event in recording.events if event.stream == stream]
        rest = [event for event in recording.events if event.stream != stream]
        yield f"{stream} first", as_recorded(own + rest)
        yield f"{stream} last", as_recorded(rest + own)
    for seed in range(seeds):
        yield f"seed {seed}", interleaved(recording.events, seed)


def check(recording: Recording, case: Case, end: End | None, *, seeds: int = 25) -> None:
    """Replay in every order, look at every point, and hold the claims against what is so."""
    for order, presents in orders(recording, seeds):
        look, seen = None, 0
        for present in presents:
            seen += 1
            look = case.look(present)
            where = f"{recording.name}, {order}, after {seen} events ({present.at}): {look}"
            assert not (look.promoted and look.undone and case.target.stable is not None), where
            for claim, made in _claims(look).items():
                if not made:
                    continue
                assert case.vouches(claim, present), f"{claim} before it is so: {where}"
                assert end is None or end.allows(claim, present, case.spec), f"{claim}: {where}"
            if order == "as recorded":
                _not_contradicted(recording, case, look, present, where)
        if end is not None and look is not None:
            _ended(end, look, f"{recording.name}, {order}: {look}")


def _claims(look: Look) -> dict[str, bool]:
    return {
        "promoted": look.promoted,
        "undone": look.undone,
        "ready": look.readiness.ready,
        "stable_ready": look.stable_ready,
        "routed": look.routed_percent is not None,
    }


def _ended(end: End, look: Look, where: str) -> None:
    assert (look.promoted, look.undone) == (end.promoted, end.undone), where
    assert end.asked is None or look.asked_percent == end.asked, where
    assert end.ready is None or look.readiness.ready is end.ready, where
    assert end.stable_ready is None or look.stable_ready is end.stable_ready, where
    if end.routed == UNSEEN:
        assert look.routed_percent is None, where
    elif end.routed is not None:
        assert look.routed_percent == end.routed, where


def _not_contradicted(recording: Recording, case: Case, look: Look, present: Present, where: str) -> None:
    """Hold a claim against the answers that steady clients got until somebody changed something again."""
    if not (look.promoted or look.undone) or case.target.stable is None:
        return
    now, asked = max(present.at.values()), present.at.get(case.spec, 0.0)
    # A change that the stream of the spec has not brought yet was made all the same.
    until = min((each.at for each in recording.writes() if each.at > asked), default=float("inf"))
    wrong = case.answers_as(case.target.stable if look.promoted else case.target.candidate)
    for second, versions in recording.answers.items():
        if now + _ANSWERS_FOLLOW_SECONDS <= second and second + 1 <= until:
            assert not versions.get(wrong), f"{wrong} answered in second {second}: {where}"
