"""The JSON schemas of the built-in kinds, as ``tests/helpers/schema_generator.py`` wrote them."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
PATH = Path(__file__).with_name("schemas.json.gz")


@functools.cache
def _linked() -> dict[str, Schema]:
    """Type name -> schema."""
    linked: dict[str, Schema] = json.loads(gzip.decompress(PATH.read_bytes()))
    for schema in linked.values():
        properties = schema["properties"]
        for field, below in properties.items():
            properties[field] = _link(below, linked)
    return linked


def _link(schema: Schema, linked: dict[str, Schema]) -> Schema:
    if "$ref" in schema:
        # What the field adds, a default for instance, is the field's and not the type's.
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**linked[schema["$ref"]], **own} if own else linked[schema["$ref"]]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _link(schema[key], linked)
    return schema


def schema_of(type_: str) -> Schema:
    """The schema of a type, its references replaced by what they mean (which may lead back to it).

    :raises KeyError: no served kind has such a type
    """
    return _linked()[type_]
