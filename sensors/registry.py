"""Sensors for MLflow's model registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import PokeReturnValue

from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import TrackingError, TrackingMisconfiguredError
from nighttrain.providers.texts import text_of
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, DEFAULT_POLL_SECONDS, get_mlflow
from nighttrain.sensors.deferring_sensor import DeferringSensor
from nighttrain.sensors.registry_condition import Awaited, RegistryCondition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from airflow.sdk import Context

    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.sensors.triggers import RegistryTrigger


class _RegistrySensor(DeferringSensor):
    """Waits for a condition in the registry; returns ``{"model_name", "version"}``."""

    template_fields: Sequence[str] = ("model_name", "version", "newer_than")
    ui_color = "#e8f1fb"

    def __init__(
        self,
        *,
        model_name: str,
        version: str | int | None = None,
        newer_than: str | int | None = None,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        poke_interval: float | timedelta = DEFAULT_POLL_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.model_name = model_name
        self.version = version
        self.newer_than = newer_than
        self.mlflow_conn_id = mlflow_conn_id

    def _condition(self) -> RegistryCondition:
        raise NotImplementedError

    def _build(self, awaited: Awaited, key: str = "", value: str | None = None) -> RegistryCondition:
        condition = RegistryCondition(
            model_name=text_of("model_name", self.model_name),
            awaited=awaited,
            key=text_of(awaited.name.lower(), key),
            version=_number(self.version),
            newer_than=_number(self.newer_than),
            value=value,
        )
        condition.interest.checked()
        return condition

    def _trigger(self) -> RegistryTrigger:
        from nighttrain.sensors.triggers import RegistryTrigger

        condition = self._condition()
        self.log.info("Waiting for %s", condition)
        return RegistryTrigger(
            mlflow_conn_id=self.mlflow_conn_id,
            condition=condition.to_dict(),
            poll_seconds=self.poke_interval,
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """One look at the registry."""
        try:
            found = run_sync(self._look())
        except TrackingMisconfiguredError:
            raise
        except TrackingError as error:
            self.log.warning("MLflow cannot be asked now, will look again: %s", error)
            found = None
        if found is None:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value={"model_name": found.name, "version": found.version})

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take over what the trigger saw."""
        self.log.info("%s is version %s", self._condition(), event["version"])
        return event

    async def _look(self) -> ModelVersion | None:
        from nighttrain.providers.registry.models import ModelRegistry
        from nighttrain.providers.tracking.client import MLflowClient

        async with MLflowClient(get_mlflow(self.mlflow_conn_id).config) as client:
            return await self._condition().holder(ModelRegistry(client))


class ModelStageSensor(_RegistrySensor):
    """Waits until a version of a model is in a stage.

    :param model_name: the registered model (templated)
    :param stage: ``Staging``, ``Production`` or ``Archived`` (templated)
    :param version: the version it has to be; any, if left out (templated)
    :param newer_than: only versions with a higher number count (templated)
    :param mlflow_conn_id: the ``mlflow`` connection
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    template_fields: Sequence[str] = (*_RegistrySensor.template_fields, "stage")

    def __init__(self, *, stage: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage

    def _condition(self) -> RegistryCondition:
        return self._build(Awaited.STAGE, self.stage)


class ModelAliasSensor(_RegistrySensor):
    """Waits until an alias of a model points to a version.

    :param model_name: the registered model (templated)
    :param alias: for example ``champion`` (templated)
    :param version: the version it has to be; any, if left out (templated)
    :param newer_than: only versions with a higher number count (templated)
    :param mlflow_conn_id: the ``mlflow`` connection
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    template_fields: Sequence[str] = (*_RegistrySensor.template_fields, "alias")

    def __init__(self, *, alias: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alias = alias

    def _condition(self) -> RegistryCondition:
        return self._build(Awaited.ALIAS, self.alias)


class ModelVersionSensor(_RegistrySensor):
    """Waits until a version of a model is there and READY.

    :param model_name: the registered model (templated)
    :param version: the version it has to be; any, if left out (templated)
    :param newer_than: only versions with a higher number count (templated)
    :param mlflow_conn_id: the ``mlflow`` connection
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    def _condition(self) -> RegistryCondition:
        return self._build(Awaited.VERSION)


class ModelTagSensor(_RegistrySensor):
    """Waits until a version of a model has a tag; of several the highest one counts.

    :param model_name: the registered model (templated)
    :param tag: the tag's key, for example ``nighttrain.verdict`` (templated)
    :param value: the tag's value (templated)
    :param version: the version it has to be; any, if left out (templated)
    :param newer_than: only versions with a higher number count (templated)
    :param mlflow_conn_id: the ``mlflow`` connection
    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    template_fields: Sequence[str] = (*_RegistrySensor.template_fields, "tag", "value")

    def __init__(self, *, tag: str, value: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tag = tag
        self.value = value

    def _condition(self) -> RegistryCondition:
        return self._build(Awaited.TAG, self.tag, text_of("value", self.value))


def _number(value: str | int | None) -> str | None:
    return None if value is None or value == "" else str(value)
