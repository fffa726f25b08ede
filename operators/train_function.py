"""``@task.train``: a function in the DAG file is the training code."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory
from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS
from airflow.sdk.execution_time.lazy_sequence import LazyXComSequence

from nighttrain.operators.training import TrainingJobOperator
from nighttrain.operators.workload import Prepared
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job import shipped_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow.sdk import Context

    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.sensors.common.connections import ClusterConnection, MLflowConnection

# A longer text is data rather than something to compare runs by. It was MLflow's own limit for many years.
MAX_PARAMETER_LENGTH = 500


class _TrainDecoratedOperator(DecoratedOperator, TrainingJobOperator):
    """Runs a function's source in a Kubernetes Job, under a run in MLflow.

    :param python_callable: the function
    :param op_args: its positional arguments (templated)
    :param op_kwargs: its keyword arguments (templated)
    """

    custom_operator_name = "@task.train"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *TrainingJobOperator.template_fields,
    )
    # The function's arguments are what Airflow makes of them for any function.
    native_fields = frozenset(DecoratedOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **TrainingJobOperator.template_fields_renderers,
    }

    def __init__(self, *, cmds: list[str] | str | None = None, **kwargs: Any) -> None:
        super().__init__(cmds=cmds or ["python", f"/nighttrain/{shipped_code.SOURCE_FILE}"], **kwargs)

    def execute(self, context: Context) -> dict[str, Any] | None:
        return TrainingJobOperator.execute(self, context)

    def _prepare(self, context: Context) -> Prepared:
        if self.parameters is not None:
            return super()._prepare(context)
        return Prepared(params=self._recorded(self._scalars()))

    def _given_parameters(self) -> Mapping[str, Any]:
        return super()._given_parameters() if self.parameters is not None else self._scalars()

    def _scalars(self) -> dict[str, Any]:
        """The arguments to compare runs by, also those that were left at their defaults."""
        args, kwargs = self._arguments()
        arguments = shipped_code.bind(self.python_callable, args, kwargs, defaults=True)
        return {
            name: value
            for name, value in arguments.items()
            if isinstance(value, str | int | float) and len(str(value)) <= MAX_PARAMETER_LENGTH
        }

    def _spec(
        self, environment: Mapping[str, str], cluster: ClusterConnection, mlflow: MLflowConnection
    ) -> WorkloadSpec:
        args, kwargs = self._arguments()
        files = shipped_code.ship(self.python_callable, args, kwargs)
        spec = super()._spec(environment, cluster, mlflow)
        return replace(spec, files={**(spec.files or {}), **files})

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        return (
            [_read(value) for value in self.op_args],
            {name: _read(value) for name, value in self.op_kwargs.items()},
        )


def _read(value: Any) -> Any:
    """The results of a mapped task come as a sequence that is read on demand."""
    return list(value) if isinstance(value, LazyXComSequence) else value


def train_task(
    python_callable: Callable[..., Any] | None = None, *, multiple_outputs: bool = True, **kwargs: Any
) -> TaskDecorator:
    """Make a function the training code of a task: ``@task.train(image=...)``.

    The function's source and its arguments go to the pod; nothing of the DAG file around it does. It takes
    every parameter of :class:`TrainingJobOperator`, and returns what that returns: results go to MLflow, and
    what the function returns is not used. ``decorated.function(...)`` runs it here.

    :param python_callable: the function
    :param multiple_outputs: each key of the result is an XCom of its own
    :raises ConfigurationError: while the DAG is parsed: the function needs more than its own source
    """

    def decorate(function: Callable[..., Any]) -> TaskDecorator:
        _check(function)
        return task_decorator_factory(
            function,
            multiple_outputs=multiple_outputs,
            decorated_operator_class=_TrainDecoratedOperator,
            **kwargs,
        )

    return decorate(python_callable) if python_callable is not None else decorate  # type: ignore[return-value]


def _check(function: Callable[..., Any]) -> None:
    shipped_code.source_of(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in KNOWN_CONTEXT_KEYS:
            raise ConfigurationError(
                f"parameter {name}",
                None if parameter.default is parameter.empty else parameter.default,
                "Airflow's context does not reach the pod: name it otherwise, and pass a template such as "
                "'{{ ds }}'",
            )
