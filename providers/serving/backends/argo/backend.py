"""The Argo Rollouts backend: looks, and changes one thing at a time. What follows is decided elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import ROLLOUTS, SERVICES
from nighttrain.providers.kubernetes.values.objects import (
    mapping,
    metadata,
    name_of,
    status,
    text,
    uid_of,
)
from nighttrain.providers.serving.backends.argo import moves
from nighttrain.providers.serving.backends.argo.admission import check_rollout, stable_version
from nighttrain.providers.serving.backends.argo.look import read
from nighttrain.providers.serving.backends.argo.manifests import (
    build_rollout,
    build_service,
    build_template,
    candidate_service,
    is_ours,
    marks,
    new_version,
    stable_service,
)
from nighttrain.providers.serving.backends.argo.objects import (
    CANDIDATE_TEMPLATE,
    ROLLOUT,
    SERVICE,
    STABLE_HASH,
    STABLE_TEMPLATE,
    Objects,
    Stage,
    canary_of,
    candidate_hash,
    find,
    template_of,
)
from nighttrain.providers.serving.backends.argo.reading import read_objects, read_route
from nighttrain.providers.serving.backends.finding import found
from nighttrain.providers.serving.backends.http_routes import rule_weights
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments, whole_selector
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.changes import resource_version
from nighttrain.providers.serving.backends.plain.objects import HEALTH_PATH, annotations_of, fence_text
from nighttrain.providers.serving.backends.plain.version_services import service_address
from nighttrain.providers.serving.backends.traffic import (
    Address,
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.spec import FENCE_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.argo.moves import Move
    from nighttrain.providers.serving.spec import ServingSpec


class ArgoRollouts:
    """One Rollout for each endpoint, whose pod template is nighttrain's.

    :param rollout: the Rollout's name; the endpoint's, if left out
    :param http_route: the HTTPRoute whose weights Argo's Gateway API plugin writes; left out, shares are made
        by replicas
    :param adopt: take over a Rollout that nighttrain did not make: its template and its steps are written
    :param address: the base URL at which the gateway answers; left out, the route's own host
    """

    name = "Argo Rollouts"

    def __init__(
        self,
        client: ClusterClient,
        *,
        rollout: str | None = None,
        http_route: str | None = None,
        adopt: bool = False,
        address: str | None = None,
    ) -> None:
        self._client = client
        self._rollout = rollout
        self._http_route = http_route
        self._adopt = adopt
        self._address = address

    async def capabilities(self, namespace: str) -> Capabilities:
        """Exact weights with an HTTPRoute, else by replicas. Nothing is copied, and no header looked at."""
        if self._http_route is None:
            return Capabilities(
                weights=Weights.BY_REPLICAS,
                split_seen_in="the ready pods of the ReplicaSets that the endpoint's Service selects",
            )
        return Capabilities(
            weights=Weights.EXACT,
            split_seen_in="the HTTPRoute's weights and the answers (the status repeats what was asked)",
        )

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves; nothing is changed.

        :raises ConfigurationError: the Rollout is not of a form that can be driven, or not at rest
        :raises WorkloadConflictError: somebody else made it
        """
        spec.validate()
        name = self._rollout or spec.endpoint
        objects = await read_objects(self._client, spec.endpoint, spec.namespace, name)
        if objects.rollout is not None:
            check_rollout(spec, objects.rollout, http_route=self._http_route, adopt=self._adopt)
        names = {ROLLOUT: name, HEALTH_PATH: spec.filled_server().readiness_path}
        stable = stable_version(spec, objects) if objects.rollout is not None else None
        if objects.rollout is not None:
            names[STABLE_HASH] = text(status(objects.rollout).get("stableRS"))
            names[STABLE_TEMPLATE] = json.dumps(template_of(objects.rollout))
        if self._http_route is not None:
            await self._check_route(spec, objects.rollout)
        await self._check_services(spec)
        return Target(
            endpoint=spec.endpoint,
            namespace=spec.namespace,
            model_name=spec.model_name,
            candidate=spec.version,
            stable=stable,
            names=names,
        )

    async def way_back(self, promoted: Target) -> Target:
        """The target of a rollout back to what a promoted one replaced; nothing is changed.

        :raises ConfigurationError: the Rollout is not at rest, or does not serve what was promoted
        :raises WorkloadConflictError: somebody else made it
        """
        name = promoted.names[ROLLOUT]
        objects = await read_objects(self._client, promoted.endpoint, promoted.namespace, name)
        rollout, serves = objects.rollout, ""
        if rollout is not None:
            check_rollout(promoted, rollout, http_route=self._http_route, adopt=self._adopt)
            serves = stable_version(promoted, objects)
        if rollout is None or serves != promoted.candidate:
            raise ConfigurationError("endpoint", promoted.endpoint, promoted.not_serving(serves))
        if self._http_route is not None:
            await self._check_route(promoted, rollout)
        names = {
            **promoted.names,
            STABLE_HASH: text(status(rollout).get("stableRS")),
            STABLE_TEMPLATE: json.dumps(template_of(rollout)),
            CANDIDATE_TEMPLATE: promoted.names[STABLE_TEMPLATE],
        }
        return replace(promoted.turned(), names=names)

    async def _check_route(self, spec: ServingSpec | Target, rollout: Json | None) -> None:
        """Refuse an HTTPRoute that is not there: Argo would wait for it, and say nothing."""
        route = await read_route(self._client, spec.namespace, self._http_route)
        if route is None:
            raise ConfigurationError(
                "backend['http_route']", self._http_route, "there is no such HTTPRoute: make it first"
            )
        canary = canary_of(rollout)
        wanted = {
            text(canary.get("stableService")) or stable_service(spec.endpoint),
            text(canary.get("canaryService")) or candidate_service(spec.endpoint),
        }
        if not any(set(weights) == wanted for weights in rule_weights(route)):
            raise ConfigurationError(
                "backend['http_route']",
                self._http_route,
                f"a rule of it has to lead to the Services {' and '.join(sorted(wanted))}",
            )

    async def _check_services(self, spec: ServingSpec) -> None:
        for name in self._own_services(spec.endpoint):
            held = await found(self._client.get(SERVICES, spec.namespace, name))
            if held is not None and not is_ours(held, spec.endpoint) and not self._adopt:
                raise WorkloadConflictError(
                    f"Service {name} exists and was not made by nighttrain for this endpoint: choose another "
                    "endpoint name, or remove it"
                )

    def _own_services(self, endpoint: str) -> list[str]:
        own = [stable_service(endpoint), candidate_service(endpoint)]
        return own if self._http_route is not None else [endpoint, *own]

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Bring the candidate up to the first pause of its steps, without requests, or adopt it.

        :raises RolloutFailedError: somebody changed the Rollout since this rollout began
        """
        objects = await self._read(target)
        if objects.rollout is None and target.stable is None:
            await self._create(spec, target, fence, tell)
            return
        await self._start(target, objects, build_template(spec, objects.rollout), fence, tell)

    async def bring_back(self, target: Target, fence: int, tell: Progress) -> None:
        """As :meth:`bring_up`, with the template that the version had when it served."""
        template = json.loads(target.names[CANDIDATE_TEMPLATE])
        await self._start(target, await self._read(target), template, fence, tell)

    async def _start(
        self, target: Target, objects: Objects, template: Json, fence: int, tell: Progress
    ) -> None:
        if objects.rollout is None:
            raise RolloutFailedError(f"Rollout {target.names[ROLLOUT]} was deleted by somebody")
        if not objects.routed and target.stable is not None:
            await self._pin(target, objects, fence)
            objects = await self._read(target)
        stage, rollout = find(target, objects).stage, objects.rollout
        if stage in (Stage.STEPS, Stage.EVERYTHING):
            await self._stamp(target, objects, fence, 0, None)
            return
        if rollout is None or stage is not Stage.STABLE:
            raise RolloutFailedError(f"Rollout {target.names[ROLLOUT]} was changed: {stage}")
        body = new_version(template, target, rollout)
        if "strategy" in body["spec"]:
            tell(f"{target.endpoint}: the Rollout's steps become those of the strategy")
        await self._write(target, objects, fence, 0, moves.Move(body=body), None)

    async def _create(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Make the Services first: without them the Rollout is invalid, and looked at again 10 s later."""
        name = target.names[ROLLOUT]
        for each in self._own_services(spec.endpoint):
            try:
                await self._client.create(SERVICES, spec.namespace, build_service(spec, each))
            except ObjectExistsError:
                continue
        body = build_rollout(spec, target, fence, name, self._http_route)
        try:
            made = await self._client.create(ROLLOUTS, spec.namespace, body)
        except ObjectExistsError as error:
            raise ObjectConflictError(f"somebody made Rollout {name} just now") from error
        tell(f"{target.endpoint}: Rollout {name} made; its first version goes through no step")
        owner = {"apiVersion": ROLLOUTS.api_version, "kind": ROLLOUTS.kind, "name": name, "uid": uid_of(made)}
        for each in self._own_services(spec.endpoint):
            patch = {"metadata": {"ownerReferences": [owner]}}
            await self._client.patch(SERVICES, spec.namespace, each, patch)

    async def _pin(self, target: Target, objects: Objects, fence: int) -> None:
        """Have the endpoint's Service select the stable version alone, before another one has pods."""
        service = objects.services.get(target.endpoint)
        if service is None:
            raise RolloutFailedError(
                f"there is no Service {target.endpoint}: make one that selects the pods of the Rollout, or "
                "share the requests by a route (backend['http_route'])"
            )
        home = version_labels(target.endpoint, target.stable or "")
        await self._select(target, service, metadata(service)["resourceVersion"], fence, home)

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        return read(target, await self._read(target))

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Go one step towards the share: it is to be repeated until a look says that it was asked for."""
        if mirror_percent:
            raise ConfigurationError("mirror_percent", mirror_percent, "Argo Rollouts cannot copy requests")
        objects = await self._read(target)
        if target.stable is None:
            if percent == 0:
                await self._delete(target, objects, seen)
            else:
                await self._stamp(target, objects, fence, percent, seen)
            return
        move = moves.towards(target, objects, percent)
        await self._write(target, objects, fence, percent, move, seen)

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Go past the last pause, once the candidate has every request."""
        if seen.asked_percent != 100:
            raise ObjectConflictError(f"{target.endpoint}: the candidate has {seen.asked_percent} percent")
        objects = await self._read(target)
        await self._write(target, objects, fence, 100, moves.onwards(target, objects), seen)

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Abort; once the stable version is back at full size, put its template back."""
        objects = await self._read(target)
        if target.stable is None or objects.rollout is None:
            return
        if seen.asked_percent != 0:
            raise ObjectConflictError(f"{target.endpoint}: the candidate has {seen.asked_percent} percent")
        await self._write(target, objects, fence, 0, moves.back(target, objects), seen)

    async def addresses(self, target: Target) -> Addresses:
        """The route or the endpoint's Service, and the Services that Argo keeps at the two versions."""
        objects = await self._read(target)
        canary = canary_of(objects.rollout)
        stable, candidate = (
            objects.services.get(text(canary.get(key))) for key in ("stableService", "canaryService")
        )
        own = candidate_hash(target, objects)
        selector = mapping(mapping(mapping(candidate).get("spec")).get("selector"))
        there = own and own in selector.values()
        return Addresses(
            route=self._route(target, objects),
            stable=service_address(stable) if target.stable else None,
            candidate=service_address(candidate) if there else None,
            health_path=target.names.get(HEALTH_PATH, "/ping"),
        )

    def _route(self, target: Target, objects: Objects) -> Address:
        if not objects.routed:
            address = service_address(objects.services.get(target.endpoint))
            if address is None:
                raise RolloutFailedError(f"{target.endpoint}: there is no Service to send requests to")
            return address
        spec: Any = mapping(objects.route.get("spec")) if objects.route else {}
        host = next((each for each in spec.get("hostnames") or [] if isinstance(each, str)), target.endpoint)
        if self._address is None:
            return Address(url=f"http://{host}")
        own = urlsplit(self._address).hostname == host
        return Address(url=self._address, headers={} if own else {"Host": host})

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """The last lines of the candidate's newest pod; empty if they cannot be had."""
        deployments = KubernetesDeployments(self._client)
        return await deployments.last_lines(target.endpoint, target.namespace, target.candidate)

    async def _read(self, target: Target) -> Objects:
        return await read_objects(self._client, target.endpoint, target.namespace, target.names[ROLLOUT])

    async def _write(
        self,
        target: Target,
        objects: Objects,
        fence: int,
        percent: int,
        move: Move | None,
        seen: Look | None,
    ) -> None:
        """Stamp the fence on the Rollout, and make the change, each bound to what was seen.

        The status is another resource, so the stamp goes first: who stamped it and stopped is refused later,
        because whoever goes on stamps it again.

        :raises ObjectConflictError: somebody changed an object since
        """
        version = await self._stamp(target, objects, fence, percent, seen, move)
        if move is None or (move.body is not None and not move.of_status):
            return
        if move.selector is not None:
            service = objects.services[target.endpoint]
            held = metadata(service)["resourceVersion"]
            bound = resource_version(seen, SERVICE) if seen else held
            await self._select(target, service, bound, fence, move.selector)
            return
        body = {"metadata": {"resourceVersion": version}, **(move.body or {})}
        name = target.names[ROLLOUT]
        await self._client.patch(ROLLOUTS, target.namespace, name, body, subresource="status")

    async def _stamp(
        self,
        target: Target,
        objects: Objects,
        fence: int,
        percent: int,
        seen: Look | None,
        move: Move | None = None,
    ) -> str:
        """Stamp the Rollout, and the Service where it makes the shares; a spec goes in the same patch.

        :return: the Rollout's resourceVersion after that
        """
        rollout = objects.rollout
        if rollout is None:
            raise ObjectConflictError(f"Rollout {target.names[ROLLOUT]} is gone: look again")
        held = metadata(rollout)["resourceVersion"]
        if seen is not None and resource_version(seen, ROLLOUT) != held:
            raise ObjectConflictError(f"Rollout {target.names[ROLLOUT]} has changed since: look again")
        spec = move.body if move is not None and move.body is not None and not move.of_status else {}
        meta = {"resourceVersion": held, "annotations": marks(target, fence, percent)}
        service = objects.services.get(target.endpoint)
        if service is not None and not objects.routed and not (move and move.selector):
            version = metadata(service)["resourceVersion"]
            if seen is not None and resource_version(seen, SERVICE) != version:
                raise ObjectConflictError(f"Service {target.endpoint} has changed since: look again")
            await self._select(target, service, version, fence, None)
        body = {"metadata": meta, **spec}
        if not spec and meta["annotations"].items() <= annotations_of(rollout).items():
            return str(held)
        written = await self._client.patch(ROLLOUTS, target.namespace, name_of(rollout), body)
        return str(metadata(written)["resourceVersion"])

    async def _select(
        self, target: Target, service: Json, version: str, fence: int, selector: dict[str, str] | None
    ) -> None:
        annotations = {FENCE_ANNOTATION: fence_text(target, fence)}
        body: dict[str, Any] = {"metadata": {"resourceVersion": version, "annotations": annotations}}
        if selector is not None:
            body["spec"] = {"selector": whole_selector(service, selector)}
        await self._client.patch(SERVICES, target.namespace, target.endpoint, body)

    async def _delete(self, target: Target, objects: Objects, seen: Look) -> None:
        """Delete the Rollout that this rollout made; what belongs to it goes with it."""
        rollout = objects.rollout
        if rollout is None:
            return
        try:
            await self._client.delete(
                ROLLOUTS,
                target.namespace,
                name_of(rollout),
                uid=uid_of(rollout),
                resource_version=resource_version(seen, ROLLOUT),
            )
        except ObjectNotFoundError:
            return
