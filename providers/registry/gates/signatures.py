"""Signatures of models, read from their MLmodel files as data, and whether one may take another's place.

No model is loaded: an ``MLmodel`` file is YAML whose signature is JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nighttrain.providers.errors import clip

_WIDER = {"integer": {"long", "double"}, "float": {"double"}}
"""What MLflow converts by itself when it enforces a signature, without loss."""

MAX_COLUMNS = 10_000
_SHOWN = 8


class UnreadableSignatureError(ValueError):
    """The file has a signature that is not of MLflow's form."""


@dataclass(frozen=True)
class Column:
    """One input or output. ``type`` is a data type's name, or the JSON text of a tensor, array or object."""

    name: str
    type: str
    required: bool = True


@dataclass(frozen=True)
class Signature:
    """The columns that a model takes and gives, in their order."""

    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]


def read_signature(mlmodel: bytes) -> Signature | None:
    """The signature of an ``MLmodel`` file; ``None`` where it has none.

    :raises UnreadableSignatureError: it is not of MLflow's form
    """
    import yaml

    try:
        document = yaml.safe_load(mlmodel.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UnreadableSignatureError("its MLmodel file is no YAML") from error
    found = document.get("signature") if isinstance(document, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise UnreadableSignatureError("the signature in its MLmodel file is no mapping")
    return Signature(_columns(found.get("inputs"), "inputs"), _columns(found.get("outputs"), "outputs"))


def incompatibilities(candidate: Signature, served: Signature) -> list[str]:
    """What would break for whoever calls the served model, each in a few words that name the column."""
    return [*_inputs(candidate.inputs, served.inputs), *_outputs(candidate.outputs, served.outputs)]


def _inputs(wanted: tuple[Column, ...], sent: tuple[Column, ...]) -> list[str]:
    known = {column.name: column for column in sent}
    problems = []
    for column in wanted:
        other = known.get(column.name)
        shown = _shown(column)
        if other is None:
            if column.required:
                problems.append(f"input {shown} is new and required")
        elif other.type != column.type and column.type not in _WIDER.get(other.type, ()):
            problems.append(f"input {shown} was {clip(other.type, 60)} and is {clip(column.type, 60)}")
        elif column.required and not other.required:
            problems.append(f"input {shown} was optional and is required")
    return problems


def _outputs(given: tuple[Column, ...], served: tuple[Column, ...]) -> list[str]:
    if given == served:
        return []
    now, before = {c.name: c for c in given}, {c.name: c for c in served}
    problems = [f"output {_shown(before[name])} is gone" for name in before if name not in now]
    problems += [f"output {_shown(now[name])} is new" for name in now if name not in before]
    problems += [
        f"output {_shown(now[name])} was {clip(before[name].type, 60)} and is {clip(now[name].type, 60)}"
        for name in now
        if name in before and now[name].type != before[name].type
    ]
    return problems or ["the outputs stand in another order, or are optional"]


def listed(problems: list[str]) -> str:
    """At most a handful of them, in one text."""
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _shown(column: Column) -> str:
    return clip(column.name, 80) if column.name else "(without a name)"


def _columns(text: object, which: str) -> tuple[Column, ...]:
    if text is None:
        return ()
    try:
        columns = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise UnreadableSignatureError(f"the {which} in its signature are no JSON") from error
    if not isinstance(columns, list) or len(columns) > MAX_COLUMNS:
        raise UnreadableSignatureError(f"the {which} in its signature are no list of columns")
    return tuple(_column(item, position, which) for position, item in enumerate(columns))


def _column(item: Any, position: int, which: str) -> Column:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if not isinstance(kind, str):
        raise UnreadableSignatureError(f"one of the {which} in its signature has no type")
    details = {key: item[key] for key in item if key not in ("name", "type", "required", "optional")}
    shown = kind if not details else json.dumps({"type": kind, **details}, sort_keys=True)
    required = item.get("required", not item.get("optional", False))
    # A single column without a name is known by its place.
    name = str(item.get("name", "" if position == 0 else position))
    return Column(name, shown, required is not False)
