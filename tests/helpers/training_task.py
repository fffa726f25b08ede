"""One task instance of a training, executed here: real operator, real cluster, its XComs in a dict."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from helpers.airflow_connections import connect_mlflow
from helpers.dag_runs import dag_run
from helpers.mlflow_server import unique
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.local.cluster.store.resources import JOBS

if TYPE_CHECKING:
    import pytest

    from nighttrain.providers.local.cluster.server import EmbeddedCluster


class Task:
    """One task instance, with its XComs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str, **options: Any) -> None:
        self._environment = monkeypatch
        self.xcoms: dict[str, str] = {}
        self.ti: Any = SimpleNamespace(
            dag_id=unique("outage"), run_id="r", task_id="train", map_index=-1, try_number=1, max_tries=0
        )
        self.ti.xcom_push = lambda key, value: self.xcoms.update({key: json.dumps(value)})
        self.ti.xcom_pull = lambda key, **_: json.loads(self.xcoms[key])
        self.context: Any = {"ti": self.ti, "dag_run": dag_run(datetime.now(UTC))}
        self.operator = TrainingJobOperator(
            task_id="train", image="py", **{"cmds": ["python", "-S", "-c", code], **options}
        )

    def mlflow_is(self, host: str, **fields: Any) -> None:
        connect_mlflow(self._environment, host, **fields)

    def execute(self) -> dict[str, Any] | None:
        return self.operator.execute(self.context)

    def jobs(self, cluster: EmbeddedCluster) -> list[str]:
        found = cluster.call(lambda store: store.list(JOBS)[0])
        names = [job["metadata"]["annotations"].get("nighttrain.dev/dag-id") for job in found]
        assert any(names) or not found
        return [name for name in names if name == self.ti.dag_id]
