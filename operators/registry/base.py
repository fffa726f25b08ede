"""What every task at the model registry has: its connection, its link, its templates."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.operators.links import ModelVersionLink, remember_links
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, get_mlflow
from nighttrain.sensors.common.templating import TextTemplates

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class RegistryOperator(TextTemplates):
    """An operator that speaks to MLflow and finishes in the worker: a handful of requests."""

    operator_extra_links: Collection[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#e8f1fb"
    text_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID, **kwargs: Any) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id

    def _connect(self) -> None:
        """Read the connection, before any event loop runs."""
        as_texts(self, *self.text_fields)
        self._mlflow = get_mlflow(self.mlflow_conn_id)

    def _link(self, context: Context, model_name: str, version: str) -> None:
        remember_links(context, version=self._mlflow.version_url(model_name, version))
