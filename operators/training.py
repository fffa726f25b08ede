"""Training and evaluation as tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.links import (
    EvaluationPlotLink,
    MLflowRunLink,
    ModelVersionLink,
    WorkloadLink,
    remember_links,
)
from nighttrain.operators.workload import Prepared, WorkloadOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.sensors.common.connections import get_mlflow
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.attempts.attempt import Attempt
    from nighttrain.providers.registry.gates.evaluation import Contestants
    from nighttrain.sensors.common.connections import MLflowConnection


class TrainingJobOperator(WorkloadOperator):
    """Trains a model in a Kubernetes Job, under a run in MLflow.

    The container finds ``MLFLOW_TRACKING_URI``, ``MLFLOW_RUN_ID`` and ``MLFLOW_EXPERIMENT_ID`` in its
    environment, so plain ``mlflow.start_run()`` and ``mlflow.<flavour>.log_model(...)`` write to the task's
    run. Returns ``{"run_id", "experiment_id", "parent_run_id", "job", "attempt", "image", "image_id",
    "models", "metrics"}``; ``models`` lists what the run logged: ``[{"model_id", "name", "status"}]``, and
    ``metrics`` has the last value of each of its metrics.

    Takes every parameter of :class:`WorkloadOperator`, and:

    :param parameters: recorded as the run's parameters before the container starts (templated). Names are
        recorded as they are; one that MLflow refuses fails the task before anything is made
    """

    template_fields: Sequence[str] = (*WorkloadOperator.template_fields, "parameters")
    ui_color = "#dff3e4"

    def __init__(self, *, parameters: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parameters = parameters

    def _prepare(self, context: Context) -> Prepared:
        return Prepared(params=self._recorded(self.parameters))

    def _recorded(self, parameters: Any) -> dict[str, str]:
        """Parameters as they go to MLflow. :raises ConfigurationError: a name or value that does not fit"""
        from nighttrain.providers.tracking.names import read_params

        return task_context.without_secrets(read_params(parameters))

    async def _collect(self, attempt: Attempt, facts: dict[str, Any]) -> dict[str, Any]:
        from nighttrain.providers.measured import final_metrics

        run = await attempt.trained_run()
        models = await attempt.logged_models()
        return {
            "models": [{"model_id": m.model_id, "name": m.name, "status": m.status} for m in models],
            "metrics": final_metrics(run.metrics if run else {}),
        }

    def _given_parameters(self) -> Mapping[str, Any]:
        return self.parameters if isinstance(self.parameters, Mapping) else {}


class EvaluateModelOperator(WorkloadOperator):
    """Scores a candidate version and the champion on the same held-out data, in one Job.

    The container finds ``CANDIDATE_MODEL_URI`` and, where there is a champion, ``CHAMPION_MODEL_URI`` in its
    environment, both pinned to a version, and logs metrics named ``candidate.<metric>`` and
    ``champion.<metric>`` to its run. Returns what :class:`TrainingJobOperator` returns, with ``model_name``,
    ``version``, ``champion_version``, ``compared_versions`` and ``measurements``: ``{"candidate": {...},
    "champion": {...}}`` in the place of ``models`` and ``metrics``; any other prefix (``baseline.<metric>``)
    becomes a group of its own.

    Takes every parameter of :class:`WorkloadOperator`, and:

    :param model_name: the registered model (templated)
    :param version: the candidate's version (templated)
    :param champion_alias: the alias of the version to compare with (templated). No such alias, or an alias on
        the candidate itself: there is no champion yet
    :param compare_with: further versions to score, such as ``["version:12", "alias:last-good"]`` (templated);
        the container finds them in ``COMPARED_MODEL_URIS``, a JSON object of groups and pinned addresses
    :param checks: dotted paths of functions of your own, which the scoring code calls (templated); the
        container finds them in ``GATE_CHECKS``, a JSON list
    """

    template_fields: Sequence[str] = (
        *WorkloadOperator.template_fields,
        "model_name",
        "version",
        "champion_alias",
        "compare_with",
        "checks",
    )
    text_fields = (*WorkloadOperator.text_fields, "model_name", "version", "champion_alias")
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {
        **WorkloadOperator.structured_fields,
        "compare_with": list,
        "checks": list,
    }
    operator_extra_links: Collection[BaseOperatorLink] = (
        MLflowRunLink(),
        ModelVersionLink(),
        EvaluationPlotLink(),
        WorkloadLink(),
    )
    ui_color = "#dff3e4"

    def __init__(
        self,
        *,
        model_name: str,
        version: str,
        champion_alias: str = "champion",
        compare_with: Sequence[str] = (),
        checks: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.version = version
        self.champion_alias = champion_alias
        self.compare_with = compare_with
        self.checks = checks

    def _prepare(self, context: Context) -> Prepared:
        mlflow = get_mlflow(self.mlflow_conn_id)
        from nighttrain.providers.registry.gates.evaluation import check_checks

        with failing_clearly():
            checks = check_checks(self.checks)
            found = run_sync(self._look_up(mlflow))
        remember_links(context, version=mlflow.version_url(self.model_name, found.candidate.version))
        return Prepared(found.environment(checks), found.params(), found.facts())

    async def _look_up(self, mlflow: MLflowConnection) -> Contestants:
        from nighttrain.providers.registry.gates.evaluation import find_contestants

        async with open_registry(mlflow) as registry:
            return await find_contestants(
                registry,
                self.model_name,
                str(self.version),
                champion_alias=self.champion_alias,
                compare_with=self.compare_with,
            )

    def _run_links(self, mlflow: MLflowConnection, experiment_id: str, run_id: str) -> dict[str, str]:
        from nighttrain.providers.registry.gates.evaluation import PLOT_FILE

        plot = mlflow.artifact_url(experiment_id, run_id, PLOT_FILE)
        return {**super()._run_links(mlflow, experiment_id, run_id), "plot": plot}

    async def _collect(self, attempt: Attempt, facts: dict[str, Any]) -> dict[str, Any]:
        from nighttrain.providers.registry.gates.evaluation import group_measurements

        run = await attempt.logged_run()
        return {
            "model_name": self.model_name,
            "champion_alias": self.champion_alias,
            **facts,
            "measurements": group_measurements(run.metrics),
        }
