"""A process that dies at one of its writes to the cluster, and the way back that such processes drive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.serving.rollouts.state import Names

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Progress
    from nighttrain.providers.serving.rollouts.engine import RolloutEngine
    from nighttrain.providers.serving.rollouts.state import State


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """A client whose process dies at its n-th write, before or after the cluster acted on it."""

    def __init__(self, client: ClusterClient, dies_at: int, *, after: bool) -> None:
        self._client, self._dies_at, self._after, self.writes = client, dies_at, after, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name not in ("create", "replace", "patch", "delete"):
            return real

        async def write(*given: Any, **named: Any) -> Any:
            self.writes += 1
            if self.writes == self._dies_at and not self._after:
                raise Killed
            answer = await real(*given, **named)
            if self.writes == self._dies_at:
                raise Killed
            return answer

        return write


async def go_back(
    engine: RolloutEngine, endpoint: str, namespace: str, rollout_id: str, tell: Progress
) -> State:
    """Begin the way back, or join it; drive it to its end, and tell whoever began it."""
    begun = await engine.begin_back(
        endpoint,
        namespace,
        rollout_id=rollout_id,
        actor="a",
        names=Names(alias="champion"),
        reason="wrong since noon",
    )
    state = await engine.drive(endpoint, namespace, rollout_id=begun.rollout_id, tell=tell)
    await engine.take(endpoint, namespace, state.rollout_id)
    return state
