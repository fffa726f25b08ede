"""Gateways and HTTPRoutes: their status, and the rules of the router that stands in for a gateway."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import Controller, ReconcileLoop
from nighttrain.providers.local.cluster.machine.network import listen
from nighttrain.providers.local.cluster.machine.router import Backend, Router, Rule
from nighttrain.providers.local.cluster.store.resources import ENDPOINTSLICES, SERVICES, ResourceType
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeAlias

    from nighttrain.providers.local.cluster.machine.network import Address, ClusterNetwork
    from nighttrain.providers.local.cluster.store.store import EventType

    # A listener: its Gateway's namespace and name, and its own name.
    Place: TypeAlias = tuple[str, str, str]

CONTROLLER = "nighttrain.local/router"
GATEWAY = "nighttrain"
_BASIC = ("Gateway", "GatewayPort8080", "HTTPRoute")
_MIRROR = "HTTPRouteRequestMirror"
# Class -> what its gateways can do. The basic one has the fault of a real gateway: it does not mirror, says
# that a route which asks for it is accepted, and answers all of its requests with 500.
CLASSES = {
    "nighttrain-router": (*_BASIC, _MIRROR, "HTTPRouteRequestPercentageMirror"),
    "nighttrain-router-basic": _BASIC,
}


@dataclass(frozen=True)
class Serving:
    """The stand-ins for a gateway and for KServe.

    :param port: of the Gateway ``nighttrain`` in the namespace ``default``; 8080 needs no privileges
    :param seed: of the router's random choices; None: others each time
    :param status_lag: seconds from the change of a route to its status; recorded: 0.01 to 0.15
    :param route_lag: seconds from one change of what is routed to the next, while others wait; recorded: 2.
        Both are 0, so that nobody waits who does not try what waiting is for
    :param step_lag: seconds from one write of KServe's to the next; recorded: 0.01 to 0.25. Not 0, as what
        KServe loses is lost between its writes
    """

    port: int = 8080
    seed: int | None = None
    status_lag: float = 0.0
    route_lag: float = 0.0
    step_lag: float = 0.06


class GatewayController(Controller):
    """Gives each Gateway of its classes an address, and routes what comes in at its ports."""

    def __init__(
        self,
        loop: ReconcileLoop,
        network: ClusterNetwork,
        types: Mapping[str, ResourceType],
        serving: Serving,
    ) -> None:
        super().__init__(loop)
        self._network = network
        self._types = types
        self._serving = serving
        self._router = Router(serving.seed)
        self._rules: dict[Place, list[Rule]] = {}
        self._routed_at = -serving.route_lag
        self._hosts: dict[str, str] = {}
        self._servers: dict[Address, asyncio.Task[asyncio.Server]] = {}
        self._furnish()

    def _furnish(self) -> None:
        """The classes, and a Gateway to use."""
        for name, features in CLASSES.items():
            if self.store.find(self._types["GatewayClass"], None, name) is None:
                made: Object = {"metadata": {"name": name}, "spec": {"controllerName": CONTROLLER}}
                accepted = self._conditions(made, [("Accepted", True, "Accepted", "")])
                supported = [{"name": each} for each in features]
                made["status"] = {"conditions": accepted, "supportedFeatures": supported}
                self.store.create(self._types["GatewayClass"], made)
        if self.store.find(self._types["Gateway"], "default", GATEWAY) is None:
            listener: Object = {"name": "http", "protocol": "HTTP", "port": self._serving.port}
            listener["allowedRoutes"] = {"namespaces": {"from": "All"}}
            spec = {"gatewayClassName": next(iter(CLASSES)), "listeners": [listener]}
            metadata = {"name": GATEWAY, "namespace": "default"}
            self.store.create(self._types["Gateway"], {"metadata": metadata, "spec": spec})

    async def close(self) -> None:
        for server in await asyncio.gather(*self._servers.values()):
            server.close()
        await self._router.close()

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        if resource in (SERVICES, ENDPOINTSLICES) or resource.group == self._types["Gateway"].group:
            self.enqueue("", "rules")
            self.enqueue_after("", "status", self._serving.status_lag)

    def reconcile(self, namespace: str, name: str) -> None:
        attached = self._attached()
        now = asyncio.get_running_loop().time()
        if name == "status":
            for route in self.store.list(self._types["HTTPRoute"])[0]:
                self._write_route(route)
            for gateway in self._gateways():
                self._write_gateway(gateway, attached)
            self._release(self._gateways())
        elif now < self._routed_at + self._serving.route_lag:
            self.enqueue_after("", "rules", self._routed_at + self._serving.route_lag - now)
        else:
            rules = {place: self._rules_at(place, routes) for place, routes in attached.items()}
            if rules != self._rules:
                self._rules, self._routed_at = rules, now

    def _gateways(self) -> list[Object]:
        found = self.store.list(self._types["Gateway"])[0]
        return [each for each in found if each["spec"]["gatewayClassName"] in CLASSES]

    def _attached(self) -> dict[Place, list[Object]]:
        """Listener -> the routes that it takes."""
        routes = self.store.list(self._types["HTTPRoute"])[0]
        return {
            _place(gateway, listener): [
                route
                for route in routes
                if any(
                    _takes(gateway, listener, route, each) for each in route["spec"].get("parentRefs") or []
                )
            ]
            for gateway in self._gateways()
            for listener in gateway["spec"]["listeners"]
        }

    # What is routed

    def _rules_at(self, place: Place, routes: list[Object]) -> list[Rule]:
        gateway = self.store.get(self._types["Gateway"], *place[:2])
        mirrors = _MIRROR in CLASSES[gateway["spec"]["gatewayClassName"]]
        ranked: list[tuple[tuple[Any, ...], Rule]] = []
        for route in routes:
            metadata = route["metadata"]
            age = (metadata["creationTimestamp"], metadata["namespace"], metadata["name"])
            for index, rule in enumerate(route["spec"].get("rules") or []):
                for host in route["spec"].get("hostnames") or [""]:
                    for match in rule.get("matches") or [{}]:
                        made, rank = self._rule(route, rule, host.lower(), match, mirrors=mirrors)
                        ranked.append(((*rank, *age, index), made))
        ranked.sort(key=lambda each: each[0])
        return [rule for _, rule in ranked]

    def _rule(
        self, route: Object, rule: Object, host: str, match: Object, *, mirrors: bool
    ) -> tuple[Rule, tuple[Any, ...]]:
        """One match as a rule; and its rank, as of several that fit the Gateway API says which counts."""
        filters, backends = rule.get("filters") or [], rule.get("backendRefs") or []
        known = {"RequestHeaderModifier", "RequestMirror" if mirrors else ""}
        copies = [each["requestMirror"] for each in filters if "requestMirror" in each]
        changes = [each["requestHeaderModifier"] for each in filters if "requestHeaderModifier" in each]
        headers = match.get("headers") or []
        path = match.get("path") or {}
        kind, value = path.get("type", "PathPrefix"), path.get("value", "/")
        made = Rule(
            host=host,
            path=_pattern(kind, value),
            headers=tuple((each["name"].lower(), each["value"]) for each in headers),
            backends=tuple(self._backend(route, each, each.get("weight", 1)) for each in backends),
            mirrors=tuple((self._backend(route, each["backendRef"], 1), _fraction(each)) for each in copies),
            set_headers=tuple((h["name"], h["value"]) for each in changes for h in each.get("set") or []),
            broken=any(each["type"] not in known for each in filters)
            or any(each.get("add") or each.get("remove") for each in changes)
            or any(each.get("filters") for each in backends)
            or any(each.get("type", "Exact") != "Exact" for each in headers)
            or bool(match.keys() - {"path", "headers"}),
        )
        return made, (host.startswith("*"), -len(host), kind != "Exact", -len(value), -len(headers))

    def _backend(self, route: Object, reference: Object, weight: int) -> Backend:
        space, name = route["metadata"]["namespace"], reference["name"]
        if not self._resolves(route, reference):
            return Backend(weight, None)
        ports = self.store.get(SERVICES, space, name)["spec"].get("ports") or []
        named = [each.get("name") or "" for each in ports if each["port"] == reference.get("port")]
        found: list[Address] = []
        for each in self.store.list(ENDPOINTSLICES, space)[0]:
            if (each["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == name:
                ready = [end for end in each.get("endpoints") or [] if end["conditions"].get("ready")]
                behind = [port["port"] for port in each.get("ports") or [] if port["name"] in named]
                found += [(address, port) for end in ready for address in end["addresses"] for port in behind]
        return Backend(weight, tuple(found))

    def _resolves(self, route: Object, reference: Object) -> bool:
        """Whether there is such a Service; those of other namespaces are not for the route."""
        space = route["metadata"]["namespace"]
        own = reference.get("namespace", space) == space and reference.get("kind", "Service") == "Service"
        return own and self.store.find(SERVICES, space, reference["name"]) is not None

    # Statuses

    def _write_route(self, route: Object) -> None:
        space, spec = route["metadata"]["namespace"], route["spec"]
        references = [each for rule in spec.get("rules") or [] for each in _references(rule)]
        absent = [each["name"] for each in references if not self._resolves(route, each)]
        why = f'service "{absent[0]}" not found' if absent else ""
        message = f"Cannot load HTTPBackendRef {space}/{absent[0]}: getting service: {why}" if absent else ""
        parents = []
        for reference in spec.get("parentRefs") or []:
            at = (reference.get("namespace", space), reference["name"])
            gateway = self.store.find(self._types["Gateway"], *at)
            if gateway is None or gateway["spec"]["gatewayClassName"] not in CLASSES:
                continue  # nobody's, or another controller's: its status stays empty
            taken = any(_takes(gateway, each, route, reference) for each in gateway["spec"]["listeners"])
            conditions = [
                ("Accepted", taken, "Accepted" if taken else "NoMatchingParent", ""),
                ("ResolvedRefs", not absent, "BackendNotFound" if absent else "ResolvedRefs", message),
            ]
            made = self._conditions(route, conditions)
            parents.append({"parentRef": reference, "controllerName": CONTROLLER, "conditions": made})
        status = {"parents": parents} if parents else route.get("status")
        write_status(self.store, self._types["HTTPRoute"], route, status)

    def _write_gateway(self, gateway: Object, attached: Mapping[Place, list[Object]]) -> None:
        host = self._hosts.get(gateway["metadata"]["uid"])
        if host is None:
            # After a restart the address that clients know, if it is still free.
            known = (gateway.get("status") or {}).get("addresses") or [{"value": ""}]
            host = known[0]["value"]
            host = host if self._network.services.claim(host) else self._network.services.take()
            self._hosts[gateway["metadata"]["uid"]] = host
        failed = {
            each["name"]: why
            for each in gateway["spec"]["listeners"]
            if (why := self._listen(gateway, each, host))
        }
        accepted, resolved = ("Accepted", True, "Accepted", ""), ("ResolvedRefs", True, "ResolvedRefs", "")
        kinds = [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]
        listeners = []
        for each in gateway["spec"]["listeners"]:
            conditions = [accepted, resolved, _programmed(failed.get(each["name"], ""))]
            told = self._conditions(gateway, conditions)
            count = len(attached[_place(gateway, each)])
            made = {
                "name": each["name"],
                "attachedRoutes": count,
                "supportedKinds": kinds,
                "conditions": told,
            }
            listeners.append(made)
        whole = self._conditions(gateway, [accepted, _programmed("; ".join(failed.values()))])
        addresses = [{"type": "IPAddress", "value": host}]
        status = {"addresses": addresses, "conditions": whole, "listeners": listeners}
        write_status(self.store, self._types["Gateway"], gateway, status)

    def _listen(self, gateway: Object, listener: Object, host: str) -> str:
        """Serve a listener's port; the reason why that cannot be."""
        address = (host, listener["port"])
        if listener["protocol"] != "HTTP":
            return f"{listener['protocol']} is not served: use HTTP"
        if address not in self._servers:
            place = _place(gateway, listener)
            try:
                opened = self._router.listen(listen(address), lambda: self._rules.get(place, []))
            except OSError as error:
                return f"cannot listen on {host}:{address[1]}: {error.strerror}"
            self._servers[address] = asyncio.create_task(opened)
        return ""

    def _release(self, gateways: list[Object]) -> None:
        """Listen no more where no Gateway is."""
        wanted = {
            (self._hosts.get(gateway["metadata"]["uid"]), each["port"])
            for gateway in gateways
            for each in gateway["spec"]["listeners"]
        }
        for address in [each for each in self._servers if each not in wanted]:
            self._servers.pop(address).add_done_callback(lambda opened: opened.result().close())
        for uid in self._hosts.keys() - {each["metadata"]["uid"] for each in gateways}:
            self._network.services.give_back(self._hosts.pop(uid))

    def _conditions(self, obj: Object, found: list[tuple[str, bool, str, str]]) -> list[Object]:
        generation = obj["metadata"].get("generation", 1)
        known = {"observedGeneration": generation, "lastTransitionTime": timestamp(self.store.clock())}
        return [
            {"type": type_, "status": str(holds), "reason": reason, "message": message, **known}
            for type_, holds, reason, message in found
        ]


def _place(gateway: Object, listener: Object) -> Place:
    return gateway["metadata"]["namespace"], gateway["metadata"]["name"], listener["name"]


def _takes(gateway: Object, listener: Object, route: Object, parent: Object) -> bool:
    """Whether a listener takes a route that names ``parent``."""
    space, owner = route["metadata"]["namespace"], gateway["metadata"]
    allowed = ((listener.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same")
    return (
        (allowed == "All" or space == owner["namespace"])
        and (parent.get("namespace", space), parent["name"]) == (owner["namespace"], owner["name"])
        and parent.get("sectionName", listener["name"]) == listener["name"]
    )


def _pattern(kind: str, value: str) -> re.Pattern[str]:
    """The paths that fit; none, where an expression is not valid."""
    if kind == "Exact":
        value = re.escape(value) + "$"
    elif kind == "PathPrefix":
        value = re.escape(value.rstrip("/")) + "(/|$)"
    try:
        return re.compile(value)
    except re.error:
        return re.compile("(?!)")


def _references(rule: Object) -> list[Object]:
    """Every Service that a rule names."""
    copies = [each["requestMirror"] for each in rule.get("filters") or [] if "requestMirror" in each]
    return [*(rule.get("backendRefs") or []), *(each["backendRef"] for each in copies)]


def _fraction(mirror: Object) -> float:
    """How many of the requests are copied: all, where nothing is said."""
    fraction = mirror.get("fraction") or {"numerator": mirror.get("percent", 100)}
    return float(fraction["numerator"] / fraction.get("denominator", 100))


def _programmed(why_not: str) -> tuple[str, bool, str, str]:
    return ("Programmed", not why_not, "Invalid" if why_not else "Programmed", why_not)


def write_status(store: Store, resource: ResourceType, obj: Object, status: Object | None) -> None:
    """Write a status that differs in more than its times."""
    if _without_times(status) != _without_times(obj.get("status")):
        metadata = obj["metadata"]
        store.mutate(
            resource, metadata.get("namespace"), metadata["name"], lambda new: new.update(status=status)
        )


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key != "lastTransitionTime"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
