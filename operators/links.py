"""Links from a task's page to the run, the version, the workload and the endpoint.

A link is computed in the task's process, also when it defers or has been resumed by another process: so the
addresses are kept in an XCom, and read from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

XCOM_PREFIX = "nighttrain_link_"


def remember_links(context: Context, **links: str) -> None:
    """Keep the addresses that the task's links show; the names are those of the links' ``kind``."""
    for kind, url in links.items():
        context["ti"].xcom_push(key=XCOM_PREFIX + kind, value=url)


class _RememberedLink(BaseOperatorLink):
    kind = ""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The remembered address, or an empty string where there is none yet."""
        url = ti_key.xcom_pull(
            task_ids=ti_key.task_id, map_indexes=ti_key.map_index, key=XCOM_PREFIX + self.kind
        )
        return str(url or "")


class MLflowRunLink(_RememberedLink):
    """The task's run in MLflow."""

    name = "MLflow run"
    kind = "run"


class ModelVersionLink(_RememberedLink):
    """The model version in MLflow's registry."""

    name = "Model version"
    kind = "version"


class EvaluationPlotLink(_RememberedLink):
    """The picture of an evaluation, in MLflow's page of the run's artifacts."""

    name = "Evaluation plot"
    kind = "plot"


class RolloutPictureLink(_RememberedLink):
    """The picture of a rollout in steps, in MLflow's page of the rollout's run; there once it has ended."""

    name = "Rollout picture"
    kind = "rollout"


class WorkloadLink(_RememberedLink):
    """The Job on the cluster."""

    name = "Workload"
    kind = "workload"


class EndpointLink(_RememberedLink):
    """The endpoint that serves the version."""

    name = "Endpoint"
    kind = "endpoint"
