"""Templates inside models of the ``kubernetes`` package, as users of KubernetesPodOperator write them."""

from __future__ import annotations

from typing import Any


def attributes_of_model(value: Any) -> tuple[str, ...]:
    """The attributes of a model of a Kubernetes client; none for anything else.

    A model is recognized by its maps and not by its class, which would have to be imported.
    """
    names = getattr(type(value), "attribute_map", None)
    return tuple(names) if isinstance(names, dict) else ()
