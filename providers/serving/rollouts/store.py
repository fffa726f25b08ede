"""Where a rollout's state lives: a ConfigMap beside the endpoint, one for each endpoint.

Its name makes one rollout of an endpoint at a time; its resourceVersion makes each write the next one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    NothingToRollBackToError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    ServingError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import CONFIGMAPS
from nighttrain.providers.kubernetes.values.objects import mapping, metadata
from nighttrain.providers.serving.rollouts.state import Asked, Order, State
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, check_endpoint

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json

_STATE, _ORDER = "state", "order"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What was read: the state, the newest order, and what the next write is bound to."""

    state: State
    asked: Asked | None
    resource_version: str


class RolloutMovedError(ServingError):
    """Another process wrote the rollout's state since it was read."""


class RolloutStore:
    """Reads and writes the states of rollouts."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    async def read(self, endpoint: str, namespace: str) -> Kept | None:
        """The endpoint's rollout, under way or ended; None if there never was one.

        :raises ConfigurationError: no endpoint or no namespace can have that name
        :raises WorkloadConflictError: the ConfigMap of that name is not a rollout's
        :raises ServingError: it cannot be read
        """
        check_endpoint(endpoint, namespace)
        try:
            return _kept(await self._client.get(CONFIGMAPS, namespace, state_name(endpoint)), endpoint)
        except ObjectNotFoundError:
            return None

    async def begin(self, state: State, after: Kept | None) -> Kept:
        """Write the first state of a rollout, where nothing or an ended rollout is.

        :raises RolloutMovedError: another process began one first
        """
        return await self._write(replace(state, revision=1), None, after.resource_version if after else None)

    async def write(self, state: State, kept: Kept) -> Kept:
        """Write the next state, bound to what was read.

        :raises RolloutMovedError: somebody wrote since: read it again
        """
        following = replace(state, revision=kept.state.revision + 1)
        return await self._write(following, kept.asked, kept.resource_version)

    async def ask(self, kept: Kept, order: Order, *, by: str, reason: str = "") -> Kept:
        """Write a person's order, bound to the state that the person saw.

        :raises RolloutMovedError: somebody wrote since: look again
        """
        number = max(kept.asked.number if kept.asked else 0, kept.state.obeyed) + 1
        asked = Asked(number=number, order=order, by=by, reason=reason)
        return await self._write(kept.state, asked, kept.resource_version)

    async def order(self, endpoint: str, namespace: str, order: Order, *, by: str, reason: str = "") -> State:
        """Leave a person's order for whoever drives the rollout.

        :raises NothingToRollBackToError: nothing was ever rolled out there
        :raises RolloutFailedError: it has ended
        """
        while True:
            kept = await self.read(endpoint, namespace)
            if kept is None:
                raise NothingToRollBackToError(f"there is no rollout of {endpoint} in namespace {namespace}")
            if kept.state.ended:
                raise RolloutFailedError(f"{kept.state.describe()}; there is nothing to {order}")
            try:
                return (await self.ask(kept, order, by=by, reason=reason)).state
            except RolloutMovedError:
                continue

    async def _write(self, state: State, asked: Asked | None, resource_version: str | None) -> Kept:
        target = state.target
        body: Json = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": state_name(target.endpoint),
                "namespace": target.namespace,
                "labels": {ENDPOINT_LABEL: target.endpoint, MANAGED_BY_LABEL: MANAGED_BY},
            },
            "data": {_STATE: state.to_json(), **({_ORDER: json.dumps(asdict(asked))} if asked else {})},
        }
        try:
            if resource_version is None:
                written = await self._client.create(CONFIGMAPS, target.namespace, body)
            else:
                body["metadata"]["resourceVersion"] = resource_version
                written = await self._client.replace(
                    CONFIGMAPS, target.namespace, state_name(target.endpoint), body
                )
        except (ObjectConflictError, ObjectExistsError, ObjectNotFoundError) as error:
            raise RolloutMovedError(
                f"{target.endpoint}: another process wrote the rollout's state meanwhile"
            ) from error
        return Kept(state=state, asked=asked, resource_version=metadata(written)["resourceVersion"])


def state_name(endpoint: str) -> str:
    """The name of the ConfigMap that keeps an endpoint's rollout."""
    return f"{endpoint}-rollout"


def _kept(found: Json, endpoint: str) -> Kept:
    labels = mapping(metadata(found).get("labels"))
    wanted = {ENDPOINT_LABEL: endpoint, MANAGED_BY_LABEL: MANAGED_BY}
    data = mapping(found.get("data"))
    if not wanted.items() <= labels.items() or _STATE not in data:
        raise WorkloadConflictError(
            f"ConfigMap {metadata(found).get('name')} exists and is not the state of a rollout: choose "
            "another endpoint name, or remove it"
        )
    try:
        state, asked = State.from_json(data[_STATE]), _asked(data.get(_ORDER))
    except ServingError as error:
        name, namespace = state_name(endpoint), metadata(found).get("namespace")
        raise ServingError(
            f"ConfigMap {name}: {error}. See to the endpoint's traffic by hand, then remove the state: "
            f"kubectl delete configmap {name} -n {namespace}"
        ) from error
    return Kept(state=state, asked=asked, resource_version=metadata(found)["resourceVersion"])


def _asked(text: str | None) -> Asked | None:
    if not text:
        return None
    try:
        given = json.loads(text)
        return Asked(**(given | {"order": Order(given["order"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise ServingError(f"the order to the rollout cannot be read: {text[:200]!r}") from error
