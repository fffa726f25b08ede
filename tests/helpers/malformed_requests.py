"""Requests nobody should send, made from a seed: at no object at all, and at honest objects of every kind."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from helpers.honest_objects import DELETE_OPTIONS, EVICTION, KINDS, SCALE, SPACE, Kind
from helpers.malformed_words import FIELDS, KEYS, METHODS, NAMES, PLACES, PLURALS, TYPES, VALUES, garbage

if TYPE_CHECKING:
    import random


def request(
    token: str, method: str, target: str | bytes, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    raw = target if isinstance(target, bytes) else target.encode("utf-8", "surrogateescape")
    lines = [b"%s %s HTTP/1.1" % (method.encode(), raw), b"Host: 127.0.0.1"]
    given = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
    lines += [f"{name}: {value}".encode("latin-1", "replace") for name, value in given.items()]
    lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def spoiled(chance: random.Random, honest: Any) -> Any:
    """The same with a value or name, somewhere, replaced or taken away; seldom with more than one."""
    whole = copy.deepcopy(honest)
    _spoil(chance, whole)
    while chance.random() < 0.2:
        _spoil(chance, whole)
    return whole


def _spoil(chance: random.Random, at: Any) -> None:
    while at:
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.85:
            at = at[key]
            continue
        how = chance.random()
        if how < 0.1:
            del at[key]
        elif isinstance(at, dict) and how < 0.2:
            at[chance.choice(FIELDS)] = at.pop(key)
        elif isinstance(at, dict) and how < 0.35:
            at[chance.choice(FIELDS)] = garbage(chance, 4)
        else:
            at[key] = garbage(chance, 4)
        return


def labelled(chance: random.Random, honest: Any) -> Any:
    """The same, with a label that does no harm."""
    metadata = honest["metadata"]
    labels = {**metadata.get("labels", {}), "n": str(chance.randint(0, 9))}
    return {**honest, "metadata": {**metadata, "labels": labels}}


def pointers(value: Any, here: str = "") -> list[str]:
    """JSON pointers to everything in the value."""
    found = [here]
    if isinstance(value, dict):
        for key, item in value.items():
            found += pointers(item, f"{here}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += pointers(item, f"{here}/{index}")
    return found


@dataclass(frozen=True)
class Strike:
    """One request at an honest object.

    :param label: it is honest: the object as it is then, with another label, is to replace it
    """

    kind: Kind
    method: str
    target: str
    body: Any = None
    media: str = "application/json"
    accept: str = "application/json"
    label: str = ""

    def raw(self, token: str, body: Any) -> bytes:
        body = b"" if body is None else json.dumps(body).encode()
        return request(
            token, self.method, self.target, body, {"Content-Type": self.media, "Accept": self.accept}
        )

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.media} {self.accept} {json.dumps(self.body)[:1500]}"


QUERIES = (
    *("", "", "", "", "?fieldValidation=Strict", "?fieldValidation=Warn", "?dryRun=All"),
    *("?fieldManager=g", "?force=true&fieldManager=f", "?fieldManager=f"),
)
FORMS = (
    "application/json;as=Table;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    "application/json",
)
READS = (
    "",
    "?limit=1",
    "?includeObject=Object",
    "?labelSelector=a%3Db",
    "?fieldSelector=metadata.name%3Dhonest",
)
MERGE = ("application/merge-patch+json", "application/strategic-merge-patch+json")


def strike(chance: random.Random) -> Strike:
    """A request at one of the honest objects; one in four of those that write is honest itself."""
    kind = chance.choice(KINDS)
    how = chance.random()
    if how < 0.12:
        new = kind.object
        if chance.random() < 0.5:
            _rename(chance, kind, new)
        return Strike(kind, "POST", kind.path + chance.choice(QUERIES), spoiled(chance, new))
    if how < 0.3:
        return _read(chance, kind)
    if how < 0.4:
        return _delete(chance, kind)
    return _write(chance, kind)


def _rename(chance: random.Random, kind: Kind, new: dict[str, Any]) -> None:
    """Give it a name that is free: a definition is named after its group."""
    if kind.kind == "CustomResourceDefinition":
        group = f"g{chance.randrange(10**6)}.example.com"
        new["metadata"]["name"] = f"{new['spec']['names']['plural']}.{group}"
        new["spec"]["group"] = group
    else:
        new["metadata"]["generateName"] = f"{new['metadata'].pop('name')}-"


def _read(chance: random.Random, kind: Kind) -> Strike:
    everywhere = kind.path.replace(f"/namespaces/{SPACE}", "")
    target = chance.choice((kind.path, everywhere, kind.place)) + chance.choice(READS)
    if kind.subresources and chance.random() < 0.2:
        target = f"{kind.place}/{chance.choice(kind.subresources)}"
    return Strike(kind, "GET", target, accept=chance.choice(FORMS))


def _delete(chance: random.Random, kind: Kind) -> Strike:
    if kind.kind == "Pod" and chance.random() < 0.5:
        return Strike(kind, "POST", f"{kind.place}/eviction", spoiled(chance, EVICTION))
    options = chance.choice((None, {"gracePeriodSeconds": 0}, {"propagationPolicy": "Foreground"}))
    if chance.random() < 0.6:
        options = spoiled(chance, DELETE_OPTIONS)
    if chance.random() < 0.1 and kind.kind != "Node":
        return Strike(kind, "DELETE", f"{kind.path}?labelSelector=n", options)
    return Strike(kind, "DELETE", kind.place + chance.choice(QUERIES), options)


def _write(chance: random.Random, kind: Kind) -> Strike:
    subresource = chance.choice(("", "", "", *kind.subresources))
    target = kind.place + (f"/{subresource}" if subresource else "") + chance.choice(QUERIES)
    honest = SCALE if subresource == "scale" else kind.object
    body = labelled(chance, honest) if chance.random() < 0.25 else spoiled(chance, honest)
    how = chance.random()
    if how < 0.1:
        return Strike(kind, "PUT", kind.place, label=str(chance.randint(0, 9)))
    if how < 0.25:
        return Strike(kind, "PUT", target, body)
    if how < 0.6:
        return Strike(kind, "PATCH", target, body, chance.choice(MERGE))
    if how < 0.8:
        target += "" if "fieldManager" in target else ("&" if "?" in target else "?") + "fieldManager=f"
        return Strike(kind, "PATCH", target, body, "application/apply-patch+yaml")
    places = pointers(honest)
    operations = [
        {
            "op": chance.choice(("add", "remove", "replace", "move", "copy", "test")),
            "path": chance.choice(places) + chance.choice(("", "", "/x", "/-", "/0")),
            "from": chance.choice(places),
            "value": garbage(chance, 3),
        }
        for _ in range(chance.randint(1, 3))
    ]
    return Strike(kind, "PATCH", target, operations, "application/json-patch+json")


BODIES = (*(kind.object for kind in KINDS), SCALE, EVICTION, DELETE_OPTIONS)


def body_of(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.15:
        return b""
    if kind < 0.45:
        return json.dumps(spoiled(chance, chance.choice(BODIES))).encode()
    if kind < 0.75:
        return json.dumps(garbage(chance)).encode()
    return chance.choice(
        (
            b"\xff\xfe\x00",
            b'{"metadata": {"name": "\xc3\x28"}}',
            b'{"metadata": {"name": "\\ud800"}}',
            b'{"metadata": {"name": "twice"}, "metadata": {"name": "again"}}',
            b'{"metadata": {"name": "nan"}, "spec": {"replicas": NaN}}',
            b"{" * 50,
            b"[" * 100_000,
            b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
            b'{"spec":' * 500 + b"1" + b"}" * 500,
            b"&a [*a, *a]",
            b"!!python/object/apply:os.system ['true']",
            b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
            b"null",
            b"[]",
            b'"text"',
            b"0",
            b"9" * 5_000,
            b"\0" * 100,
            b"- " * 2_000,
            b'[{"op": "add", "path": "/metadata/labels/~2", "value": 1}]',
            b'[{"op": "copy", "from": "", "path": "/a"}]',
            b'[{"op": "test", "path": "/kind", "value": 3}]',
            b'[{"op": "remove", "path": ""}]',
            b'[{"path": "/metadata"}]',
            b'[{"op": 3, "path": 4}]',
        )
    )


def generated(chance: random.Random, token: str) -> tuple[bytes, str]:
    """A request, and what to say of it when it fails."""
    method = chance.choice(METHODS[:5]) if chance.random() < 0.9 else chance.choice(METHODS)
    target = chance.choice(PLACES).replace("{plural}", chance.choice(PLURALS))
    while "{name}" in target:
        target = target.replace("{name}", chance.choice(NAMES).replace("{name}", "x"), 1)
    pairs = [
        f"{chance.choice(KEYS)}={quote(chance.choice(VALUES), '%=,')}" for _ in range(chance.randint(0, 3))
    ]
    if chance.random() < 0.1:
        # A watch that would go on for ever is no hang; this one must end.
        pairs += ["watch=true", "timeoutSeconds=1"] if chance.random() < 0.1 else []
    target += "?" + "&".join(pairs) if pairs else ""
    headers = {"Content-Type": chance.choice(TYPES) if chance.random() < 0.6 else "application/json"}
    unusual = chance.random()
    if unusual < 0.05:
        headers |= {f"X-Many-{number}": "v" * 20 for number in range(200)}
    elif unusual < 0.1:
        headers["Accept"] = chance.choice(
            ("application/json;as=Table;g=meta.k8s.io;v=v1", "text/*", ",,;;", "a" * 3000)
        )
    elif unusual < 0.12:
        headers["Authorization"] = chance.choice(("Bearer", "Basic \xff", "Bearer \xfc", "", "x" * 4000))
    body = body_of(chance)
    return request(token, method, target, body, headers), f"{method} {target} {headers} {body[:300]!r}"
