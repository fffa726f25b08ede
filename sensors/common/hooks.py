"""The hook behind the ``mlflow`` connection type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import NighttrainError
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, MLflowConnection, get_mlflow

if TYPE_CHECKING:
    from nighttrain.providers.tracking.client import MLflowClient


class MLflowHook(BaseHook):
    """Gives an async REST client for an ``mlflow`` connection.

    :param mlflow_conn_id: the connection's id
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = DEFAULT_MLFLOW_CONN_ID
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id

    @property
    def connection(self) -> MLflowConnection:
        """The addresses and credentials of the connection."""
        return get_mlflow(self.mlflow_conn_id)

    def get_conn(self) -> MLflowClient:
        """A client to use as ``async with hook.get_conn() as client``."""
        from nighttrain.providers.tracking.client import MLflowClient

        return MLflowClient(self.connection.config)

    def test_connection(self) -> tuple[bool, str]:
        """Ask MLflow for its experiments with the connection's credentials."""
        try:
            run_sync(self._ping())
        except NighttrainError as error:
            return False, str(error)
        return True, f"MLflow answers at {self.connection.config.uri}"

    async def _ping(self) -> None:
        async with self.get_conn() as client:
            await client.ping()
