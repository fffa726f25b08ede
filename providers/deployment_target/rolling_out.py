"""Bring a version onto an endpoint, at once or in steps: the stages that a task goes through, too."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.deployment_target.standing import (
    DEPLOYED_BY_ANNOTATION,
    PLAIN,
    SETTINGS_ANNOTATION,
)
from nighttrain.providers.errors import (
    ConfigurationError,
    RolloutStoppedError,
    RolloutUnderWayError,
    RolloutUndoneError,
)
from nighttrain.providers.pod_access import pod_access
from nighttrain.providers.registry.models import ModelRegistry, ensure_recorded
from nighttrain.providers.registry.promotion import Author, promote
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout, prepare
from nighttrain.providers.serving.rollouts.opening import Setting, make_engine
from nighttrain.providers.serving.rollouts.state import HELD, Names, Phase
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import blue_green
from nighttrain.providers.tracking.config import address_for_pods

if TYPE_CHECKING:
    from nighttrain.providers.deployment_target.references import ModelReference
    from nighttrain.providers.deployment_target.settings import Settings
    from nighttrain.providers.deployment_target.standing import Standing
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.serving.backends.base import Progress
    from nighttrain.providers.serving.rollouts.engine import RolloutEngine
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.tracking.client import MLflowClient


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a command works with.

    :param actor: who gave the command, for histories
    :param tell: takes a line of progress
    """

    client: ClusterClient
    mlflow: MLflowClient
    actor: str
    tell: Progress


async def roll_out(way: Way, standing: Standing, reference: ModelReference, settings: Settings) -> None:
    """Pin the version, verify its artifact, bring it up, and send it the requests.

    :raises ConfigurationError: a setting that cannot be; nothing was created
    :raises RegistryError: there is no such version, or its artifact is not the one that was registered
    :raises RolloutUnderWayError: another rollout of the endpoint is
    :raises RolloutFailedError: it did not become ready, or was undone; the version before serves
    """
    found, digest = await _pin(way, reference)
    spec = _spec(way, standing, found, digest, settings)
    spec.validate()
    strategy = settings.rollout.get("strategy")
    alias, stage = settings.rollout.get("alias"), settings.rollout.get("stage")
    if strategy is not None:
        alias, stage = alias or reference.alias, stage or reference.stage
    names = Names(alias=alias, stage=stage)
    setting = Setting.of(
        settings.rollout.get("backend") or standing.backend,
        settings.rollout.get("measured_from", "here"),
        spec.image,
    )
    if strategy is None and not names and setting.backend["type"] == PLAIN:
        await _at_once(way, standing, spec)
        return
    await _Steps(way, standing, spec, names, setting).run(strategy or blue_green(watch_seconds=0.0))


async def _pin(way: Way, reference: ModelReference) -> tuple[ModelVersion, str]:
    registry = ModelRegistry(way.mlflow)
    found = await reference.resolve(registry)
    if found.digest is None:
        way.tell(f"{found.name} version {found.version} was registered without a digest: recording it now")
        await ensure_recorded(registry, found)
    digest = await prepare(registry, found.name, found.version)
    way.tell(f"{found.name} version {found.version}, artifact sha256 {digest}")
    return found, digest


def _spec(way: Way, standing: Standing, found: ModelVersion, digest: str, settings: Settings) -> ServingSpec:
    pods: dict[str, Any] = dict(settings.pods)
    if "image" not in pods:
        raise ConfigurationError("-C image", None, "name a container image that has Python and mlflow")
    config = way.mlflow.config
    uri = address_for_pods("-C mlflow_uri", pods.pop("mlflow_uri", config.uri))
    access = pod_access(config, uri=uri, secret=pods.pop("mlflow_secret", None))
    return ServingSpec(
        endpoint=standing.name,
        namespace=standing.namespace,
        model_name=found.name,
        version=found.version,
        artifact_digest=digest,
        tracking_uri=access.uri,
        known_secrets=access.known_secrets,
        mlflow_env=access.serving_environment(),
        env_from=access.sources(),
        automount_service_account_token=True if access.auth else None,
        replicas=settings.rollout.get("replicas"),
        annotations={DEPLOYED_BY_ANNOTATION: way.actor, SETTINGS_ANNOTATION: settings.to_text()},
        **pods,
    )


async def _at_once(way: Way, standing: Standing, spec: ServingSpec) -> None:
    if standing.kept is not None and not standing.kept.state.ended:
        raise _under_way(standing.kept.state)
    await Rollout(KubernetesDeployments(way.client)).run(spec, on_progress=way.tell)


def _under_way(state: State) -> RolloutUnderWayError:
    return RolloutUnderWayError(
        f"{state.describe()}, begun by {state.actor}; one rollout of an endpoint at a time. Wait for it, or "
        f"end it: nighttrain rollout abort {state.target.endpoint}"
    )


@dataclass(frozen=True)
class _Steps:
    """A rollout in steps, from its beginning to its end, which an interrupted command undoes."""

    way: Way
    standing: Standing
    spec: ServingSpec
    names: Names
    setting: Setting

    async def run(self, strategy: Any) -> None:
        engine = make_engine(self.way.client, self.way.mlflow, self.setting)
        begun = await engine.begin(
            self.spec,
            strategy,
            rollout_id=self._rollout_id(),
            actor=self.way.actor,
            names=self.names,
            tell=self.way.tell,
        )
        if begun is None:
            await self._serves_already()
            return
        state = await self._drive(engine, begun.rollout_id)
        await engine.take(self.spec.endpoint, self.spec.namespace, state.rollout_id)
        if state.phase is Phase.UNDONE:
            raise RolloutUndoneError(state.describe())
        if state.phase is Phase.STOPPED:
            raise RolloutStoppedError(state.describe())

    def _rollout_id(self) -> str:
        """A new one, unless the same command died half-way: then it goes on with what it had begun."""
        fresh = f"{self.way.actor}: {uuid.uuid4().hex[:8]}"
        state = self.standing.kept.state if self.standing.kept else None
        if state is None or state.ended or state.actor != self.way.actor:
            return fresh
        target = state.target
        if (target.model_name, target.candidate) == (self.spec.model_name, self.spec.version):
            self.way.tell(f"{state.describe()}; going on with it")
            return state.rollout_id
        if state.phase in HELD or state.paused:
            return fresh
        raise _under_way(state)

    async def _drive(self, engine: RolloutEngine, rollout_id: str) -> State:
        endpoint, namespace = self.spec.endpoint, self.spec.namespace
        try:
            return await engine.drive(
                endpoint, namespace, rollout_id=rollout_id, spec=self.spec, tell=self.way.tell
            )
        except asyncio.CancelledError:
            self.way.tell(f"{endpoint}: interrupted: the rollout is undone, which takes some seconds")
            undoing = engine.abort(
                endpoint,
                namespace,
                rollout_id,
                by=self.way.actor,
                reason="the command was interrupted",
                tell=self.way.tell,
            )
            await asyncio.shield(asyncio.ensure_future(undoing))
            raise

    async def _serves_already(self) -> None:
        """Give what serves its form, and the names that are to be its."""
        await Rollout(KubernetesDeployments(self.way.client)).run(self.spec, on_progress=self.way.tell)
        if not self.names:
            return
        changed = await promote(
            ModelRegistry(self.way.mlflow),
            self.spec.model_name,
            self.spec.version,
            alias=self.names.alias,
            stage=self.names.stage,
            author=Author(actor=self.way.actor, reason=f"{self.spec.endpoint} serves it already"),
        )
        if changed.changed:
            self.way.tell(f"{self.spec.endpoint}: version {self.spec.version} has its alias and stage now")
