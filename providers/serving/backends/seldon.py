"""Seldon Core v2, experimental: one Model for each version, one Experiment for each endpoint.

Nobody recorded what its controllers do: this is built from their documented fields. Where a recording would
tell more (whether weights are routed once the Experiment says so, what a status says of an older spec), the
Experiment's own word is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import SELDON_EXPERIMENTS, SELDON_MODELS
from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
    items,
    mapping,
    metadata,
    text,
    whole,
)
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.manifests import deployment_name, version_labels
from nighttrain.providers.serving.backends.plain.changes import resource_version
from nighttrain.providers.serving.backends.plain.objects import (
    NOTHING_THERE,
    annotations_of,
    fence_of,
    fence_text,
)
from nighttrain.providers.serving.backends.traffic import (
    Address,
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.spec import (
    DIGEST_ANNOTATION,
    ENDPOINT_LABEL,
    FENCE_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_ANNOTATION,
    STABLE_ANNOTATION,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.resources import Resource
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.spec import ServingSpec

MODEL_HEADER = "Seldon-Model"
"""Says at the mesh which Model, or which Experiment, is asked."""

EXPERIMENT = "experiment"
"""In :attr:`Look.resource_versions`: the endpoint's Experiment."""

_UNREADABLE = ("models:", "runs:", "mlflow-artifacts:")


@dataclass(frozen=True, kw_only=True)
class Objects:
    """An endpoint's objects, as one look read them."""

    experiment: Json | None
    stable: Json | None
    candidate: Json | None


def build_model(spec: ServingSpec, storage_uri: str, requirements: Sequence[str]) -> Json:
    """The Model of one version."""
    labels = {**version_labels(spec.endpoint, spec.version), MANAGED_BY_LABEL: MANAGED_BY}
    marks = {MODEL_ANNOTATION: spec.model_name, DIGEST_ANNOTATION: spec.artifact_digest}
    body = {"storageUri": storage_uri, "requirements": list(requirements), "replicas": spec.replicas or 1}
    name = deployment_name(spec.endpoint, spec.version)
    meta = {"name": name, "labels": labels, "annotations": marks}
    return {
        "apiVersion": SELDON_MODELS.api_version,
        "kind": SELDON_MODELS.kind,
        "metadata": meta,
        "spec": body,
    }


def experiment_spec(target: Target, *, default: str, percent: int, mirror: int = 0) -> Json:
    """The ``spec`` of the Experiment for a share. ``mirror`` is null where nothing is copied.

    :param default: the version whose Model is asked where nobody names the Experiment
    """
    shares = {target.stable: 100 - percent, target.candidate: percent}
    return {
        "default": deployment_name(target.endpoint, default),
        "candidates": [
            {"name": deployment_name(target.endpoint, version), "weight": weight}
            for version, weight in shares.items()
            if version and weight
        ],
        "mirror": {"name": deployment_name(target.endpoint, target.candidate), "percent": mirror}
        if mirror
        else None,
        "resourceType": "model",
    }


def read(target: Target, objects: Objects) -> Look:
    """Say what the objects show. Total: whatever they hold, it returns; in doubt nothing is so."""
    experiment = objects.experiment
    spec = mapping(experiment.get("spec")) if experiment else {}
    own = deployment_name(target.endpoint, target.candidate)
    weights = {
        text(each.get("name")): whole(each.get("weight")) or 0 for each in items(spec.get("candidates"))
    }
    total = sum(weights.values())
    asked = round(100 * weights.get(own, 0) / total) if total else 0
    mirror = mapping(spec.get("mirror"))
    known = {deployment_name(target.endpoint, each) for each in (target.stable, target.candidate) if each}
    accepted = experiment is not None and _says(experiment, "ExperimentReady")
    routed: float | None = float(asked) if accepted else None
    if experiment is None and target.stable is None:
        routed = 0.0
    marked = annotations_of(experiment).get(STABLE_ANNOTATION)
    ready, stable_ready = (
        each is not None and _says(each, "ModelReady") for each in (objects.candidate, objects.stable)
    )
    home = marked == target.stable if target.stable else experiment is None
    return Look(
        readiness=_readiness(objects.candidate),
        stable_ready=stable_ready,
        asked_percent=asked,
        routed_percent=routed,
        unseen=None if accepted else "the Experiment does not say that it is ready",
        mirrored_percent=(whole(mirror.get("percent")) or 0) if text(mirror.get("name")) == own else 0,
        promoted=marked == target.candidate and routed == 100 and ready and objects.stable is None,
        undone=home and routed == 0 and objects.candidate is None and (stable_ready or target.stable is None),
        fence=fence_of(target, experiment) if experiment else 0 if target.stable else NOTHING_THERE,
        strayed=_strayed(target, experiment, set(weights) - known),
        resource_versions={EXPERIMENT: metadata(experiment)["resourceVersion"]} if experiment else {},
    )


def _says(obj: Json, kind: str) -> bool:
    return any_condition(obj, kind).get("status") == "True"


def _readiness(model: Json | None) -> Readiness:
    if model is None:
        gone = "Its Model does not exist: it was never made, or somebody deleted it."
        return Readiness(ready=False, detail="no Model", failure=gone)
    if _says(model, "ModelReady"):
        return Readiness(ready=True, detail="ready", answers=True)
    said = any_condition(model, "ModelReady")
    why = ": ".join(filter(None, (text(said.get("reason")), text(said.get("message")))))
    return Readiness(ready=False, detail="not ready yet", doubt=f"Seldon says {why}" if why else None)


def _strayed(target: Target, experiment: Json | None, others: set[str]) -> str | None:
    if experiment is None:
        return f"somebody deleted Experiment {target.endpoint}" if target.stable else None
    if others and fence_of(target, experiment):
        return f"somebody added {', '.join(sorted(others))} to Experiment {target.endpoint}"
    return None


class Seldon:
    """Models and Experiments of Seldon Core v2. Experimental: see the module.

    :param mesh: the base URL of Seldon's mesh, as whoever asks reaches it
    :param storage_uri: where Seldon reads the version, with ``{model}`` and ``{version}``; left out, where
        the registry has it
    :param requirements: what a server has to have to take the Model
    """

    name = "Seldon Core v2 (experimental)"

    def __init__(
        self,
        client: ClusterClient,
        *,
        mesh: str,
        storage_uri: str | None = None,
        requirements: Sequence[str] = ("mlflow",),
    ) -> None:
        self._client = client
        self._mesh = mesh
        self._storage_uri = storage_uri
        self._requirements = tuple(requirements)

    async def capabilities(self, namespace: str) -> Capabilities:
        """Weights and copies, as the Experiment has fields for them."""
        return Capabilities(
            weights=Weights.EXACT,
            split_seen_in="the Experiment's weights once it is ready; experimental: never recorded",
            shadow=True,
            shadow_shares=True,
        )

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves; nothing is changed.

        :raises ConfigurationError: Seldon cannot read the version, or the endpoint serves another model
        :raises WorkloadConflictError: somebody else made the Experiment
        """
        spec.validate()
        self._storage(spec)
        experiment = await self._find(SELDON_EXPERIMENTS, spec.namespace, spec.endpoint)
        marks = annotations_of(experiment)
        if experiment is not None and STABLE_ANNOTATION not in marks:
            raise WorkloadConflictError(
                f"Experiment {spec.endpoint} exists and was not made by nighttrain: choose another endpoint"
            )
        if experiment is not None and marks.get(MODEL_ANNOTATION) != spec.model_name:
            raise ConfigurationError("endpoint", spec.endpoint, f"it serves {marks.get(MODEL_ANNOTATION)!r}")
        return Target(
            endpoint=spec.endpoint,
            namespace=spec.namespace,
            model_name=spec.model_name,
            candidate=spec.version,
            stable=marks.get(STABLE_ANNOTATION),
        )

    def _storage(self, spec: ServingSpec) -> str:
        given = self._storage_uri
        uri = (
            given.replace("{model}", spec.model_name).replace("{version}", spec.version)
            if given
            else spec.source
        )
        if not uri or uri.startswith(_UNREADABLE):
            raise ConfigurationError(
                "backend['storage_uri']",
                uri or None,
                "Seldon cannot read it: give an address that rclone can",
            )
        return uri

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Make the candidate's Model, which the Experiment does not name yet."""
        body = build_model(spec, self._storage(spec), self._requirements)
        try:
            await self._client.create(SELDON_MODELS, target.namespace, body)
        except ObjectExistsError as error:
            held = await self._client.get(SELDON_MODELS, target.namespace, body["metadata"]["name"])
            labels = mapping(metadata(held).get("labels"))
            if not body["metadata"]["labels"].items() <= labels.items():
                raise WorkloadConflictError(f"Model {body['metadata']['name']} is somebody else's") from error
        objects = await self._read(target)
        if objects.experiment is not None:
            await self._patch(target, objects, None, fence, {})

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        return read(target, await self._read(target))

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Ask for the candidate's share, and for copies."""
        objects = await self._read(target)
        default = target.stable or target.candidate
        body = {"spec": experiment_spec(target, default=default, percent=percent, mirror=mirror_percent)}
        if objects.experiment is not None and (target.stable or percent):
            await self._patch(target, objects, seen, fence, body)
        elif objects.experiment is not None:
            await self._delete(SELDON_EXPERIMENTS, target.namespace, objects.experiment)
        elif target.stable is None and percent == 100:
            await self._make_experiment(target, fence)
        elif percent:
            raise RolloutFailedError(f"{target.endpoint}: there is no Experiment to share the requests with")

    async def _make_experiment(self, target: Target, fence: int) -> None:
        labels = {ENDPOINT_LABEL: target.endpoint, MANAGED_BY_LABEL: MANAGED_BY}
        marks = {
            MODEL_ANNOTATION: target.model_name,
            STABLE_ANNOTATION: target.candidate,
            FENCE_ANNOTATION: fence_text(target, fence),
        }
        spec = experiment_spec(target, default=target.candidate, percent=100)
        body = {
            "apiVersion": SELDON_EXPERIMENTS.api_version,
            "kind": SELDON_EXPERIMENTS.kind,
            "metadata": {"name": target.endpoint, "labels": labels, "annotations": marks},
            "spec": {key: value for key, value in spec.items() if value is not None},
        }
        try:
            await self._client.create(SELDON_EXPERIMENTS, target.namespace, body)
        except ObjectExistsError as error:
            raise ObjectConflictError(f"somebody made Experiment {target.endpoint} just now") from error

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Make the candidate the default; then the Model before goes."""
        if seen.asked_percent != 100:
            raise ObjectConflictError(f"{target.endpoint}: the candidate has {seen.asked_percent} percent")
        objects = await self._read(target)
        body: dict[str, Any] = {
            "metadata": {"annotations": {STABLE_ANNOTATION: target.candidate}},
            "spec": experiment_spec(target, default=target.candidate, percent=100),
        }
        await self._patch(target, objects, seen, fence, body)
        if annotations_of(objects.experiment).get(STABLE_ANNOTATION) == target.candidate and objects.stable:
            await self._delete(SELDON_MODELS, target.namespace, objects.stable)

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Remove the candidate's Model, which the Experiment does not name any more."""
        objects = await self._read(target)
        if seen.asked_percent or seen.routed_percent != 0:
            return
        if objects.experiment is not None:
            await self._patch(target, objects, seen, fence, {})
        if objects.candidate is not None:
            await self._delete(SELDON_MODELS, target.namespace, objects.candidate)

    async def addresses(self, target: Target) -> Addresses:
        """The mesh, where a header names the Experiment or a Model."""

        def of(name: str) -> Address:
            return Address(url=self._mesh, headers={MODEL_HEADER: name})

        stable = deployment_name(target.endpoint, target.stable) if target.stable else None
        return Addresses(
            route=of(f"{target.endpoint}.experiment"),
            stable=of(stable) if stable else None,
            candidate=of(deployment_name(target.endpoint, target.candidate)),
            health_path="/v2/health/ready",
        )

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """None: many Models share one server's pods."""
        return ()

    async def _read(self, target: Target) -> Objects:
        versions = (target.stable, target.candidate)
        names = [deployment_name(target.endpoint, each) if each else "" for each in versions]
        stable, candidate = [await self._find(SELDON_MODELS, target.namespace, name) for name in names]
        experiment = await self._find(SELDON_EXPERIMENTS, target.namespace, target.endpoint)
        return Objects(experiment=experiment, stable=stable, candidate=candidate)

    async def _find(self, resource: Resource, namespace: str, name: str) -> Json | None:
        if not name:
            return None
        try:
            return await self._client.get(resource, namespace, name)
        except ObjectNotFoundError:
            return None

    async def _patch(
        self, target: Target, objects: Objects, seen: Look | None, fence: int, body: dict[str, Any]
    ) -> None:
        held = metadata(objects.experiment)
        version = held.get("resourceVersion") if seen is None else resource_version(seen, EXPERIMENT)
        marks = {**mapping(body.get("metadata")).get("annotations", {})}
        marks[FENCE_ANNOTATION] = fence_text(target, fence)
        whole_body = {**body, "metadata": {"resourceVersion": version, "annotations": marks}}
        await self._client.patch(SELDON_EXPERIMENTS, target.namespace, target.endpoint, whole_body)

    async def _delete(self, resource: Resource, namespace: str, obj: Json) -> None:
        held = metadata(obj)
        try:
            await self._client.delete(
                resource, namespace, held["name"], uid=held["uid"], propagation="Background"
            )
        except ObjectNotFoundError:
            return
