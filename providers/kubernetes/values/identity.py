"""The identity of a task in a run: the name, labels and annotations of an attempt derive from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.names import label_value, slug

PREFIX = "nighttrain.dev/"
ATTEMPT_KEY_LABEL = PREFIX + "attempt-key"
ATTEMPT_LABEL = PREFIX + "attempt"
DAG_LABEL = PREFIX + "dag-id"
TASK_LABEL = PREFIX + "task-id"
ORCHESTRATOR_ANNOTATION = PREFIX + "orchestrator"
DAG_ANNOTATION = PREFIX + "dag-id"
RUN_ANNOTATION = PREFIX + "run-id"
TASK_ANNOTATION = PREFIX + "task-id"
MAP_INDEX_ANNOTATION = PREFIX + "map-index"
REGION_ANNOTATION = PREFIX + "region"
SPEC_HASH_ANNOTATION = PREFIX + "spec-hash"
CONSUMED_ANNOTATION = PREFIX + "consumed"
ADOPTED_ANNOTATION = PREFIX + "adopted"
EPOCH_ANNOTATION = PREFIX + "epoch"
INFRASTRUCTURE_ANNOTATION = PREFIX + "infrastructure-failures"
MEMORY_ANNOTATION = PREFIX + "memory"
# On pods: which container decides. Nobody's injector rewrites it.
MAIN_CONTAINER_ANNOTATION = PREFIX + "main-container"
# On workloads: how the attempt ended, where the object's own status would tell it otherwise.
OUTCOME_ANNOTATION = PREFIX + "outcome"
# What the pod of a workload is about to be deleted for.
GIVEN_UP_ANNOTATION = PREFIX + "given-up"
# A pod's name adds six characters to its Job's, and other controllers that run Jobs add up to five:
# 52 keeps all of them inside the 63 of a DNS label.
NAME_LENGTH = 52


@dataclass(frozen=True, kw_only=True)
class WorkloadIdentity:
    """One task of one run, as its orchestrator names it.

    :param orchestrator: ``airflow`` or ``dagster``
    :param map_index: the index of a mapped task; -1 for one that is not mapped
    :param region: the iteration of a loop, in the orchestrator's words; empty outside of one
    """

    orchestrator: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    region: str = ""

    def __post_init__(self) -> None:
        for field in ("orchestrator", "dag_id", "run_id", "task_id"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise ConfigurationError(field, value, "an identity needs a non-empty string here")

    @property
    def key(self) -> str:
        """Ten hexadecimal digits that stand for this identity in names and labels."""
        fields = [self.orchestrator, self.dag_id, self.run_id, self.task_id, self.map_index]
        if self.region:  # left out where there is none: Jobs from before there were regions keep their names
            fields.append(self.region)
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:10]

    def name(self, attempt: int) -> str:
        """The Job's name: readable, valid, the same on every call."""
        suffix = f"{self.key}-{attempt}"
        room = NAME_LENGTH - len(suffix) - 2
        dag, task = slug(self.dag_id) or "dag", slug(self.task_id) or "task"
        task = task[: max(room // 2, room - len(dag))].strip("-")
        dag = dag[: room - len(task)].strip("-")
        return f"{dag}-{task}-{suffix}"

    def labels(self, attempt: int) -> dict[str, str]:
        """The labels for selectors; long or unusual names are clipped here, and whole in the annotations."""
        return {
            ATTEMPT_KEY_LABEL: self.key,
            ATTEMPT_LABEL: str(attempt),
            DAG_LABEL: label_value(self.dag_id),
            TASK_LABEL: label_value(self.task_id),
        }

    def annotations(self) -> dict[str, str]:
        """The identity in full, by which an adopted workload is verified."""
        written = {
            ORCHESTRATOR_ANNOTATION: self.orchestrator,
            DAG_ANNOTATION: self.dag_id,
            RUN_ANNOTATION: self.run_id,
            TASK_ANNOTATION: self.task_id,
            MAP_INDEX_ANNOTATION: str(self.map_index),
        }
        if self.region:
            written[REGION_ANNOTATION] = self.region
        return written
