"""A rollout engine for one serving system, from plain values: what operators, triggers and commands share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, NothingToRollBackToError
from nighttrain.providers.kubernetes.api.client import shared_client
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.serving.analysis.sources.choice import Ways, check_source, make_sources
from nighttrain.providers.serving.analysis.sources.routes import RouteFromJobs, warm_up
from nighttrain.providers.serving.backends.choice import check_backend, make_backend
from nighttrain.providers.serving.rollout import prepare
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.http_route import ask_route
from nighttrain.providers.serving.rollouts.record import MLflowRecorder
from nighttrain.providers.serving.rollouts.registry_side import MLflowRegistrar
from nighttrain.providers.serving.rollouts.state import promoted_by
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.serving.backends.traffic import Address, Addresses, Progress
    from nighttrain.providers.serving.rollouts.state import Names, State
    from nighttrain.providers.tracking.client import TrackingConfig


class MeasuredFrom(StrEnum):
    """Where requests of the analysis come from."""

    HERE = "here"
    """The process that drives the rollout: it has to reach the endpoint and its pods."""
    CLUSTER = "cluster"
    """A Job in the connection's namespace: for an orchestrator outside the cluster's network."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a rollout happens, and from where it is seen. Plain values: a trigger's argument.

    :param backend: the serving system: ``{"type": "deployment"}`` and its own parameters
    :param image: for Jobs that measure from inside the cluster: any image with Python
    """

    backend: Mapping[str, Any] = field(default_factory=lambda: {"type": "deployment"})
    measured_from: MeasuredFrom = MeasuredFrom.HERE
    image: str | None = None

    @classmethod
    def of(cls, backend: str | Mapping[str, Any], measured_from: str, image: str | None) -> Setting:
        """A setting from what a person wrote.

        :raises ConfigurationError: there is no such serving system, or one of its parameters
        """
        given = {"type": backend} if isinstance(backend, str) else dict(backend)
        check_backend(given)
        try:
            place = MeasuredFrom(measured_from)
        except ValueError as error:
            raise ConfigurationError(
                "measured_from", measured_from, f"choose one of {', '.join(MeasuredFrom)}"
            ) from error
        return cls(backend=given, measured_from=place, image=image)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Setting:
        """What :meth:`to_dict` gave."""
        return cls(**{**given, "measured_from": MeasuredFrom(given["measured_from"])})


async def setting_of(client: ClusterClient, endpoint: str, namespace: str) -> Setting:
    """Where the endpoint's rollout happens, as whoever began it said.

    :raises NothingToRollBackToError: there is none
    """
    kept = await RolloutStore(client).read(endpoint, namespace)
    if kept is None:
        raise NothingToRollBackToError(f"there is no rollout of {endpoint} in namespace {namespace}")
    return Setting.from_dict(kept.state.setting)


STEPPED_BACK = frozenset({"kserve", "argo_rollouts"})
"""Serving systems where the version before is not kept up: the way back is a rollout of its own."""


async def goes_back_in_steps(client: ClusterClient, endpoint: str, namespace: str) -> bool:
    """Tell whether the way back of an endpoint is a rollout of its own, :func:`go_back`.

    If not, the version before is up still, and the Service is switched to it.
    """
    kept = await RolloutStore(client).read(endpoint, namespace)
    return kept is not None and Setting.from_dict(kept.state.setting).backend["type"] in STEPPED_BACK


async def go_back(
    client: ClusterClient,
    mlflow: MLflowClient,
    endpoint: str,
    namespace: str,
    *,
    rollout_id: str,
    actor: str,
    names: Names | None,
    reason: str,
    tell: Progress,
) -> tuple[State, Address]:
    """Take an endpoint back to the version before, once its artifact is verified; to the end.

    :param rollout_id: one and the same over a crash: a repetition then joins what it had begun
    :param names: what goes back with it; those of the last rollout, if ``None``
    :return: the end, and where the endpoint answers
    :raises NothingToRollBackToError: nothing was promoted there, or nothing served before it
    :raises NighttrainError: as :meth:`RolloutEngine.begin_back`
    """
    store = RolloutStore(client)
    kept = await store.read(endpoint, namespace)
    if kept is None:
        raise NothingToRollBackToError(f"there is no rollout of {endpoint} in namespace {namespace}")
    state, promoted = kept.state, promoted_by(kept.state)
    if state.ended and promoted is not None and promoted.stable is not None:
        await prepare(ModelRegistry(mlflow), promoted.model_name, promoted.stable)
    engine = make_engine(client, mlflow, Setting.from_dict(state.setting))
    begun = await engine.begin_back(
        endpoint,
        namespace,
        rollout_id=rollout_id,
        actor=actor,
        names=state.names if names is None else names,
        reason=reason,
    )
    ended = await engine.drive(endpoint, namespace, rollout_id=begun.rollout_id, tell=tell)
    await engine.take(endpoint, namespace, ended.rollout_id)
    return ended, (await engine.addresses(ended.target)).route


@asynccontextmanager
async def open_engine(
    cluster: ClusterConfig, tracking: TrackingConfig, setting: Setting
) -> AsyncIterator[tuple[ClusterClient, RolloutEngine]]:
    """A cluster client, and an engine on it, for as long as the ``async with``."""
    async with shared_client(cluster) as client, MLflowClient(tracking) as mlflow:
        yield client, make_engine(client, mlflow, setting)


def make_engine(client: ClusterClient, mlflow: MLflowClient, setting: Setting) -> RolloutEngine:
    """An engine on open clients."""
    in_cluster = setting.measured_from is MeasuredFrom.CLUSTER
    ways = Ways(client, mlflow, in_cluster=in_cluster, image=setting.image)

    async def warm(state: State, addresses: Addresses) -> bool | str:
        golden, count = state.strategy.golden, state.strategy.warm_up
        return golden is None or await warm_up(ways.asker(), state.target.endpoint, addresses, golden, count)

    return RolloutEngine(
        make_backend(client, setting.backend),
        RolloutStore(client),
        MLflowRegistrar(ModelRegistry(mlflow)),
        sources=make_sources(ways),
        check_metric=check_source,
        ask_route=RouteFromJobs(ways.jobs()) if in_cluster else ask_route,
        warm_up=warm,
        recorder=MLflowRecorder(mlflow),
        setting=setting.to_dict(),
    )
