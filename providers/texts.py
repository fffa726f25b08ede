"""Text, also where somebody gave a number: 20130105, say."""

from __future__ import annotations

import json
import math

from nighttrain.providers.errors import ConfigurationError


def text_of(field: str, value: object) -> str:
    """A string as it is, a number or a flag as JSON and YAML write it.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: it is anything else
    """
    if isinstance(value, str):
        # Not a subclass such as the markup-safe strings of template engines.
        return str(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ConfigurationError(
        field, value, f"must be a string, not {type(value).__name__}; write a template that gives text"
    )


def text_or_none(field: str, value: object) -> str | None:
    """The same, where nothing may be given.

    :raises ConfigurationError: see :func:`text_of`
    """
    return None if value is None else text_of(field, value)


def as_texts(holder: object, *names: str) -> None:
    """Make the attributes of these names text, where they are given.

    :raises ConfigurationError: see :func:`text_of`
    """
    for name in names:
        setattr(holder, name, text_or_none(name, getattr(holder, name)))
