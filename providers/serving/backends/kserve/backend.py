"""The KServe backend: looks, and changes one thing at a time. What follows is decided elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nighttrain.providers.errors import (
    ClusterError,
    ConfigurationError,
    ObjectConflictError,
    RolloutFailedError,
    clip,
)
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of, status, text, whole
from nighttrain.providers.redaction import redact
from nighttrain.providers.serving.backends.kserve import knative_look, standard_look
from nighttrain.providers.serving.backends.kserve.changes import Changes
from nighttrain.providers.serving.backends.kserve.look import read
from nighttrain.providers.serving.backends.kserve.objects import (
    Objects,
    canaries_of,
    candidate_service,
    found_asked,
    predictor_of,
    stable_service,
)
from nighttrain.providers.serving.backends.kserve.plan import (
    Mode,
    Plan,
    build_form,
    check_names,
    form_of,
    version_of,
)
from nighttrain.providers.serving.backends.kserve.reading import mode_of, read_objects, read_service
from nighttrain.providers.serving.backends.kserve.stamp import (
    EVERYTHING,
    NOTHING,
    OTHER,
    RETURNING,
    sharing,
)
from nighttrain.providers.serving.backends.kserve.storage import storage_uri
from nighttrain.providers.serving.backends.traffic import (
    Address,
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, VERSION_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.spec import ServingSpec

# KServe answers a change of the spec within a second; a controller that says nothing for a minute is down,
# and then the share that is never seen to be routed ends the rollout.
_TELLING_LOOKS, _TELLING_SECONDS = 120, 0.5

_CONTAINER = "kserve-container"
# What a person needs to see why a server does not come up.
_LINES, _WIDTH = 20, 400

_SPLITS_NOTHING = (
    "this KServe takes spec.canary and routes none of it, whatever its status says (0.20 does that): upgrade "
    "to 0.21, or make the InferenceService in Knative mode. The canary was taken back"
)


class KServe:
    """InferenceServices, one for each endpoint.

    :param mode: of an endpoint that is made; one that exists keeps its own
    :param model_format: what the version is to KServe: ``mlflow``, ``sklearn``, ``huggingface`` ...
    :param protocol_version: of the inference protocol; ``None`` for the runtime's own
    :param runtime: a ServingRuntime; left out, KServe chooses by the format
    :param storage_uri: where KServe reads the version, with ``{model}`` and ``{version}``; left out, where
        the registry has it
    :param gateway_url: where the endpoint's host is answered, ``http://gateway.example:80``; left out, the
        address that KServe gives the InferenceService
    """

    name = "KServe"

    def __init__(
        self,
        client: ClusterClient,
        *,
        mode: str = Mode.STANDARD,
        model_format: str = "mlflow",
        protocol_version: str | None = "v2",
        runtime: str | None = None,
        storage_uri: str | None = None,
        gateway_url: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._mode = Mode.of(mode)
        self._model_format = model_format
        self._protocol_version = protocol_version
        self._runtime = runtime
        self._storage_uri = storage_uri
        self._gateway_url = gateway_url
        self._sleep = sleep
        self._changes = Changes(client)

    async def capabilities(self, namespace: str) -> Capabilities:
        """Exact weights. Whether a KServe in Standard mode keeps them shows only beside a canary."""
        return Capabilities(
            weights=Weights.EXACT,
            split_seen_in="the HTTPRoute's weights (Standard mode) or the status's traffic (Knative mode)",
            no_shadow_because="KServe has no field for it",
        )

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves, and where KServe reads the candidate; nothing is changed.

        :raises ConfigurationError: KServe cannot read the version, or the endpoint is not at rest
        :raises WorkloadConflictError: the InferenceService was not made by nighttrain
        """
        spec.validate()
        uri = storage_uri(spec.source, self._storage_uri, model=spec.model_name, version=spec.version)
        candidate = build_form(
            spec,
            uri,
            model_format=self._model_format,
            protocol_version=self._protocol_version,
            runtime=self._runtime,
        )
        service = await read_service(self._client, spec)
        stable = version_of(predictor_of(service)) if service else None
        if service is not None:
            await self._check_rest(spec, spec.version, service, uri)
        mode = mode_of(service) if service else self._mode
        plan = _plan(spec.version, service, candidate, mode, spec.replicas)
        check_names(spec.endpoint, spec.namespace, plan.candidate_name)
        return Target(
            endpoint=spec.endpoint,
            namespace=spec.namespace,
            model_name=spec.model_name,
            candidate=spec.version,
            stable=stable,
            names=plan.to_names(),
        )

    async def way_back(self, promoted: Target) -> Target:
        """The target of a rollout back to what a promoted one replaced; nothing is changed.

        :raises ConfigurationError: the endpoint is not at rest, or does not serve what was promoted
        :raises WorkloadConflictError: the InferenceService was not made by nighttrain
        """
        target = promoted.turned()
        service, form = await read_service(self._client, promoted), Plan.of(promoted).stable
        serves = version_of(predictor_of(service)) if service else ""
        if service is None or serves != promoted.candidate:
            raise ConfigurationError("endpoint", promoted.endpoint, promoted.not_serving(serves))
        uri = text(mapping(form.get("model")).get("storageUri"))
        await self._check_rest(target, target.candidate, service, uri)
        plan = _plan(target.candidate, service, form, mode_of(service), None)
        check_names(target.endpoint, target.namespace, plan.candidate_name)
        return replace(target, names=plan.to_names())

    async def _check_rest(self, spec: ServingSpec | Target, candidate: str, service: Json, uri: str) -> None:
        """Refuse an endpoint whose present state a rollout could not come back to."""
        predictor = predictor_of(service)
        version = version_of(predictor)
        if not version:
            raise ConfigurationError(
                "endpoint", spec.endpoint, f"its predictor has lost the label {VERSION_LABEL}: put it back"
            )
        if version == candidate:
            return
        if mode_of(service) is Mode.KNATIVE:
            if knative_look.rolled_out(service) is None or "canaryTrafficPercent" in predictor:
                raise ConfigurationError(
                    "endpoint",
                    spec.endpoint,
                    "a share counts only once one revision has had every request: remove "
                    "canaryTrafficPercent, and wait until the InferenceService is Ready",
                )
            return
        if whole(predictor.get("minReplicas")) == 0:
            raise ConfigurationError("endpoint", spec.endpoint, "its minReplicas is 0: a canary needs 1")
        if mapping(predictor.get("model")).get("storageUri") == uri:
            raise ConfigurationError(
                "storage_uri", uri, f"version {version} has the same; KServe tells two versions apart by it"
            )
        if any(whole(each.get("trafficPercent")) for each in canaries_of(service)):
            raise ConfigurationError(
                "endpoint",
                spec.endpoint,
                "its spec.canary has requests: set its trafficPercent to 0, and remove it once the answers "
                "have followed",
            )
        objects = await read_objects(self._client, Mode.STANDARD, spec.endpoint, spec.namespace)
        if objects.route is None:
            raise ConfigurationError(
                "endpoint",
                spec.endpoint,
                "it has no HTTPRoute, where the split would be seen: turn on KServe's Gateway API "
                "(enableGatewayApi), or use Knative mode",
            )

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Bring the candidate up with 0 percent, or adopt it.

        :raises ConfigurationError: this KServe does not split what it is asked to; the canary is taken back
        """
        await self.bring_back(target, fence, tell)

    async def bring_back(self, target: Target, fence: int, tell: Progress) -> None:
        """As :meth:`bring_up`: the target has the version's whole form."""
        plan, objects = await self._read(target)
        if objects.service is None:
            if target.stable is not None:
                raise RolloutFailedError(f"InferenceService {target.endpoint} was deleted by somebody")
            await self._changes.create(target, plan, fence)
            return
        await read_service(self._client, target)
        found = found_asked(target, plan, objects.service)
        wanted = EVERYTHING if target.stable is None else sharing(0)
        if found == OTHER and not _is_left_over(target, plan, objects.service):
            raise RolloutFailedError(
                f"InferenceService {target.endpoint} was changed by somebody since this rollout began"
            )
        await self._changes.ask(target, plan, objects, wanted, fence, None)
        if plan.mode is Mode.STANDARD and target.stable is not None:
            await self._require_split(target, fence, tell)

    async def _require_split(self, target: Target, fence: int, tell: Progress) -> None:
        """Find out by the canary of 0 percent whether this KServe makes weights of a canary."""
        for _ in range(_TELLING_LOOKS):
            plan, objects = await self._read(target)
            splits = standard_look.splits(target, plan, objects)
            if splits:
                return
            if splits is False:
                await self._changes.ask(target, plan, objects, NOTHING, fence, None)
                raise ConfigurationError("backend", "kserve", _SPLITS_NOTHING)
            await self._sleep(_TELLING_SECONDS)
        tell(f"{target.endpoint}: KServe has not answered the canary yet; its controller may be down")

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        return read(target, (await self._read(target))[1])

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Ask for the candidate's share."""
        if mirror_percent:
            raise ConfigurationError("mirror_percent", mirror_percent, "KServe cannot copy requests")
        plan, objects = await self._read(target)
        if target.stable is None:
            if percent == 0:
                if objects.service is not None:
                    await self._changes.delete(target, objects, seen)
                return
            wanted = EVERYTHING
        else:
            service = objects.service
            found = found_asked(target, plan, service) if service else OTHER
            at_rest = percent == 0 and found in (NOTHING, RETURNING)
            wanted = found if at_rest else sharing(percent)
        await self._changes.ask(target, plan, objects, wanted, fence, seen)

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Make the candidate the endpoint's predictor, once it has every request."""
        plan, objects = await self._read(target)
        if seen.asked_percent != 100:
            raise ObjectConflictError(f"{target.endpoint}: the candidate has {seen.asked_percent} percent")
        await self._changes.ask(target, plan, objects, EVERYTHING, fence, seen)

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Go one step back. Knative mode: the stable version with 0 percent; once it is ready, for good."""
        plan, objects = await self._read(target)
        if target.stable is None or objects.service is None:
            return
        if seen.asked_percent != 0:
            raise ObjectConflictError(f"{target.endpoint}: the candidate has {seen.asked_percent} percent")
        found = found_asked(target, plan, objects.service)
        wanted = NOTHING
        if plan.mode is Mode.KNATIVE and found != NOTHING:
            wanted = NOTHING if found == RETURNING and knative_look.returned(target, objects) else RETURNING
        await self._changes.ask(target, plan, objects, wanted, fence, seen)

    async def addresses(self, target: Target) -> Addresses:
        """The endpoint's host, and each version's Service or revision."""
        plan, objects = await self._read(target)
        shown = text(status(objects.service).get("url")) if objects.service else ""
        host = urlsplit(shown).hostname or target.endpoint
        url = self._gateway_url or shown or f"http://{target.endpoint}.{target.namespace}"
        return Addresses(
            route=Address(url=url, headers={"Host": host} if self._gateway_url else {}),
            stable=_address(target, plan, objects, target.stable),
            candidate=_address(target, plan, objects, target.candidate),
            health_path="/v2/health/ready" if self._protocol_version == "v2" else "/",
        )

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """The last lines of the candidate's newest pod; empty if they cannot be had."""
        selector = f"{ENDPOINT_LABEL}={target.endpoint},{VERSION_LABEL}={target.candidate}"
        lines: list[str] = []
        try:
            pods = (await self._client.list(PODS, target.namespace, label_selector=selector))["items"]
            newest = max(pods, key=lambda pod: text(metadata(pod).get("creationTimestamp")), default=None)
            if newest is None:
                return ()
            asked = self._client.logs(
                target.namespace, name_of(newest), container=_CONTAINER, tail_lines=_LINES
            )
            async for line in asked:
                lines.append(clip(redact(line), _WIDTH))
        except ClusterError:
            pass
        return tuple(lines)

    async def _read(self, target: Target) -> tuple[Plan, Objects]:
        plan = Plan.of(target)
        return plan, await read_objects(self._client, plan.mode, target.endpoint, target.namespace)


def _plan(version: str, service: Json | None, candidate: Json, mode: Mode, replicas: int | None) -> Plan:
    predictor = predictor_of(service)
    held = whole(predictor.get("minReplicas"))
    stable_replicas = 1 if held is None else held
    replicas = stable_replicas if replicas is None else replicas
    most = whole(predictor.get("maxReplicas")) if service else replicas
    return Plan(
        mode=mode,
        stable_name=text(predictor.get("name")),
        # The first version's predictor needs no name; one beside it does.
        candidate_name="" if service is None else f"v{version}",
        stable=form_of(predictor),
        candidate=candidate,
        stable_replicas=stable_replicas,
        replicas=replicas,
        max_replicas=None if not most else max(most, replicas),
    )


def _is_left_over(target: Target, plan: Plan, service: Json) -> bool:
    """True if an earlier rollout's canary without requests stands beside the stable version."""
    if plan.mode is Mode.KNATIVE or version_of(predictor_of(service)) != target.stable:
        return False
    return not any(whole(each.get("trafficPercent")) for each in canaries_of(service))


def _address(target: Target, plan: Plan, objects: Objects, version: str | None) -> Address | None:
    if version is None or objects.service is None:
        return None
    if plan.mode is Mode.STANDARD:
        own = version == target.candidate
        name = candidate_service(target, plan) if own else stable_service(target, plan)
        return Address(url=f"http://{name}.{target.namespace}.svc.cluster.local")
    revision = knative_look.revision_of(target, objects, version)
    if revision is None:
        return None
    headers = {"Knative-Serving-Namespace": target.namespace, "Knative-Serving-Revision": revision}
    return Address(url=f"http://{revision}.{target.namespace}.svc.cluster.local", headers=headers)
