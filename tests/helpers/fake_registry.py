"""A server that answers MLflow's registry searches as MLflow 3.17 does, from memory, and counts them.

For tests that need thousands of polls. ``tests/providers/registry/feed/test_searches.py`` asks it and a real
MLflow the same questions. What changes the registry are methods, as if somebody had called MLflow's other
routes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from helpers.http_server import QuietHandler, serving

PREFIX = "/api/2.0/mlflow/"
LIST = re.compile(r"name IN \((.*?)\)(?= and |$)")
LITERAL = re.compile(r"'([^']*)'|\"([^\"]*)\"")
TAG = re.compile(r"tags\.`(.*?)` = (?:'([^']*)'|\"([^\"]*)\")")


@dataclass
class FakeVersion:
    name: str
    version: int
    created: int
    updated: int
    stage: str = "None"
    tags: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": str(self.version),
            "creation_timestamp": self.created,
            "last_updated_timestamp": self.updated,
            "current_stage": self.stage,
            "status": "READY",
            "source": "models:/m-0",
            "tags": [{"key": key, "value": value} for key, value in self.tags.items()],
        }


@dataclass
class FakeModel:
    name: str
    created: int
    updated: int
    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, FakeVersion] = field(default_factory=dict)
    given: int = 0

    def json(self) -> dict[str, Any]:
        latest: dict[str, FakeVersion] = {}
        for number in sorted(self.versions):
            latest[self.versions[number].stage] = self.versions[number]
        return {
            "name": self.name,
            "creation_timestamp": self.created,
            "last_updated_timestamp": self.updated,
            "latest_versions": [version.json() for version in latest.values()],
            "aliases": [{"alias": key, "version": str(value)} for key, value in self.aliases.items()],
        }


@dataclass
class FakeRegistry:
    """The registry. ``now`` is its clock in ms: it stands still until a test moves it."""

    uri: str = ""
    now: int = 1_700_000_000_000
    models: dict[str, FakeModel] = field(default_factory=dict)
    away: bool = False
    fail_after: int | None = None
    asked: list[str] = field(default_factory=list)

    def version(self, name: str) -> int:
        model = self.models.get(name)
        if model is None:
            model = self.models[name] = FakeModel(name, self.now, self.now)
        model.given += 1
        model.versions[model.given] = FakeVersion(name, model.given, self.now, self.now)
        model.updated = self.now
        return model.given

    def stage(self, name: str, version: int, stage: str, *, archive: bool = False) -> None:
        model = self.models[name]
        for other in model.versions.values():
            if archive and other.stage == stage and other.version != version:
                other.stage, other.updated = "Archived", self.now
        model.versions[version].stage, model.versions[version].updated = stage, self.now
        model.updated = self.now

    def describe(self, name: str, version: int) -> None:
        """A new description moves the version's time and not the model's."""
        self.models[name].versions[version].updated = self.now

    def alias(self, name: str, alias: str, version: int | None) -> None:
        if version is None:
            self.models[name].aliases.pop(alias, None)
        else:
            self.models[name].aliases[alias] = version

    def tag(self, name: str, version: int, key: str, value: str | None) -> None:
        tags = self.models[name].versions[version].tags
        tags.pop(key, None) if value is None else tags.__setitem__(key, value)

    def delete_version(self, name: str, version: int) -> None:
        model = self.models[name]
        del model.versions[version]
        model.aliases = {alias: held for alias, held in model.aliases.items() if held != version}
        model.updated = self.now

    def delete_model(self, name: str) -> None:
        del self.models[name]

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        if self.fail_after is not None:
            self.fail_after -= 1
        if self.away or (self.fail_after is not None and self.fail_after < 0):
            return 503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "away"}
        found: list[Any]
        filter_ = query.get("filter", [""])[0]
        if path == "registered-models/search":
            kind = "registered_models"
            found = sorted(self.models.values(), key=lambda each: each.name)
        elif path == "model-versions/search":
            kind = "model_versions"
            found = [each for model in self.models.values() for each in model.versions.values()]
            if (tag := TAG.search(filter_)) is not None:
                key, value = tag[1], tag[2] if tag[2] is not None else tag[3]
                found = [each for each in found if each.tags.get(key) == value]
            if query["order_by"][0] == "last_updated_timestamp DESC":
                found.sort(key=lambda each: (-each.updated, each.name, -each.version))
            else:
                found.sort(key=lambda each: (each.name, each.version))
        else:
            return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}
        if (names := LIST.search(filter_)) is not None:
            wanted = {first or second for first, second in LITERAL.findall(names[1])}
            found = [each for each in found if each.name in wanted]
        size = int(query["max_results"][0])
        token = query.get("page_token", [""])[0]
        start = int(json.loads(base64.b64decode(token))["offset"]) if token else 0
        body: dict[str, Any] = {kind: [each.json() for each in found[start : start + size]]}
        if len(found) > start + size:
            body["next_page_token"] = base64.b64encode(json.dumps({"offset": start + size}).encode()).decode()
        return 200, body


@contextlib.contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry on a port of its own."""
    registry = FakeRegistry()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"
        # Else the second write of an answer waits for the client's delayed ACK: 40 ms each.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # noqa: N802
            parts = urlsplit(self.path)
            status, answer = registry.answer(parts.path.removeprefix(PREFIX), parse_qs(parts.query))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler) as registry.uri:
        yield registry
