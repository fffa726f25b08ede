"""The serving systems, by the names that people write; each is loaded when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import TrafficBackend


@dataclass(frozen=True)
class _Known:
    """A backend's class, and the parameters that people may give."""

    path: str
    parameters: frozenset[str] = frozenset()


_BACKENDS = {
    "deployment": _Known("nighttrain.providers.serving.backends.plain.by_replicas:ReplicaShares"),
    "kserve": _Known(
        "nighttrain.providers.serving.backends.kserve.backend:KServe",
        frozenset({"mode", "model_format", "protocol_version", "runtime", "storage_uri", "gateway_url"}),
    ),
}


def check_backend(given: Mapping[str, Any]) -> None:
    """Refuse a serving system or a parameter that does not exist.

    :raises ConfigurationError: names the field, the value and the fix
    """
    name = given.get("type")
    if name not in _BACKENDS:
        raise ConfigurationError("backend", name, f"choose one of {', '.join(sorted(_BACKENDS))}")
    known = _BACKENDS[name].parameters
    if unknown := sorted(given.keys() - known - {"type"}):
        fix = f"{name} takes {', '.join(sorted(known))}" if known else f"{name} takes no parameters"
        raise ConfigurationError(f"backend[{unknown[0]!r}]", given[unknown[0]], fix)


def make_backend(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    """The serving system on an open client.

    :raises ConfigurationError: as :func:`check_backend`
    """
    check_backend(given)
    module, name = _BACKENDS[given["type"]].path.split(":")
    made: TrafficBackend = getattr(import_module(module), name)(
        client, **{key: value for key, value in given.items() if key != "type"}
    )
    return made
