"""The base of every sensor here: it looks once, then waits in the triggerer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowSkipException

from nighttrain.providers.errors import NighttrainError
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.templating import TextTemplates
from nighttrain.sensors.common.triggerer_health import warn_without_triggerer

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger


class DeferringSensor(TextTemplates, BaseSensorOperator):
    """A sensor that needs no triggerer when what it waits for is there already, or ``deferrable`` is False.

    :param deferrable: wait in the triggerer (the default) or in the worker
    """

    def __init__(self, *, deferrable: bool = True, **kwargs: Any) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def _trigger(self) -> BaseTrigger:
        """The trigger that waits, made once the templates are rendered."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        with failing_clearly():
            if not self.deferrable:
                return super().execute(context)
            now = self.poke(context)
            if isinstance(now, PokeReturnValue) and now.is_done:
                return now.xcom_value
            trigger = self._trigger()
        warn_without_triggerer(self.log.warning)
        return self.defer(
            trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=self.timeout)
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow does, which takes only errors of its own for failures that ``soft_fail`` skips."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except NighttrainError as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
