"""What one look at an endpoint with a route says: a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata, whole
from nighttrain.providers.serving.backends.manifests import deployment_name, version_labels
from nighttrain.providers.serving.backends.plain.changes import SERVICE
from nighttrain.providers.serving.backends.plain.objects import (
    NOTHING_THERE,
    Objects,
    annotations_of,
    candidate_readiness,
    fence_of,
    is_marked_stable,
    is_settled,
    mirror_of,
    nothing_is_left,
    percent_of,
    stable_is_ready,
)
from nighttrain.providers.serving.backends.plain.replica_look import (
    selector_for,
    selector_of,
    strayed_service,
)
from nighttrain.providers.serving.backends.plain.routes import (
    Backend,
    Backends,
    RouteSettings,
    Split,
    is_ours,
    is_taken_by_nobody,
    read_split,
    why_not_accepted,
)
from nighttrain.providers.serving.backends.plain.strays import changed
from nighttrain.providers.serving.backends.traffic import Look, Target
from nighttrain.providers.serving.spec import CANDIDATE_ANNOTATION, STABLE_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

ROUTE = "route"
"""In :attr:`Look.resource_versions`: the endpoint's HTTPRoute."""


def look_at_route(target: Target, objects: Objects, route: Json | None, settings: RouteSettings) -> Look:
    """Read a look off the objects. Total: whatever they hold, it returns; in doubt nothing is so."""
    service = objects.service
    split = read_split(route, backends_of(target, service)) if route else None
    unseen = why_not_accepted(route, settings, target.namespace) if route else None
    asked = asked_percent(target, objects, split)
    # A route that no gateway takes sends the candidate nothing, so that it can be taken down.
    nobody = route is not None and asked == 0 and is_taken_by_nobody(route, settings, target.namespace)
    seen = nobody or (asked is not None and unseen is None)
    readiness, stable_ready = candidate_readiness(target, objects), stable_is_ready(target, objects)
    at_rest = split is not None and split.at_rest and percent_of(route) is None
    promoted = is_marked_stable(target, objects) and selector_of(service) == selector_for(target, 100)
    there = [each for each in (route, service, objects.candidate) if each]
    versions = {ROUTE: route, SERVICE: service}
    return Look(
        readiness=readiness,
        stable_ready=stable_ready,
        asked_percent=asked or 0,
        routed_percent=float(asked or 0) if seen else None,
        unseen=unseen,
        mirrored_percent=split.mirrored if split else 0,
        promoted=promoted
        and at_rest
        and unseen is None
        and readiness.ready
        and is_settled(objects.candidate),
        undone=_is_undone(target, objects, route, settled=at_rest and seen, stable_ready=stable_ready),
        fence=max((fence_of(target, each) for each in there), default=NOTHING_THERE),
        strayed=_strayed(target, objects, route, split),
        resource_versions={
            name: metadata(each)["resourceVersion"] for name, each in versions.items() if each
        },
    )


def backends_of(target: Target, service: Json | None) -> Backends:
    """The Services that the endpoint's route leads to; their ports matter only where they are written."""
    ports = items(mapping(service.get("spec")).get("ports")) if service else []
    port = (whole(ports[0].get("port")) if ports else None) or 80

    def version(name: str | None) -> Backend:
        found = deployment_name(target.endpoint, name) if name else target.endpoint
        return Backend(name=found, port=port)

    return Backends(
        endpoint=Backend(name=target.endpoint, port=port),
        stable=version(target.stable),
        candidate=version(target.candidate),
    )


def asked_percent(target: Target, objects: Objects, split: Split | None) -> int | None:
    """The share that the route asks for; ``None`` where its weights say none.

    What goes to the endpoint's Service goes to the version that this selects.
    """
    own = selector_of(objects.service) == version_labels(target.endpoint, target.candidate)
    if split is None:
        return 0
    if split.percent == 0 and own:
        return 100
    return split.percent


def _is_undone(
    target: Target, objects: Objects, route: Json | None, *, settled: bool, stable_ready: bool
) -> bool:
    if target.stable is None:
        ours = route is not None and is_ours(route, target.endpoint)
        return objects.service is None and not ours and nothing_is_left(target, objects)
    back = selector_of(objects.service) == selector_for(target, 0)
    home = annotations_of(objects.service).get(STABLE_ANNOTATION) == target.stable and back
    return home and (route is None or settled) and stable_ready and nothing_is_left(target, objects)


def _strayed(target: Target, objects: Objects, route: Json | None, split: Split | None) -> str | None:
    service = objects.service
    if found := strayed_service(target, service, selector_for(target, 0)):
        return found
    if route is None or split is None:
        begun = target.stable is not None and annotations_of(service).get(CANDIDATE_ANNOTATION)
        return f"somebody deleted HTTPRoute {target.endpoint}" if begun == target.candidate else None
    if not fence_of(target, route):
        return None
    written = (percent_of(route) or 0, mirror_of(route))
    if (split.percent, split.mirrored) == written:
        return None
    return changed(route, "spec.rules", _words(split.percent, split.mirrored, split.shown), _words(*written))


def _words(percent: int | None, mirrored: int, shown: str = "") -> str:
    share = "no share of the endpoint's" if percent is None else f"{percent} percent to the candidate"
    copies = f", copies of {mirrored} percent" if mirrored else ""
    return f"{share}{copies} ({shown})" if shown else f"{share}{copies}"
