"""What ``kubectl apply`` left in an object's annotation: the way over to server-side apply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local import apply, bodies
from nighttrain.providers.local.decoding import decode, parse_json
from nighttrain.providers.local.errors import ApiError

if TYPE_CHECKING:
    from nighttrain.providers.local.apply import Fields, Object
    from nighttrain.providers.local.resources import ResourceType

ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"
_PATH = ("f:metadata", "f:annotations", f"f:{ANNOTATION}")


def fields(resource: ResourceType, live: Object) -> Fields:
    """The fields that are still as they were last applied, and the annotation; empty without one."""
    text = (live["metadata"].get("annotations") or {}).get(ANNOTATION)
    if not text:
        return set()
    raw = text.encode(errors="replace")
    try:
        applied, _unknown = decode(resource, bodies.checked(raw, parse_json(raw)), defaults=False)
        found = apply.owned(resource, applied)
    except (ApiError, ValueError, RecursionError):
        # Anybody can write an annotation.
        return set()
    shape = apply.root_shape(resource)
    return {
        path
        for path in found
        if apply.has_at(shape, live, path)
        and (
            path[-1].startswith("k:")
            or apply.value_at(shape, live, path) == apply.value_at(shape, applied, path)
        )
    } | {_PATH}
