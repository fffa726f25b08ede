"""The best of several trainings, as a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nighttrain.operators.common.clients import open_registry
from nighttrain.operators.links import MLflowRunLink, remember_links
from nighttrain.operators.registry.base import RegistryOperator
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.sensors.common.failures import failing_clearly

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.tracking.runs import Run


class SelectBestModelOperator(RegistryOperator):
    """Picks the best of several trainings by a metric of their runs.

    Returns ``{"run_id", "metric", "value", "index", "candidates", "missing", "ties", "experiment_id"}``:
    ``RegisterModelOperator(run_id=select.output["run_id"])`` registers it. Of several with the best value the
    first counts, and the log and ``ties`` name them; those without a number (not logged, NaN, infinite,
    skipped) are left out, and the log and ``missing`` name them and why. Where none has a number the task
    fails.

    :param results: what the trainings returned, usually ``train.output`` of a mapped task (templated)
    :param metric: the metric's name (templated)
    :param mode: ``"min"`` (the default) or ``"max"`` (templated)
    :param mlflow_conn_id: connection of type ``mlflow``, asked for results that carry no metrics
    """

    template_fields: Sequence[str] = ("results", "metric", "mode")
    native_fields = frozenset({"results"})
    text_fields = ("metric", "mode")
    operator_extra_links: Collection[BaseOperatorLink] = (MLflowRunLink(),)

    def __init__(self, *, results: Any, metric: str, mode: str = "min", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if "{{" not in str(mode):
            _check_mode(mode)
        self.results = results
        self.metric = metric
        self.mode = mode

    def execute(self, context: Context) -> dict[str, Any]:
        from nighttrain.providers.registry.selection import select_best

        with failing_clearly():
            self._connect()
            results = run_sync(self._with_metrics(_listed(self.results)))
            selection = select_best(results, self.metric, self.mode)
            self.log.info("%s", selection.explain())
            experiment_id = _experiment_of(results, selection.best.run_id)
        if experiment_id:
            remember_links(context, run=self._mlflow.run_url(experiment_id, selection.best.run_id))
        return {**selection.to_dict(), "experiment_id": experiment_id}

    async def _with_metrics(self, results: list[Any]) -> list[Any]:
        """MLflow is asked for what a result does not carry: one of another operator, say."""
        if all(not _names_a_run(each) or "metrics" in each for each in results):
            return results
        async with open_registry(self._mlflow) as registry:
            return [
                await _asked(registry, each) if _names_a_run(each) and "metrics" not in each else each
                for each in results
            ]


async def _asked(registry: ModelRegistry, result: Mapping[str, Any]) -> dict[str, Any]:
    from nighttrain.providers.errors import TrackingNotFoundError
    from nighttrain.providers.measured import final_metrics
    from nighttrain.providers.tracking.run_tree import RunTree

    try:
        run: Run = await RunTree(registry.client).get(str(result["run_id"]))
    except TrackingNotFoundError:
        return {**result, "metrics": {}}
    return {**result, "experiment_id": run.experiment_id, "metrics": final_metrics(run.metrics)}


def _listed(results: Any) -> list[Any]:
    """A mapped task's results come as a sequence that is read on demand; one training's as a mapping."""
    if isinstance(results, Mapping):
        return [results]
    if results is None or isinstance(results, str | bytes) or not isinstance(results, Iterable):
        raise ConfigurationError(
            "results", results, "give the outputs of the trainings, such as train.output of a mapped task"
        )
    return list(results)


def _names_a_run(result: Any) -> bool:
    return isinstance(result, Mapping) and bool(result.get("run_id"))


def _experiment_of(results: list[Any], run_id: str) -> str:
    of_run = (each for each in results if _names_a_run(each) and str(each["run_id"]) == run_id)
    return str(next(of_run).get("experiment_id") or "")


def _check_mode(mode: str) -> None:
    from nighttrain.providers.registry.selection import check_mode

    check_mode(mode)
