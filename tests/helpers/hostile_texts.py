"""Texts that mean something to a filter, an address, a page, a terminal or a database, and what must not come
of them: a request of another shape.

``World`` is a registry in which everything bears such a name that MLflow itself takes: what is looked up by
it has to be found, or the name refused.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from helpers.mlflow_server import unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.mlflow_proxy import Asked, Proxy
    from helpers.mlflow_server import MLflowServer

TEXTS = {
    "quote": "it's",
    "double quote": 'say "so"',
    "both quotes": "'\"",
    "filter": "x' OR name != '",
    "filter, other quotes": 'x" OR name != "',
    "backticks": "`k` = 'v",
    "backslash": r"a\tb",
    "backslash at the end": "ends\\",
    "per cent": "%",
    "encoded": "..%2f..%2fa%00",
    "lines": "a\nb\r\n: c",
    "terminal": "\x1b[31mred\x1b[0m\x07",
    "NUL": "a\0b",
    "half a pair": "a\ud800",
    "Markdown": "[x](javascript:alert(1)) | **b** ![y](http://e.example/y)",
    "HTML": "<script>alert(1)</script><b>x",
    "traversal": "../../experiments/1",
    "only dots": "..",
    "address": "a?name=other&x=1#f",
    "scheme": "models:/m/1",
    "a page": "b" * 2_000,
    "all at once": 'it\'s "so" `k`\r\n| \x1b[31m <script> [x](javascript:y) **b** ../ \\',
    "long": "a" * 10_000,
    "long number": "9" * 10_000,
    "other digits": "\u0661\u0662",
    "scripts": "naïve 模型 🚀",
    "turned around": "abc\u202edef\u2066",
    "dashes": "--yes",
    "null": "null",
}
"""By what is hostile in them. Single ones can be somebody's real names, and then they have to work."""

FEW = ("half a pair", "all at once", "long number")
"""For places that take many requests and neither look anything up nor refuse."""

CLIPPED = 500
"""A text longer than this may come back shortened, where it is for reading."""

_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"")
_TERM = r"(?:(?:name|run_id|source_run_id|tags\.\?|attributes\.status) = \?|name IN \(\?(?:, \?)*\))"
_FILTER = re.compile(rf"{_TERM}(?: and {_TERM})*")
_FILES = frozenset({"/get-artifact", "/model-versions/get-artifact"})
_PATH = re.compile(
    r"/(ajax-)?api/2\.0/mlflow(-artifacts/artifacts)?(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,60}){1,9}"
)
_FIELDS = frozenset(
    [
        *("alias", "artifact_directory_path", "artifact_file_path", "experiment_id", "experiment_name"),
        *("filter", "key", "max_results", "metric_key", "name", "order_by", "page_token", "path", "run_id"),
        *("run_uuid", "version"),
    ]
)


def changed_requests(asked: list[Asked]) -> list[str]:
    """Those of the requests whose path, fields or filter are not of a form that nighttrain writes."""
    return [problem for each in asked for problem in _problems(each)]


def _problems(asked: Asked) -> Iterator[str]:
    if asked.path not in _FILES and not _PATH.fullmatch(asked.path):
        yield f"path {asked.path[:200]}"
    names = [name for name, _ in parse_qsl(asked.raw_query, keep_blank_values=True)]
    if not _FIELDS.issuperset(names) or len(set(names)) < len([each for each in names if each != "order_by"]):
        yield f"fields {asked.raw_query[:200]}"
    body = json.loads(asked.body) if asked.body.startswith(b"{") else {}
    for written in (asked.query.get("filter"), body.get("filter"), body.get("filter_string")):
        if written and not _FILTER.fullmatch(_QUOTED.sub("?", written)):
            yield f"filter {written[:200]}"


def is_same(text: str, carried: object) -> bool:
    """Tell whether a text came back: whole, with U+FFFD for what no database takes, or visibly cut."""
    storable = re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    if carried in (text, storable):
        return True
    return len(text) > CLIPPED and isinstance(carried, str) and carried.startswith(text[:CLIPPED])


class World:
    """What there is to be found in MLflow, made over its plain API. Names that it refuses are not there.

    ``model`` has a version behind each alias and with each tag that MLflow takes; its version 1 is another's
    champion. ``bystander`` is nobody's business.
    """

    def __init__(self, server: MLflowServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy
        self.experiment = server.experiment()
        self.model = unique("model")
        for _ in range(2):
            server.version(self.model, *self.fresh())
        self.named: dict[str, str] = {}
        for number, text in enumerate(TEXTS.values()):
            self._name_everything(number, text)
        self.alias(self.model, "champion", "1")
        self.bystander = unique("bystander")
        server.version(self.bystander, *self.fresh())
        self.alias(self.bystander, "champion", "1")
        self._before = self._bystander()

    def has(self, kind: str, text: str) -> bool:
        """Tell whether MLflow took the text as a ``model``, an ``alias``, a ``tag`` or a tag's ``value``."""
        return f"{kind} {text}" in self.named

    def value_key(self, text: str) -> str:
        """The tag of ``model``'s version 1 whose value is the text."""
        return f"k{list(TEXTS.values()).index(text)}"

    def alias(self, model: str, alias: str, version: str) -> bool:
        return self._tried("POST", "registered-models/alias", name=model, alias=alias, version=version)

    def tags(self, model: str, version: str = "1") -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in self.version(model, version).get("tags", ())}

    def version(self, model: str, version: str) -> dict[str, Any]:
        found = self.server.call("GET", "model-versions/get", name=model, version=version)
        return dict(found["model_version"])

    def fresh(self) -> tuple[str, str]:
        """A run and its model, which is not registered."""
        run_id = self.server.run(self.experiment)
        return run_id, self.server.logged_model(self.experiment, run_id)

    def judge(self, version: str) -> None:
        """What an accepting gate writes."""
        tag = {"key": "nighttrain.gate.verdict", "value": "accepted"}
        self.server.call("POST", "model-versions/set-tag", name=self.model, version=version, **tag)

    def is_untouched(self) -> bool:
        """Tell whether the bystander is as it was."""
        return self._bystander() == self._before

    def end(self) -> None:
        """Take the models away that would surprise another test."""
        for named in self.named:
            kind, _, text = named.partition(" ")
            if kind == "model":
                self._tried("DELETE", "registered-models/delete", name=text)

    def _name_everything(self, number: int, text: str) -> None:
        if self._tried("POST", "registered-models/create", name=text):
            run_id, model_id = self.fresh()
            source = {"source": f"models:/{model_id}", "model_id": model_id, "run_id": run_id}
            if self._tried("POST", "model-versions/create", name=text, **source):
                self.alias(text, "champion", "1")
                self._tag(text, "k", "v")
                self.named[f"model {text}"] = text
        if self.alias(self.model, text, "1"):
            self.named[f"alias {text}"] = text
        if self._tag(self.model, text, "v"):
            self.named[f"tag {text}"] = text
        if self._tag(self.model, f"k{number}", text):
            self.named[f"value {text}"] = text

    def _tag(self, model: str, key: str, value: str) -> bool:
        return self._tried("POST", "model-versions/set-tag", name=model, version="1", key=key, value=value)

    def _tried(self, method: str, path: str, **body: Any) -> bool:
        try:
            answer = self.server.http.request(method, f"/api/2.0/mlflow/{path}", json=body)
        except UnicodeError:  # half a pair is no JSON
            return False
        return answer.is_success

    def _bystander(self) -> Any:
        model = self.server.call("GET", "registered-models/get", name=self.bystander)["registered_model"]
        return model, self.server.versions(self.bystander)
