"""Tags and params as they may be written into MLflow: clipped, redacted, under names that it accepts.

Tags are read by everybody who can open the tracking server's page, so no credential may reach them, not even
by accident (an image with a registry password, a command line with ``--token=...``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.redaction import HIDDEN, is_secret, redact
from nighttrain.providers.tracking.names import MAX_RUN_TAG, check_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "nighttrain."
"""Every tag of ours starts with it, so that people see at a glance who wrote what."""

HISTORY_ENTRY_TAG = f"{PREFIX}history.entry"
"""An entry of a model's history, as JSON whose texts were redacted before its digest was taken."""

# A masked or clipped one would find another run, or none, or be no entry any more.
_AS_WRITTEN = frozenset({f"{PREFIX}run_key", "mlflow.parentRunId", HISTORY_ENTRY_TAG})


def clean_tags(
    tags: Mapping[str, object] | None,
    *,
    limit: int = MAX_RUN_TAG,
    field: str = "tags",
    known: Iterable[str | None] = (),
) -> dict[str, str]:
    """Tags as MLflow stores them: values as text, redacted and clipped to ``limit``; ``None`` values left
    out.

    :param field: what holds them, for the message
    :param known: secrets that are masked wherever they occur
    :raises ConfigurationError: a name that MLflow refuses
    """
    cleaned: dict[str, str] = {}
    for key, value in (tags or {}).items():
        if value is None:
            continue
        name, text = check_key(key, field=field, value=value), str(value)
        if name not in _AS_WRITTEN:
            text = HIDDEN if is_secret(name, value) else redact(text[: 2 * limit], known)
        cleaned[name] = clip(text, limit)
    return cleaned


def quoted(value: str) -> str | None:
    """``value`` as a literal of MLflow's filter language, or ``None`` where it cannot be written as one.

    The language knows no escapes of its own: a value may hold one sort of quote only. Its parser takes a
    backslash before the closing quote for one, though.
    """
    if value.endswith("\\"):
        return None
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    return None
