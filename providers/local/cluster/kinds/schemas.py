"""A kind's schema applied to an object: pruned, completed, checked; a built-in kind's or a definition's.

Of a CustomResourceDefinition's schema is checked what the built-in kinds need too: types, required and known
fields, enumerations, smallest and largest numbers. The rest of it is not, see docs/embedded-cluster.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft4Validator, SchemaError

from nighttrain.providers.local.cluster.kinds.formats import FORMATS, OF_TYPES, Format
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    invalid_value,
    required_value,
    unsupported_value,
)
from nighttrain.providers.local.cluster.store.objects import copy_object

Schema = dict[str, Any]
EMBEDDED = ("apiVersion", "kind", "metadata")


def complete(schema: Schema, value: Any) -> None:
    """Set defaults in place. A null where none is allowed is taken as absent."""
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, dict):
            for item in value:
                complete(items, item)
    elif isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for name, below in properties.items():
            _complete_field(below, value, name)
        if isinstance(additional, dict):
            for name in [each for each in value if each not in properties]:
                _complete_field(additional, value, name)


def _complete_field(schema: Schema, parent: dict[str, Any], name: str) -> None:
    present = name in parent
    if present:
        null = parent[name] is None and not schema.get("nullable")
        unset = "x-unset" in schema and "default" in schema and parent[name] in schema["x-unset"]
        if null or unset:
            del parent[name]
            present = False
    if not present and schema.get("default") is not None:
        parent[name] = copy_object(schema["default"])
        present = True
    if present:
        complete(schema, parent[name])


class WrongTypeError(Exception):
    """A field has a value of another type.

    :param field: its path; empty for the object itself
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field or 'the object'}: {why}")
        self.field = field
        self.why = why


def fit(schema: Schema, value: Any, *, custom: bool = False) -> list[str]:
    """Write an object, in place, as the API stores it.

    That is without unknown fields and nulls. In one of a built-in kind amounts are texts, and what is empty
    and need not be there is left out.

    :return: the paths of the unknown fields
    :raises WrongTypeError: for the first value of a wrong type
    """
    # Not by the library: it takes several times as long, and every pod of the cluster's own passes here.
    unknown: list[str] = []
    _fit(schema, value, "", unknown, custom)
    return unknown


def _fit(schema: Schema, value: Any, path: str, unknown: list[str], custom: bool) -> None:
    if value is None and schema.get("nullable"):
        return
    why = _wrong_type(schema, value)
    if why:
        raise WrongTypeError(path, why)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            _fit(schema["items"], item, f"{path}[{index}]", unknown, custom)
    elif isinstance(value, dict):
        _fit_fields(schema, value, f"{path}." if path else "", unknown, custom)


def _fit_fields(schema: Schema, fields: dict[str, Any], base: str, unknown: list[str], custom: bool) -> None:
    properties, other = schema.get("properties") or {}, schema.get("additionalProperties")
    own = EMBEDDED if schema.get("x-kubernetes-embedded-resource") else ()
    for name, item in list(fields.items()):
        below = True if name in own else properties.get(name, other)
        if not isinstance(below, dict):
            if below is not True and not schema.get("x-kubernetes-preserve-unknown-fields"):
                unknown.append(base + name)
                del fields[name]
        elif item is None and not below.get("nullable"):
            del fields[name]
        else:
            if below.get("format") == "quantity" and type(item) in (int, float):
                item = fields[name] = str(item)
            _fit(below, item, base + name, unknown, custom)
            if item in ([], {}) and not custom and _is_optional_collection(schema, name, below):
                del fields[name]
    for name, zero in schema.get("x-zeros", {}).items():
        fields.setdefault(name, zero)


def _is_optional_collection(schema: Schema, name: str, below: Schema) -> bool:
    collection = below.get("type") == "array" or "additionalProperties" in below
    return collection and name not in schema.get("required", ()) and not below.get("x-kept-empty")


def wrong_schema(schema: Schema) -> str:
    """The reason why it is no schema at all; empty if it is one."""
    try:
        Draft4Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return ""


def broken_rules(schema: Schema, value: Any, path: str = "", *, custom: bool = False) -> list[Cause]:
    """The errors of an object's values, field by field; their types are right already.

    :param path: where the object is in the one that is checked
    :param custom: in an object of a custom kind what is empty is there, and formats are of another kind
    """
    empty: tuple[Any, ...] = () if custom else (None, "", [])
    causes = [
        required_value(f"{path}.{name}" if path else name)
        for name in (schema.get("required") or () if isinstance(value, dict) else ())
        if name not in value or value[name] in empty
    ]
    # What is not there and must be is told as required.
    if not _RULES.isdisjoint(schema) and value is not None and value not in schema.get("x-unset", ()):
        causes += _broken_rule(schema, value, path, formats={} if custom else FORMATS)
    for below, item, where in _below(schema, value, path):
        causes += broken_rules(below, item, where, custom=custom)
    return causes


def _below(schema: Schema, value: Any, path: str) -> list[tuple[Schema, Any, str]]:
    """The parts of the value, each with its schema and its path."""
    if isinstance(value, dict):
        properties, other = schema.get("properties") or {}, schema.get("additionalProperties")
        base = f"{path}." if path else ""
        found = [(properties.get(name, other), item, base + name) for name, item in value.items()]
        return [(below, item, where) for below, item, where in found if isinstance(below, dict)]
    if isinstance(value, list) and "items" in schema:
        return [(schema["items"], item, f"{path}[{index}]") for index, item in enumerate(value)]
    return []


_RULES = frozenset(("enum", "format", "maximum", "minimum"))
_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "integer,string": (int, str),
    "null": (),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


def _wrong_type(schema: Schema, value: Any) -> str:
    type_ = schema.get("type") or ("integer,string" if schema.get("x-kubernetes-int-or-string") else "")
    if type_ and (not isinstance(value, _TYPES[type_]) or (isinstance(value, bool) and type_ != "boolean")):
        return f'must be of type {type_}: "{_word(value)}"'
    form = schema.get("format")
    return OF_TYPES[form](value) if form in OF_TYPES else ""


def _broken_rule(schema: Schema, value: Any, path: str, formats: dict[str, Format]) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        yield unsupported_value(path, value, schema["enum"])
    least, most = schema.get("minimum"), schema.get("maximum")
    why = formats[schema["format"]](value) if schema.get("format") in formats else ""
    if isinstance(value, int | float):
        if least is not None and value < least:
            why = f"must be greater than or equal to {least}"
        elif most is not None and value > most:
            why = f"must be less than or equal to {most}"
    if why:
        yield invalid_value(path, value, why)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    words: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return words.get(type(value), "null")
