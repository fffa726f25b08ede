"""Runs as MLflow reports them, their owner and their origin: plain values, and the tags that hold them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nighttrain.providers import measured
from nighttrain.providers.tracking.names import fit_key
from nighttrain.providers.tracking.tags import PREFIX, clean_tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RUN_KEY_TAG = f"{PREFIX}run_key"
"""Whose run it is: the same for all attempts of a task."""

RUN_NUMBER_TAG = f"{PREFIX}run_number"
"""How many runs the task has had up to this one."""

OPENING_TAG = f"{PREFIX}opening"
"""A token of the call that made the run, and of what a container that got no run opened instead."""

PREVIOUS_TAG = f"{PREFIX}previous_run"
SUPERSEDED_TAG = f"{PREFIX}superseded_by"
EPOCH_TAG = f"{PREFIX}epoch"
PARENT_TAG = "mlflow.parentRunId"
JOB_UID_TAG = f"{PREFIX}job_uid"
OPENED_BY_TAG = f"{PREFIX}opened_by"
OPENED_BY_CONTAINER = "container"
CHANGED_PARAMS_TAG = f"{PREFIX}changed_params"
"""Params that the training had logged with another value: MLflow keeps a param's first value for ever."""

_OF_THE_RUN = frozenset(
    {OPENING_TAG, EPOCH_TAG, OPENED_BY_TAG, PREVIOUS_TAG, SUPERSEDED_TAG, CHANGED_PARAMS_TAG}
)
"""Tags that say how a run was opened, and what came before it and after it."""


COMMIT_VARIABLES = ("NIGHTTRAIN_COMMIT", "GIT_COMMIT", "GIT_SHA")
"""Of an orchestrator's environment; the first that is set names the commit of its code."""


class RunStatus(StrEnum):
    """MLflow's statuses. The server ignores any other word without an error, so only these are ever sent."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    SCHEDULED = "SCHEDULED"


@dataclass(frozen=True)
class Run:
    """A run as MLflow reports it. Times are milliseconds since 1970; ``end_time`` is ``None`` while it is
    open."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """As logged: also NaN and infinities, whatever the store made of them."""
    params: dict[str, str] = field(default_factory=dict)
    artifact_uri: str = ""
    start_time: int | None = None
    end_time: int | None = None
    deleted: bool = False
    """It is in MLflow's trash: it can be read, and takes no writes before it is restored."""
    datasets: tuple[str, ...] = ()
    """The names of the data sets that are its inputs."""

    @classmethod
    def from_api(cls, run: Mapping[str, Any]) -> Run:
        """Read MLflow's JSON."""
        info, data = run.get("info", {}), run.get("data", {})
        return cls(
            run_id=info["run_id"],
            experiment_id=str(info.get("experiment_id", "")),
            name=info.get("run_name", ""),
            status=info.get("status", ""),
            tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", ())},
            metrics=_metrics(data.get("metrics", ())),
            params={param["key"]: param.get("value", "") for param in data.get("params", ())},
            artifact_uri=info.get("artifact_uri", ""),
            start_time=int(info["start_time"]) if info.get("start_time") else None,
            end_time=int(info["end_time"]) if info.get("end_time") else None,
            deleted=info.get("lifecycle_stage") == "deleted",
            datasets=_datasets(run.get("inputs", {})),
        )

    @property
    def number(self) -> int:
        """Its number among its task's runs, counting those that had a Job.

        0 for one that a container opened, until the attempt's end.
        """
        given = self.tags.get(RUN_NUMBER_TAG, "")
        return int(given) if given.isascii() and given.isdigit() else 0

    @property
    def had_job(self) -> bool:
        """True if a container was started with it, or opened it."""
        return JOB_UID_TAG in self.tags or OPENED_BY_TAG in self.tags

    @property
    def is_open(self) -> bool:
        """True while its status says that it goes on."""
        return self.status in (RunStatus.RUNNING.value, RunStatus.SCHEDULED.value)


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run logged (MLflow 3). ``status`` is PENDING, READY or UPLOAD_FAILED.

    Without a ``model_id`` it is a folder of the run's files, at ``path``.
    """

    model_id: str
    name: str
    status: str
    source: str
    created: int = 0
    run_id: str = ""
    path: str | None = None

    @property
    def ready(self) -> bool:
        """True once its upload has ended well."""
        return self.status == "READY"

    @classmethod
    def from_api(cls, model: Mapping[str, Any]) -> LoggedModel:
        """Read MLflow's JSON."""
        info = model.get("info", {})
        model_id = info["model_id"]
        return cls(
            model_id=model_id,
            name=info.get("name", ""),
            status=str(info.get("status", "")).removeprefix("LOGGED_MODEL_"),
            source=f"models:/{model_id}",
            created=int(info.get("creation_timestamp_ms", 0)),
            run_id=info.get("source_run_id", ""),
        )


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """The owner of a run. Without ``task_id``: the parent, one for the whole DAG run."""

    orchestrator: str
    dag_id: str
    run_id: str
    task_id: str | None = None
    map_index: int = -1
    region: str = ""

    @property
    def value(self) -> str:
        """Readable and the same on every retry, with characters only that fit into a filter of MLflow."""
        parts = [self.orchestrator, self.dag_id, self.run_id]
        if self.task_id is not None:
            parts.append(self.task_id)
            if self.map_index >= 0:
                parts.append(str(self.map_index))
            if self.region:
                parts.append(self.region)
        return fit_key("/".join(quote(part, safe=":+@ ~=,") for part in parts))

    @property
    def parent(self) -> RunKey:
        """The key of the whole DAG run."""
        return RunKey(orchestrator=self.orchestrator, dag_id=self.dag_id, run_id=self.run_id)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The origin of a run or version. Only what is known is written; nothing here may be a secret."""

    orchestrator: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    region: str | None = None
    """The iteration of a loop, in the orchestrator's words."""
    try_number: int | None = None
    """The orchestrator's count of tries; several tries may share one attempt."""
    attempt: int | None = None
    cluster: str | None = None
    """The API server's address."""
    namespace: str | None = None
    job_name: str | None = None
    job_uid: str | None = None
    pod_name: str | None = None
    pod_uid: str | None = None
    image: str | None = None
    image_digest: str | None = None
    """As the node reports it: what ran, not what was asked for."""
    outcome: str | None = None
    commit: str | None = None
    data_interval_start: str | None = None
    data_interval_end: str | None = None

    def tags(self) -> dict[str, str]:
        """``nighttrain.<field>`` for every known field; the commit also where MLflow's page shows it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tags: dict[str, object] = {
            f"{PREFIX}{name}": value for name, value in values.items() if value not in (None, "")
        }
        if self.map_index is not None and self.map_index < 0:
            tags.pop(f"{PREFIX}map_index")
        if self.commit:
            tags["mlflow.source.git.commit"] = self.commit
        return clean_tags(tags)


def commit_of_environment() -> str | None:
    """The commit that this process's environment names, if it does."""
    return next((os.environ[name] for name in COMMIT_VARIABLES if os.environ.get(name)), None)


def inherited(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that its model's version takes over: those that say where it comes from."""
    return {name: tags[name] for name in tags if name.startswith(PREFIX) and name not in _OF_THE_RUN}


def _datasets(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(given.get("dataset", {}).get("name", "")) for given in inputs.get("dataset_inputs", ()))


def _metrics(answered: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    values = {metric["key"]: measured.to_float(metric.get("value")) for metric in answered}
    return {key: value for key, value in values.items() if value is not None}
