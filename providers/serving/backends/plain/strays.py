"""Who else changed what a rollout had written, as far as the object tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata, text

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

# The field manager that nighttrain's own patches name; what it creates is owned by the client's user agent.
OWN_MANAGER = "nighttrain"

# As much of a value as a line for people bears.
_SHOWN = 200


def changed(obj: Json, field: str, found: object, written: object) -> str:
    """A sentence that says what is in a field, what had been written there, and who wrote last."""
    kind, name = text(obj.get("kind")) or "object", text(metadata(obj).get("name"))
    return (
        f"somebody changed {field} of {kind} {name}: it is {_shown(found)}, and this rollout had written "
        f"{_shown(written)}{_by(obj, field)}"
    )


def _by(obj: Json, field: str) -> str:
    path = [f"f:{part}" for part in field.split(".")]
    found = [
        (text(entry.get("time")), text(entry.get("manager")))
        for entry in items(metadata(obj).get("managedFields"))
        if _owns(mapping(entry.get("fieldsV1")), path) and entry.get("manager") != OWN_MANAGER
    ]
    if not found:
        return ""
    when, who = max(found)
    return f"; the field manager {who} wrote it last, at {when}" if when else f"; by field manager {who}"


def _owns(fields: Json, path: list[str]) -> bool:
    for part in path:
        if part not in fields:
            return False
        fields = mapping(fields[part])
    return True


def _shown(value: object) -> str:
    return clip(value if isinstance(value, str) else json.dumps(value, sort_keys=True), _SHOWN)
