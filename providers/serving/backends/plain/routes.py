"""HTTPRoutes: their manifests, and what one says of itself. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.resources import HTTPROUTES
from nighttrain.providers.kubernetes.values.names import check_dns_label
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata, status, text, whole
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.plain_json import Json

VERSION_HEADER = "x-nighttrain-version"
"""Who sends it with a version's number is answered by that version, while a rollout lasts."""

_GATEWAY_GROUP = HTTPROUTES.group


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """Where an endpoint's route hangs.

    :param gateway: the Gateway's name
    :param gateway_namespace: its namespace; the endpoint's, if left out
    :param section: the name of its listener; any that takes the route, if left out
    :param hostnames: the hosts whose requests are the endpoint's; all of the listener's, if left out
    :param path_prefix: only requests below this path; they are passed on with it
    :param adopt_route: take over a route of the endpoint's name that somebody else made: of it only the
        ``backendRefs`` are written that lead to the endpoint
    :param address: the base URL at which the gateway is reached from here, where its status does not tell
    """

    gateway: str
    gateway_namespace: str | None = None
    section: str | None = None
    hostnames: tuple[str, ...] = ()
    path_prefix: str = "/"
    adopt_route: bool = False
    address: str | None = None

    def validate(self) -> None:
        """Find what can be found without a cluster.

        :raises ConfigurationError: names the field, the value and the fix
        """
        if not self.gateway:
            raise ConfigurationError("gateway", self.gateway, "name the Gateway that the route belongs to")
        if self.gateway_namespace is not None:
            check_dns_label("gateway_namespace", self.gateway_namespace)
        if not self.path_prefix.startswith("/"):
            raise ConfigurationError("path_prefix", self.path_prefix, "begin it with '/'")
        if self.address is not None and not self.address.startswith(("http://", "https://")):
            raise ConfigurationError("address", self.address, "write an http(s) URL without a path")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A Service that a route sends requests to."""

    name: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Backends:
    """The three Services of an endpoint under a rollout.

    :param endpoint: selects the stable version
    """

    endpoint: Backend
    stable: Backend
    candidate: Backend

    @property
    def names(self) -> frozenset[str]:
        """Their names."""
        return frozenset({self.endpoint.name, self.stable.name, self.candidate.name})


def build_route(settings: RouteSettings, endpoint: Backend, namespace: str) -> Json:
    """The route of an endpoint at rest: everything to its Service, which selects the stable version."""
    parent = {
        "group": _GATEWAY_GROUP,
        "kind": "Gateway",
        "name": settings.gateway,
        **({"namespace": settings.gateway_namespace} if settings.gateway_namespace else {}),
        **({"sectionName": settings.section} if settings.section else {}),
    }
    return {
        "apiVersion": HTTPROUTES.api_version,
        "kind": HTTPROUTES.kind,
        "metadata": {
            "name": endpoint.name,
            "namespace": namespace,
            "labels": {ENDPOINT_LABEL: endpoint.name, MANAGED_BY_LABEL: MANAGED_BY},
        },
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": list(settings.hostnames)} if settings.hostnames else {}),
            "rules": rest_rules(settings, endpoint),
        },
    }


def rest_rules(settings: RouteSettings, endpoint: Backend) -> list[Json]:
    """One rule: everything to the endpoint's Service."""
    return [{"matches": [_match(settings)], "backendRefs": [_ref(endpoint, 1)]}]


def rollout_rules(
    settings: RouteSettings, backends: Backends, testers: Mapping[str, Backend], percent: int, mirror: int
) -> list[Json]:
    """A rule for testers of each version, and one that shares all other requests.

    :param testers: the Service of each version that is there
    :param mirror: the share of the requests that are copied to the candidate; 0 for none
    """
    named = [
        {"matches": [_match(settings, version)], "backendRefs": [_ref(backend, 1)]}
        for version, backend in testers.items()
    ]
    shared: Json = {"matches": [_match(settings)], "backendRefs": shared_refs(backends, percent)}
    if mirror:
        copies: Json = {"backendRef": _named(backends.candidate)}
        if mirror < 100:
            copies["percent"] = mirror
        shared["filters"] = [{"type": "RequestMirror", "requestMirror": copies}]
    return [*named, shared]


def shared_refs(backends: Backends, percent: int) -> list[Json]:
    """The weights of a share; without one, the endpoint's Service has everything."""
    if percent == 0:
        return [_ref(backends.endpoint, 1)]
    return [_ref(backends.stable, 100 - percent), _ref(backends.candidate, percent)]


def is_ours(route: Json, endpoint: str) -> bool:
    """True if nighttrain made the route for this endpoint."""
    labels = mapping(metadata(route).get("labels"))
    return {ENDPOINT_LABEL: endpoint, MANAGED_BY_LABEL: MANAGED_BY}.items() <= labels.items()


def adopted_rules(route: Json, names: frozenset[str], refs: list[Json]) -> list[Json]:
    """The rules of somebody else's route, in which only what leads to the endpoint is another."""
    rules = items(mapping(route.get("spec")).get("rules"))
    return [{**rule, "backendRefs": refs} if _leads_to(rule, names) else rule for rule in rules]


def check_adoptable(route: Json, settings: RouteSettings, namespace: str, names: frozenset[str]) -> None:
    """Refuse a route whose weights could not be written without touching what is not the endpoint's.

    :raises ConfigurationError: it does not hang on the Gateway, or a rule mixes the endpoint with others
    """
    name = text(metadata(route).get("name"))
    if not any(_is_parent(ref, settings, namespace) for ref in items(route["spec"].get("parentRefs"))):
        raise ConfigurationError(
            "gateway", settings.gateway, f"HTTPRoute {name} does not belong to it: name one of its parents"
        )
    rules = items(route["spec"].get("rules"))
    for number, rule in enumerate(rules):
        refs = {text(ref.get("name")) for ref in items(rule.get("backendRefs"))}
        if refs & names and not refs <= names:
            raise ConfigurationError(
                f"HTTPRoute {name} rules[{number}].backendRefs",
                sorted(refs - names),
                "a rule that leads to the endpoint may lead to nothing else: give these one of their own",
            )
    if not any(_leads_to(rule, names) for rule in rules):
        raise ConfigurationError(
            "adopt_route", True, f"no rule of HTTPRoute {name} leads to a Service of the endpoint: add one"
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a route asks for.

    :param percent: the candidate's share of the weights; ``None`` where they are not the endpoint's alone
    :param mirrored: the share of the requests that are copied to the candidate
    :param at_rest: everything goes to the endpoint's Service, and no tester has a rule
    :param shown: the weights, for people
    """

    percent: int | None
    mirrored: int
    at_rest: bool
    shown: str


def read_split(route: Json, backends: Backends) -> Split:
    """Read the shares off a route. What no rule says is no share: in doubt ``percent`` is ``None``."""
    rules = [
        rule for rule in items(mapping(route.get("spec")).get("rules")) if _leads_to(rule, backends.names)
    ]
    shared = [rule for rule in rules if not _is_for_testers(rule)]
    percents = {_percent(rule, backends) for rule in shared}
    mirrored = max((_mirrored(rule, backends.candidate.name) for rule in shared), default=0)
    percent = percents.pop() if len(percents) == 1 else None
    rest = percent == 0 and len(shared) == len(rules) and all(_is_resting(rule, backends) for rule in shared)
    return Split(
        percent=percent,
        mirrored=mirrored,
        at_rest=rest and not mirrored,
        shown="; ".join(_shown(rule) for rule in shared) or "no rule leads to the endpoint",
    )


def why_not_accepted(route: Json, settings: RouteSettings, namespace: str) -> str | None:
    """Why the gateway does not route as the route says by now; ``None`` if it says that it does."""
    name = text(metadata(route).get("name"))
    where = f"{settings.gateway_namespace or namespace}/{settings.gateway}"
    parents = _said(route, settings, namespace)
    if not parents:
        return (
            f"no gateway has taken HTTPRoute {name} up: is there a Gateway {where}, does a controller run "
            f"for its class, and may routes of namespace {namespace} join it?"
        )
    generation = whole(metadata(route).get("generation")) or 0
    for parent in parents:
        held = {text(each.get("type")): each for each in items(parent.get("conditions"))}
        for kind in ("Accepted", "ResolvedRefs"):
            found = held.get(kind, {})
            if (whole(found.get("observedGeneration")) or 0) < generation:
                return f"Gateway {where} has not followed the last change of HTTPRoute {name} yet"
            if found.get("status") != "True":
                said = f": {text(found.get('message'))}" if text(found.get("message")) else ""
                return f"Gateway {where} says {kind} {found.get('status')}, {found.get('reason')}{said}"
    return None


def is_taken_by_nobody(route: Json, settings: RouteSettings, namespace: str) -> bool:
    """True if no gateway sends any request by this route, as it is now."""
    generation = whole(metadata(route).get("generation")) or 0
    for parent in _said(route, settings, namespace):
        found = next((each for each in items(parent.get("conditions")) if each.get("type") == "Accepted"), {})
        if found.get("status") != "False" or (whole(found.get("observedGeneration")) or 0) < generation:
            return False
    return True


def _said(route: Json, settings: RouteSettings, namespace: str) -> list[Json]:
    """What controllers say of the route as a child of the Gateway."""
    return [
        parent
        for parent in items(status(route).get("parents"))
        if _is_parent(mapping(parent.get("parentRef")), settings, namespace)
    ]


def _match(settings: RouteSettings, version: str | None = None) -> Json:
    match: Json = {"path": {"type": "PathPrefix", "value": settings.path_prefix}}
    if version is not None:
        match["headers"] = [{"type": "Exact", "name": VERSION_HEADER, "value": version}]
    return match


def _named(backend: Backend) -> Json:
    return {"group": "", "kind": "Service", "name": backend.name, "port": backend.port}


def _ref(backend: Backend, weight: int) -> Json:
    return {**_named(backend), "weight": weight}


def _leads_to(rule: Json, names: frozenset[str]) -> bool:
    return any(text(ref.get("name")) in names for ref in items(rule.get("backendRefs")))


def _is_for_testers(rule: Json) -> bool:
    headers = [header for match in items(rule.get("matches")) for header in items(match.get("headers"))]
    return any(text(header.get("name")).lower() == VERSION_HEADER for header in headers)


def _weights(rule: Json) -> list[tuple[str, int]]:
    # The API takes a weight that nobody wrote for 1.
    return [
        (text(ref.get("name")), 1 if whole(ref.get("weight")) is None else int(ref["weight"]))
        for ref in items(rule.get("backendRefs"))
    ]


def _percent(rule: Json, backends: Backends) -> int | None:
    weights = _weights(rule)
    total = sum(weight for _, weight in weights)
    if total <= 0 or any(name not in backends.names for name, weight in weights if weight):
        return None
    own = sum(weight for name, weight in weights if name == backends.candidate.name)
    if own in (0, total):
        return 100 if own else 0
    # Weights that another hand wrote need not be whole percents; a small share is not none.
    return min(99, max(1, round(100 * own / total)))


def _is_resting(rule: Json, backends: Backends) -> bool:
    return all(name == backends.endpoint.name for name, _ in _weights(rule))


def _mirrored(rule: Json, candidate: str) -> int:
    for each in items(rule.get("filters")):
        copies: Any = mapping(each.get("requestMirror"))
        if copies and text(mapping(copies.get("backendRef")).get("name")) == candidate:
            given = whole(copies.get("percent"))
            return 100 if given is None else given
    return 0


def _shown(rule: Json) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in _weights(rule))


def _is_parent(ref: Json, settings: RouteSettings, namespace: str) -> bool:
    wanted = (settings.gateway, settings.gateway_namespace or namespace)
    found = (text(ref.get("name")), text(ref.get("namespace")) or namespace)
    section = settings.section is None or text(ref.get("sectionName")) in ("", settings.section)
    return found == wanted and section and text(ref.get("kind")) in ("", "Gateway")
