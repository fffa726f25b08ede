"""Names and texts that every store of MLflow takes.

SQLite takes text of any length, PostgreSQL refuses it with raw SQL in the message: the limits here are the
tightest of the columns and of MLflow's own validation, in characters, which is what PostgreSQL counts too.
What a person wrote and that does not fit is refused by name before anything is made; what is derived (a run's
name from a DAG's and a DAG run's) is shortened where it can be seen.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from datetime import date, datetime

from nighttrain.providers.errors import ConfigurationError, clip, storable
from nighttrain.providers.redaction import is_secret, redact

MAX_RUN_ID = 256
"""MLflow's own limit; its ids have 32 characters."""

MAX_KEY = 250
"""Of a param, tag or metric: MLflow's own limit, and the column's."""

MAX_RUN_NAME = 250
"""The column ``runs.name``; MLflow itself checks nothing."""

MAX_EXPERIMENT_NAME = 256
"""The column ``experiments.name``; MLflow itself allows 500."""

MAX_DESCRIPTION = 5_000
"""The column ``description`` of registered models and of versions."""

MAX_PARAM = 6_000
"""MLflow cuts a param here without a word."""

MAX_RUN_TAG = 8_000
"""The column ``tags.value``: PostgreSQL refuses a longer one when the run is created, and MLflow cuts it
without a word afterwards."""

MAX_VERSION_TAG = 5_000
"""The column of a registered model's tags. A version's may be longer on most servers; the smaller number
works for both."""

MAX_RUN_KEY = 1_000
"""Three ids of 250 characters, Airflow's limit, fit as they are; what percent-encoding makes longer is
shortened."""

_KEY = re.compile(r"[/\w.\- :]+")
_REFUSED = re.compile(r"[^\w.\- :/]+")
_DIGEST = 12
"""48 bits: no two of a million shortened names share it by chance."""


def fit(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, unique by a digest in its middle where it was too long.

    Both ends stay: an id begins with what it is about and often ends with when.
    """
    text = storable(text)
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
    tail = limit // 4
    head = limit - tail - _DIGEST - 2
    return f"{text[:head]}…{digest}…{text[-tail:]}"


def fit_run_name(text: str) -> str:
    """A derived run name."""
    return fit(text, MAX_RUN_NAME)


def fit_key(text: str) -> str:
    """The value of a tag that runs are found by: short enough never to be cut, unique."""
    return fit(text, MAX_RUN_KEY)


def check_text(field: str, text: object, limit: int) -> str:
    """A text that fits. :raises ConfigurationError: it does not"""
    if not isinstance(text, str):
        raise ConfigurationError(field, text, "give a text")
    if storable(text) != text:
        raise ConfigurationError(
            field, text, "remove the NUL characters and halves of surrogate pairs: no database takes them"
        )
    if len(text) > limit:
        raise ConfigurationError(
            field, text, f"it has {len(text):,} characters and MLflow's databases take {limit:,}: shorten it"
        )
    return text


def check_run_name(name: object, *, field: str = "run_name") -> str:
    """A run's name that a person chose. :raises ConfigurationError: MLflow's databases do not take it"""
    return check_text(field, name, MAX_RUN_NAME)


def check_experiment_name(name: object, *, field: str = "experiment_name") -> str:
    """An experiment's name. :raises ConfigurationError: it is empty or MLflow's databases do not take it"""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(field, name, "give the experiment a name")
    return check_text(field, name, MAX_EXPERIMENT_NAME)


def check_description(text: object, *, field: str = "description") -> str:
    """A description. :raises ConfigurationError: MLflow's databases do not take it"""
    return check_text(field, text, MAX_DESCRIPTION)


def check_key(key: object, *, field: str = "key", value: object = None) -> str:
    """The name of a param, tag or metric: letters of any script, digits, blanks and ``_ - . : /``.

    :param field: what holds it, such as ``parameters``
    :param value: what it names, for the message
    :raises ConfigurationError: MLflow refuses it
    """
    text = str(key)
    if _KEY.fullmatch(text) and not _resolves_elsewhere(text) and len(text) <= MAX_KEY:
        return text
    if len(text) > MAX_KEY:
        fix = f"MLflow takes {MAX_KEY} characters in a name and this one has {len(text):,}: shorten it"
    elif not text:
        fix = "give it a name"
    else:
        why = (
            "a name may be taken for a path, and this one leads elsewhere"
            if _KEY.fullmatch(text)
            else "a name has letters, digits, blanks and _ - . : / only"
        )
        fix = f"MLflow refuses this name ({why}): write, for example, {_suggested(text)!r}"
    raise ConfigurationError(f"{field}[{clip(text, 60)!r}]", _shown(text, value), fix)


def read_params(parameters: object, *, field: str = "parameters") -> dict[str, str]:
    """A run's parameters as text, under the names that a person gave them.

    :raises ConfigurationError: a name that MLflow refuses, two that are one as text, or a value that does not
        fit
    """
    return _read(parameters, field, MAX_PARAM, none_is_text=True)


def read_tags(tags: object, *, field: str = "tags", limit: int = MAX_VERSION_TAG) -> dict[str, str]:
    """Tags that a person gave, as text; those that are ``None`` are left out.

    :raises ConfigurationError: as :func:`read_params`
    """
    return _read(tags, field, limit, none_is_text=False)


def _read(given: object, field: str, limit: int, *, none_is_text: bool) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(field, given, "give a mapping of names to values")
    read: dict[str, str] = {}
    for key, value in given.items():
        name = check_key(key, field=field, value=value)
        if name in read:
            raise ConfigurationError(f"{field}[{name!r}]", value, "two names are one as text: rename one")
        if value is not None or none_is_text:
            read[name] = _read_value(f"{field}[{clip(name, 60)!r}]", name, value, limit)
    return read


def _read_value(field: str, name: str, value: object, limit: int) -> str:
    try:
        text = str(value)
    except ValueError as error:  # an integer of more than 4,300 digits
        raise ConfigurationError(field, None, f"it has no text ({error}): give a text") from error
    try:
        return check_text(field, text, limit)
    except ConfigurationError as error:
        raise ConfigurationError(field, _shown(name, text), error.fix) from None


def _shown(name: str, value: object) -> object:
    """The value as a message may show it."""
    if value is None or is_secret(name, value):
        return None
    return clip(redact(value[:200]), 100) if isinstance(value, str) else value


def _resolves_elsewhere(name: str) -> bool:
    """MLflow's own test: stores of files would make a path of it."""
    path = posixpath.normpath(name)
    return path != name or path == "." or path.startswith(("..", "/"))


def _suggested(name: str) -> str:
    plain = _REFUSED.sub("_", name)
    parts = [part for part in plain.split("/") if part.strip("._ ")]
    return "/".join(part.strip("_").lstrip(".") for part in parts)[:MAX_KEY] or "value"


NIGHT_PARAMETER = "night"
"""A parameter of this name says which night a training is about, whatever its data interval is."""


def night_of(interval_start: str | None, parameters: object = None) -> str | None:
    """The night as an ISO date: the parameter ``night`` if it is one, else the data interval's first day.

    The day is that of the recorded time zone: Airflow records UTC, so it is ``ds``.

    :param interval_start: ISO 8601, as the lineage has it
    :param parameters: the run's parameters
    :returns: ``None`` where neither says a day
    """
    given = parameters.get(NIGHT_PARAMETER) if isinstance(parameters, Mapping) else None
    return _day(given) or _day(interval_start)


def run_name(task_id: str, *, night: str | None = None, map_index: int = -1, region: str = "") -> str:
    """``train 2026-11-25``, ``train[3] 2026-11-25``; a later attempt's number is added where it is opened.

    :param region: the iteration of a loop, whose number is its last part
    """
    mapped = f"[{map_index}]" if map_index >= 0 else ""
    iteration = f" loop {region.rpartition(':')[2]}" if region else ""
    return fit_run_name(f"{task_id}{mapped}{iteration}{f' {night}' if night else ''}")


def _day(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip()).date().isoformat()
    except ValueError:
        return None
