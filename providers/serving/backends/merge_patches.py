"""Merge patches: what is sent so that exactly one value stands where another was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json


def replacing(old: Json, new: Json) -> Json:
    """The merge patch that leaves exactly ``new`` where ``old`` was: what only ``old`` has is taken away."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        held = old.get(key)
        nested = isinstance(value, dict) and isinstance(held, dict)
        patch[key] = replacing(held, value) if nested and isinstance(held, dict) else value
    return patch
