"""Gateways: what they can do, and where they are reached, as far as the credentials let one look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ClusterForbiddenError, ConfigurationError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import GATEWAY_CLASSES, GATEWAYS
from nighttrain.providers.kubernetes.values.objects import items, mapping, status, text, whole
from nighttrain.providers.serving.backends.traffic import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.plain.routes import RouteSettings

MIRROR, MIRROR_PERCENT = "HTTPRouteRequestMirror", "HTTPRouteRequestPercentageMirror"
"""Names of features, as the Gateway API gives them."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a Gateway's class says that it can do.

    :param names: ``None`` where that cannot be known
    :param unknown_because: why it cannot be known
    """

    names: frozenset[str] | None
    unknown_because: str = ""

    def can(self, feature: str) -> bool:
        """True if the class says so."""
        return self.names is not None and feature in self.names

    def why_not(self, feature: str) -> str:
        """Why a feature is not there, or is not known to be."""
        if self.names is None:
            return self.unknown_because
        return f"its GatewayClass does not list {feature} among its supportedFeatures"


async def find_gateway(client: ClusterClient, settings: RouteSettings, namespace: str) -> Json | None:
    """The Gateway; ``None`` where it may not be read.

    :raises ConfigurationError: there is no such Gateway, or no such listener
    """
    where = settings.gateway_namespace or namespace
    try:
        gateway = await client.get(GATEWAYS, where, settings.gateway)
    except ClusterForbiddenError:
        return None
    except ObjectNotFoundError as error:
        fix = f"there is no such Gateway in namespace {where}: name one that is there"
        raise ConfigurationError("gateway", settings.gateway, fix) from error
    listeners = [text(each.get("name")) for each in items(mapping(gateway.get("spec")).get("listeners"))]
    if settings.section is not None and settings.section not in listeners:
        fix = f"Gateway {settings.gateway} has no such listener; it has {', '.join(listeners)}"
        raise ConfigurationError("section", settings.section, fix)
    return gateway


async def read_features(client: ClusterClient, gateway: Json | None) -> Features:
    """What the Gateway can do, as its class says."""
    if gateway is None:
        why = "the Gateway may not be read: grant get on gateways, docs/rbac.yaml"
        return Features(names=None, unknown_because=why)
    name = text(mapping(gateway.get("spec")).get("gatewayClassName"))
    try:
        return Features(names=features_of(await client.get(GATEWAY_CLASSES, None, name)))
    except ClusterForbiddenError:
        why = f"GatewayClass {name} may not be read: grant get on gatewayclasses, docs/rbac.yaml"
    except ObjectNotFoundError:
        why = f"there is no GatewayClass {name}"
    return Features(names=None, unknown_because=why)


def features_of(gateway_class: Json) -> frozenset[str]:
    """The features that a GatewayClass lists; early releases list names alone."""
    listed = status(gateway_class).get("supportedFeatures")
    if not isinstance(listed, list):
        return frozenset()
    return frozenset(text(each) or text(mapping(each).get("name")) for each in listed) - {""}


def gateway_address(
    gateway: Json | None, settings: RouteSettings, hostnames: Sequence[str]
) -> Address | None:
    """Where requests for a route go; ``None`` where nothing tells.

    :param hostnames: the route's
    """
    host = next((name for name in hostnames if not name.startswith("*")), None)
    headers = {"Host": host} if host else {}
    if settings.address is not None:
        return Address(url=settings.address.rstrip("/"), headers=headers)
    listener = _listener(gateway, settings) if gateway else {}
    secure = text(listener.get("protocol")) in ("HTTPS", "TLS")
    scheme = "https" if secure else "http"
    port = f":{listener['port']}" if whole(listener.get("port")) else ""
    addresses = items(status(gateway).get("addresses")) if gateway else []
    # A certificate is for the host's name, which has to be resolved then.
    if addresses and not (secure and host):
        value = text(addresses[0].get("value"))
        shown = f"[{value}]" if ":" in value else value
        return Address(url=f"{scheme}://{shown}{port}", headers=headers)
    return Address(url=f"{scheme}://{host}{port}") if host else None


def _listener(gateway: Json, settings: RouteSettings) -> Json:
    listeners = items(mapping(gateway.get("spec")).get("listeners"))
    named = [each for each in listeners if each.get("name") == settings.section]
    plain = [each for each in listeners if text(each.get("protocol")) == "HTTP"]
    return next(iter([*named, *plain, *listeners]), {})
