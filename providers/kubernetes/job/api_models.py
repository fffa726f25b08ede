"""Turn what users write (model objects, camelCase or snake_case dictionaries) into checked, plain JSON.

The field names and types come from the client library's own models, so that they are those of the API.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.names import parse_quantity
from nighttrain.providers.texts import text_of

_QUANTITY_MAPS = frozenset({"limits", "requests", "overhead", "capacity"})
_QUANTITIES = frozenset({"sizeLimit", "divisor"})
_SCALARS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "datetime": (str, datetime),
}


def plain(value: Any, type_name: str, field: str) -> Any:
    """``value`` as the JSON of API type ``type_name``, such as ``V1PodSpec`` or ``list[V1EnvVar]``.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: an unknown field (with the nearest right word), a wrong type, a bad quantity
    """
    if value is None:
        return None
    if type_name.startswith("list["):
        return _list(value, type_name[5:-1], field)
    if type_name.startswith(("dict(", "dict[")):
        return _mapping(value, type_name[5:-1].split(",", 1)[1].strip(), field)
    if type_name == "object":
        return value
    if type_name in _SCALARS:
        return _scalar(value, type_name, field)
    return _model(value, type_name, field)


def _model(value: Any, type_name: str, field: str) -> dict[str, Any]:
    from kubernetes_asyncio.client import models

    model = getattr(models, type_name)
    names: dict[str, str] = model.attribute_map
    types: dict[str, str] = model.openapi_types
    given = _items(value, type_name, field)
    camel_to_snake = {camel: snake for snake, camel in names.items()}
    result: dict[str, Any] = {}
    for key, content in given.items():
        snake = key if key in names else camel_to_snake.get(key)
        if snake is None:
            raise ConfigurationError(f"{field}.{key}", content, _unknown(key, list(names.values())))
        camel = names[snake]
        path = f"{field}.{camel}"
        if camel in _QUANTITY_MAPS and isinstance(content, Mapping):
            checked: Any = {name: _quantity(item, f"{path}.{name}") for name, item in content.items()}
        elif camel in _QUANTITIES and content is not None:
            checked = _quantity(content, path)
        else:
            checked = plain(content, types[snake], path)
        if checked is not None:
            if camel in result:
                raise ConfigurationError(path, content, "given twice, in two spellings")
            result[camel] = checked
    return result


def _items(value: Any, type_name: str, field: str) -> Mapping[str, Any]:
    names = getattr(value, "attribute_map", None)
    if isinstance(names, dict):  # a model object of either client library
        return {snake: getattr(value, snake, None) for snake in names}
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        value = to_dict()
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            field, value, f"write a mapping or a kubernetes {type_name} object, not {type(value).__name__}"
        )
    return {str(key): item for key, item in value.items()}


def _list(value: Any, item_type: str, field: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ConfigurationError(field, value, f"write a list, not {type(value).__name__}")
    return [_entry(item, item_type, f"{field}[{number}]") for number, item in enumerate(value)]


def _mapping(value: Any, item_type: str, field: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(field, value, f"write a mapping, not {type(value).__name__}")
    return {
        text_of(f"{field} key", key): _entry(item, item_type, f"{field}[{key!r}]")
        for key, item in value.items()
    }


def _entry(value: Any, type_name: str, field: str) -> Any:
    """An entry that is there has a value: the API knows no null among strings."""
    if value is None and type_name == "str":
        raise ConfigurationError(
            f"{field} = None", None, "must be a string; leave the entry out, or write ''"
        )
    return plain(value, type_name, field)


def _scalar(value: Any, type_name: str, field: str) -> Any:
    if type_name == "str":
        return text_of(field, value)
    accepted = _SCALARS[type_name]
    # bool is an int to Python but not to the API
    if not isinstance(value, accepted) or (isinstance(value, bool) and type_name != "bool"):
        raise ConfigurationError(
            field,
            value,
            f"must be {_article(type_name)}, not {type(value).__name__}; {_example(value)}",
        )
    return value.isoformat() if isinstance(value, datetime) else value


def _quantity(value: Any, field: str) -> str:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    parse_quantity(field, text)
    return str(text)


def _unknown(key: str, known: list[str]) -> str:
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.replace("_", "").lower(), list(lowered), n=1, cutoff=0.6)
    if near:
        return f"unknown field; did you mean {lowered[near[0]]!r}?"
    return f"unknown field; known are {', '.join(sorted(known))}"


def _article(type_name: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "True or False"}
    return words.get(type_name, "a time")


def _example(value: Any) -> str:
    return "leave out the quotes" if isinstance(value, str) else "see the Kubernetes API reference"
