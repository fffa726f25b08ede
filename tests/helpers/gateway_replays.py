"""How a recording of a gateway is read as a rollout of ours: a route, whose first Service is stable.

Each other Service that the route leads to, or copies to, is a candidate in turn. What the clients were
answered is held against what a look says is routed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helpers.replays import Case, Recording, shuffled
from nighttrain.providers.serving.backends.manifests import deployment_name, version_labels
from nighttrain.providers.serving.backends.plain.objects import Objects
from nighttrain.providers.serving.backends.plain.route_look import look_at_route
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.backends.traffic import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.interleaved import Present

Object = dict[str, Any]
ROUTES = "httproutes"
_OTHERS = {"rollouts", "inferenceservices"}
_ANNOTATIONS = {
    "nighttrain.dev/stable-version": "1",
    "nighttrain.dev/candidate-version": "2",
    "nighttrain.dev/rollout-fence": "2/3",
}


def is_gateway(recording: Recording) -> bool:
    return ROUTES in recording.streams and not _OTHERS & recording.streams


def cases(recording: Recording, seed: int) -> Iterator[tuple[str, Recording, Case]]:
    """Every route with every Service that could be a candidate's."""
    routes = [event.object for event in recording.events if event.stream == ROUTES]
    for name in dict.fromkeys(each["metadata"]["name"] for each in routes):
        own = [each for each in routes if each["metadata"]["name"] == name]
        services = list(dict.fromkeys(found for each in own for found in _services(each)))
        chosen = {name, own[0]["metadata"]["namespace"]}
        known, names = shuffled(recording, sorted(chosen), seed)
        for number, candidate in enumerate(services[1:] or [""]):
            dressed = _dressed(known, {services[0]: "1", candidate: "2"}, names[name])
            first = next(each.object for each in dressed.events if _is(each.object, names[name]))
            yield "next" if number == 0 else candidate, dressed, _case(first)


def _is(found: Object, name: str) -> bool:
    return bool(found["metadata"]["name"] == name and found.get("kind", "HTTPRoute") == "HTTPRoute")


def _services(route: Object) -> Iterator[str]:
    for rule in route["spec"].get("rules", []):
        for each in rule.get("backendRefs", []):
            yield each["name"]
        for each in rule.get("filters", []):
            if "requestMirror" in each:
                yield each["requestMirror"]["backendRef"]["name"]


def _dressed(recording: Recording, versions: dict[str, str], endpoint: str) -> Recording:
    """The recording with the names that the Services of the two versions have with us."""

    def renamed(route: Object) -> Object:
        copy: Object = json.loads(json.dumps(route))
        for rule in copy["spec"].get("rules", []):
            mirrors = [
                each["requestMirror"]["backendRef"]
                for each in rule.get("filters", [])
                if "requestMirror" in each
            ]
            for each in [*rule.get("backendRefs", []), *mirrors]:
                if each["name"] in versions:
                    each["name"] = deployment_name(endpoint, versions[each["name"]])
        return copy

    events = [
        replace(event, object=renamed(event.object)) if event.stream == ROUTES else event
        for event in recording.events
    ]
    return replace(recording, events=events)


def _case(first: Object) -> Case:
    name, space = first["metadata"]["name"], first["metadata"]["namespace"]
    target = Target(endpoint=name, namespace=space, model_name="m", candidate="2", stable="1")
    service = {
        "kind": "Service",
        "metadata": {"name": name, "resourceVersion": "1", "annotations": _ANNOTATIONS},
        "spec": {"selector": version_labels(name, "1"), "ports": [{"port": 80}]},
    }
    parent = first["spec"]["parentRefs"][0]
    settings = RouteSettings(
        gateway=parent["name"],
        gateway_namespace=parent.get("namespace"),
        section=parent.get("sectionName"),
    )

    def look(present: Present) -> Any:
        objects = Objects(service=service, stable=None, candidate=None, pods=[], slices=[])
        return look_at_route(target, objects, present.objects.get((ROUTES, name)), settings)

    def routed(present: Present) -> float | None:
        found: float | None = look(present).routed_percent
        return found

    return Case(target, look, _voucher(name, routed), ROUTES, lambda version: f"v{version}")


def _voucher(name: str, routed: Callable[[Present], float | None]) -> Callable[[str, Present], bool]:
    """No rollout of ours is in the recording: all that can be said is which share is routed."""

    def vouches(claim: str, present: Present) -> bool:
        route = present.objects.get((ROUTES, name))
        if claim != "routed":
            return False
        if route is None:
            return routed(present) == 0
        weights = _weights(route)
        asked = 100 * weights.get(deployment_name(name, "2"), 0) / (sum(weights.values()) or 1)
        followed = _followed(route)
        # What nobody takes up sends the candidate nothing.
        return routed(present) == 0 if not followed else abs((routed(present) or 0) - asked) < 1

    return vouches


def _weights(route: Object) -> dict[str, int]:
    """The weights of the last rule: those of clients, behind what is for testers."""
    rule = route["spec"]["rules"][-1]
    return {each["name"]: each.get("weight", 1) for each in rule.get("backendRefs", [])}


def _followed(route: Object) -> bool:
    """True if a gateway says that it accepted the route as it is now, and found all that it names."""
    parents = route.get("status", {}).get("parents", [])
    conditions = [each for parent in parents for each in parent.get("conditions", [])]
    generation = route["metadata"].get("generation", 0)
    said = {each["type"]: each for each in conditions}
    return all(
        said.get(kind, {}).get("status") == "True" and said[kind].get("observedGeneration", 0) >= generation
        for kind in ("Accepted", "ResolvedRefs")
    )
