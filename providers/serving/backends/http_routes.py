"""What an HTTPRoute that somebody else writes says: its weights, and whether a gateway has followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
    items,
    mapping,
    metadata,
    status,
    text,
    whole,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json


def rule_weights(route: Json) -> list[dict[str, int]]:
    """Of each rule: the weights by the name of the Service; one that is not written counts 1."""
    found = []
    for rule in items(mapping(route.get("spec")).get("rules")):
        weights: dict[str, int] = {}
        for each in items(rule.get("backendRefs")):
            weight = whole(each.get("weight"))
            name = text(each.get("name"))
            weights[name] = weights.get(name, 0) + (1 if weight is None else weight)
        found.append(weights)
    return found


def why_not_accepted(route: Json) -> str | None:
    """Why the gateway does not do what the route says, as far as the status tells."""
    generation = whole(metadata(route).get("generation")) or 0
    parents = items(status(route).get("parents"))
    for parent in parents:
        for kind in ("Accepted", "ResolvedRefs"):
            said = any_condition({"status": parent}, kind)
            if (whole(said.get("observedGeneration")) or 0) < generation:
                return "the gateway has not answered for the HTTPRoute as it is now"
            if said.get("status") != "True":
                return f"the gateway says {kind} {said.get('status')}: {text(said.get('message'))}"
    return None if parents else "no gateway has answered for the HTTPRoute"
