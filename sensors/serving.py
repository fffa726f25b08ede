"""Sensors for what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import PokeReturnValue

from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import RolloutFailedError
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import DEFAULT_KUBERNETES_CONN_ID, get_cluster_config
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.deferring_sensor import DeferringSensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.sensors.triggers import EndpointTrigger, RolloutEndTrigger


class EndpointReadySensor(DeferringSensor):
    """Waits until an endpoint serves a version from all of its replicas.

    Readiness is what the cluster reports, so the endpoint need not be reachable from Airflow. Returns the
    endpoint's status: ``{"endpoint", "stable_version", "previous_version", "url", ...}``.

    :param endpoint: the endpoint's name (templated)
    :param version: the version it has to serve; any, if left out (templated)
    :param namespace: the connection's, if left out (templated)
    :param kubernetes_conn_id: connection of type ``kubernetes``
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    template_fields: Sequence[str] = ("endpoint", "version", "namespace")
    ui_color = "#fdf0d9"

    def __init__(
        self,
        *,
        endpoint: str,
        version: str | int | None = None,
        namespace: str | None = None,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.version = version
        self.namespace = namespace
        self.kubernetes_conn_id = kubernetes_conn_id

    @property
    def _version(self) -> str | None:
        return None if self.version in (None, "") else str(self.version)

    def _trigger(self) -> EndpointTrigger:
        from nighttrain.sensors.triggers import EndpointTrigger

        as_texts(self, "endpoint", "namespace")
        return EndpointTrigger(
            kubernetes_conn_id=self.kubernetes_conn_id,
            namespace=self.namespace,
            endpoint=self.endpoint,
            version=self._version,
            timeout_seconds=self.timeout,
            serving_only=True,
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """One look at the endpoint."""
        from nighttrain.sensors.endpoint_readiness import describe, serves

        as_texts(self, "endpoint", "namespace")
        status = run_sync(self._look())
        if serves(status, self._version):
            return PokeReturnValue(is_done=True, xcom_value=status.to_dict() if status else {})
        self.log.info("%s: %s", self.endpoint, describe(status))
        return PokeReturnValue(is_done=False)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take over what the trigger saw."""
        if not event["ready"]:
            raise RolloutFailedError(event["error"])
        status: dict[str, Any] = event["status"]
        self.log.info("%s serves version %s at %s", self.endpoint, status["stable_version"], status["url"])
        return status

    async def _look(self) -> EndpointStatus | None:
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.sensors.endpoint_readiness import endpoint_status

        async with shared_client(get_cluster_config(self.kubernetes_conn_id)) as client:
            return await endpoint_status(client, self.namespace or client.namespace, self.endpoint)


class RolloutSensor(DeferringSensor):
    """Waits until a rollout in steps, which another task or a person drives, has promoted a version.

    Fails as soon as it is undone or stopped. Returns ``{"endpoint", "version", "previous_version",
    "phase"}``.

    :param endpoint: the endpoint's name (templated)
    :param version: the version that is rolled out; whichever it is, if left out (templated)
    :param namespace: the connection's, if left out (templated)
    :param kubernetes_conn_id: connection of type ``kubernetes``
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    template_fields: Sequence[str] = ("endpoint", "version", "namespace")
    ui_color = "#fdf0d9"

    def __init__(
        self,
        *,
        endpoint: str,
        version: str | int | None = None,
        namespace: str | None = None,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.version = version
        self.namespace = namespace
        self.kubernetes_conn_id = kubernetes_conn_id

    @property
    def _version(self) -> str | None:
        return None if self.version in (None, "") else str(self.version)

    def _trigger(self) -> RolloutEndTrigger:
        from nighttrain.sensors.triggers import RolloutEndTrigger

        as_texts(self, "endpoint", "namespace")
        return RolloutEndTrigger(
            kubernetes_conn_id=self.kubernetes_conn_id,
            namespace=self.namespace,
            endpoint=self.endpoint,
            version=self._version,
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """One look at the rollout."""
        as_texts(self, "endpoint", "namespace")
        state = run_sync(self._look())
        if state is None or not state.ended:
            self.log.info(state.describe() if state else f"{self.endpoint}: no such rollout yet")
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._promoted(state))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take over what the trigger saw."""
        from nighttrain.providers.serving.rollouts.state import State

        if error := event.get("error"):
            raise RolloutFailedError(error)
        with failing_clearly():
            return self._promoted(State.from_json(event["state"]))

    def _promoted(self, state: State) -> dict[str, Any]:
        from nighttrain.sensors.rollout_end import raise_unless_promoted

        raise_unless_promoted(state)
        self.log.info(state.describe())
        target = state.target
        return {
            "endpoint": target.endpoint,
            "version": target.candidate,
            "previous_version": target.stable,
            "phase": state.phase.value,
        }

    async def _look(self) -> State | None:
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.sensors.rollout_end import rollout_of

        async with shared_client(get_cluster_config(self.kubernetes_conn_id)) as client:
            namespace = self.namespace or client.namespace
            return await rollout_of(client, namespace, self.endpoint, self._version)
