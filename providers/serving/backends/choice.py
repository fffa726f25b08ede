"""The serving systems, by the names that people write; each is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import TrafficBackend


def _deployment(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares

    return ReplicaShares(client)


def _gateway(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
    from nighttrain.providers.serving.backends.plain.routes import RouteSettings

    return GatewayRoutes(client, RouteSettings(**{**given, "hostnames": tuple(given.get("hostnames", ()))}))


def _kserve(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    from nighttrain.providers.serving.backends.kserve.backend import KServe

    return KServe(client, **given)


def _argo_rollouts(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    from nighttrain.providers.serving.backends.argo.backend import ArgoRollouts

    return ArgoRollouts(client, **given)


def _seldon(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    from nighttrain.providers.serving.backends.seldon import Seldon

    return Seldon(client, **given)


@dataclass(frozen=True)
class _Known:
    """How a backend is made, and the parameters that people may, and must, give."""

    make: Callable[[ClusterClient, Mapping[str, Any]], TrafficBackend]
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


_BACKENDS = {
    "deployment": _Known(_deployment),
    "gateway": _Known(
        _gateway,
        ("gateway", "gateway_namespace", "section", "hostnames", "path_prefix", "adopt_route", "address"),
        ("gateway",),
    ),
    "kserve": _Known(
        _kserve,
        ("mode", "model_format", "protocol_version", "runtime", "storage_uri", "gateway_url"),
    ),
    "argo_rollouts": _Known(_argo_rollouts, ("rollout", "http_route", "adopt", "address")),
    "seldon": _Known(_seldon, ("mesh", "storage_uri", "requirements"), ("mesh",)),
}


def check_backend(given: Mapping[str, Any]) -> None:
    """Refuse a serving system or a parameter that does not exist, or one that is missing.

    :raises ConfigurationError: names the field, the value and the fix
    """
    name = given.get("type")
    if name not in _BACKENDS:
        raise ConfigurationError("backend", name, f"choose one of {', '.join(sorted(_BACKENDS))}")
    known = _BACKENDS[name]
    if unknown := sorted(given.keys() - set(known.parameters) - {"type"}):
        takes = ", ".join(known.parameters)
        fix = f"{name} takes {takes}" if takes else f"{name} takes no parameters"
        raise ConfigurationError(f"backend[{unknown[0]!r}]", given[unknown[0]], fix)
    if missing := [each for each in known.required if not given.get(each)]:
        raise ConfigurationError(f"backend[{missing[0]!r}]", None, f"{name} needs it")


def make_backend(client: ClusterClient, given: Mapping[str, Any]) -> TrafficBackend:
    """The serving system on an open client.

    :raises ConfigurationError: as :func:`check_backend`
    """
    check_backend(given)
    values = {key: value for key, value in given.items() if key != "type"}
    return _BACKENDS[given["type"]].make(client, values)
