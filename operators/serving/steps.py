"""The part of a rollout task that goes step by step: begin, hand over to the triggerer, tell the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.operators.common import task_context
from nighttrain.providers.serving.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.sdk import Context

    from nighttrain.providers.kubernetes.api.client import ClusterConfig
    from nighttrain.providers.serving.backends.traffic import Address, Progress, Target
    from nighttrain.providers.serving.rollouts.opening import Setting
    from nighttrain.providers.serving.rollouts.state import Names, State
    from nighttrain.providers.serving.spec import ServingSpec
    from nighttrain.providers.tracking.client import TrackingConfig


def as_strategy(given: Strategy | Mapping[str, Any] | None) -> Strategy | None:
    """A strategy from what a DAG's author wrote.

    :raises ConfigurationError: names the field, the value and the fix
    """
    if given is None:
        return None
    strategy = given if isinstance(given, Strategy) else Strategy.from_dict(given)
    strategy.validate()
    return strategy


def rollout_id(context: Context) -> str:
    """One and the same over a crash and its retry; another once somebody clears the task."""
    return f"{task_context.actor(context)}@{task_context.epoch(context)}"


class Steps:
    """What a task asks of the engine; each call opens it anew, so it may be another process's."""

    def __init__(
        self, cluster: ClusterConfig, tracking: TrackingConfig, setting: Setting, namespace: str | None
    ) -> None:
        self._cluster, self._tracking, self._setting = cluster, tracking, setting
        self._namespace = namespace

    async def begin(
        self,
        make_spec: Callable[[str], ServingSpec],
        strategy: Strategy,
        *,
        rollout_id: str,
        actor: str,
        names: Names,
        tell: Progress,
    ) -> State | None:
        """Begin, and bring the candidate up: what follows needs no spec. ``None`` if the version serves."""
        from nighttrain.providers.serving.rollouts.opening import open_engine

        async with open_engine(self._cluster, self._tracking, self._setting) as (client, engine):
            spec = make_spec(self._namespace or client.namespace)
            state = await engine.begin(
                spec, strategy, rollout_id=rollout_id, actor=actor, names=names, tell=tell
            )
            if state is None or state.brought_up or state.ended:
                return state
            return await engine.drive(
                spec.endpoint,
                spec.namespace,
                rollout_id=rollout_id,
                spec=spec,
                until=lambda present: present.brought_up,
                tell=tell,
            )

    async def drive(
        self,
        endpoint: str,
        rollout_id: str,
        *,
        until: Callable[[State], bool] | None = None,
        tell: Progress,
    ) -> State:
        """Carry it to its end, or until something holds."""
        from nighttrain.providers.serving.rollouts.opening import open_engine

        async with open_engine(self._cluster, self._tracking, self._setting) as (client, engine):
            namespace = self._namespace or client.namespace
            return await engine.drive(endpoint, namespace, rollout_id=rollout_id, until=until, tell=tell)

    async def abort(self, endpoint: str, rollout_id: str, *, by: str, reason: str, tell: Progress) -> None:
        """Undo what this task began, unless it has ended or another one has taken its place."""
        from nighttrain.providers.serving.rollouts.opening import open_engine

        async with open_engine(self._cluster, self._tracking, self._setting) as (client, engine):
            namespace = self._namespace or client.namespace
            await engine.abort(endpoint, namespace, rollout_id, by=by, reason=reason, tell=tell)

    async def serving(self, make_spec: Callable[[str], ServingSpec]) -> tuple[Target, Address]:
        """The endpoint of a version that serves already, and where it answers."""
        from nighttrain.providers.serving.rollouts.opening import open_engine

        async with open_engine(self._cluster, self._tracking, self._setting) as (client, engine):
            target = await engine.target(make_spec(self._namespace or client.namespace))
            return target, (await engine.addresses(target)).route

    async def take(self, state: State) -> Address:
        """Remember that the end was told; the address where the endpoint answers."""
        from nighttrain.providers.serving.rollouts.opening import open_engine

        async with open_engine(self._cluster, self._tracking, self._setting) as (_, engine):
            target = state.target
            await engine.take(target.endpoint, target.namespace, state.rollout_id)
            return (await engine.addresses(target)).route
