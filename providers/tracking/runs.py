"""The run tree of a DAG run: one parent, one child for each training task, found again instead of doubled.

MLflow has no request tokens: a run is found by the tag ``nighttrain.run_key`` before one is created and again
afterwards, and of several the oldest is kept. Statuses are written from the workload's outcome, because the
status the training process leaves behind cannot be trusted.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnreachableError,
    clip,
)
from nighttrain.providers.tracking.tags import MAX_PARAM, PREFIX, clean_key, clean_tags, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nighttrain.providers.tracking.client import MLflowClient

RUN_KEY_TAG = f"{PREFIX}run_key"
PARENT_TAG = "mlflow.parentRunId"
OPENED_BY_TAG = f"{PREFIX}opened_by"
OPENED_BY_CONTAINER = "container"
CHANGED_PARAMS_TAG = f"{PREFIX}changed_params"
"""Params that a retry wanted to log with another value: MLflow keeps a param's first value for ever."""

CREATE_ATTEMPTS = 3
"""How often a run is looked for and created while the answers get lost. Each round already bridges a
restart."""

SETTLE_SECONDS = 0.3
"""Before looking who else created the same run: thirty times what a create takes on an idle server, for a
handful of openers that queue up behind one another."""

SETTLE_TIMES = 3.0
"""The same, in terms of our own create: a busy server holds up the others' as well."""

BATCH_METRICS = 1_000
BATCH_PARAMS = 100
BATCH_TAGS = 100
"""MLflow's own limits of one log-batch call."""

T = TypeVar("T")


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
    params: dict[str, str] = field(default_factory=dict)
    artifact_uri: str = ""
    start_time: int | None = None
    end_time: int | None = None

    @classmethod
    def from_api(cls, run: Mapping[str, Any]) -> Run:
        info, data = run.get("info", {}), run.get("data", {})
        return cls(
            run_id=info["run_id"],
            experiment_id=str(info.get("experiment_id", "")),
            name=info.get("run_name", ""),
            status=info.get("status", ""),
            tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", ())},
            metrics={metric["key"]: float(metric.get("value", 0.0)) for metric in data.get("metrics", ())},
            params={param["key"]: param.get("value", "") for param in data.get("params", ())},
            artifact_uri=info.get("artifact_uri", ""),
            start_time=int(info["start_time"]) if info.get("start_time") else None,
            end_time=int(info["end_time"]) if info.get("end_time") else None,
        )


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
        return self.status == "READY"

    @classmethod
    def from_api(cls, model: Mapping[str, Any]) -> LoggedModel:
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
    """Whose run it is. Without ``task_id``: the parent, one for the whole DAG run."""

    orchestrator: str
    dag_id: str
    run_id: str
    task_id: str | None = None
    map_index: int = -1

    @property
    def value(self) -> str:
        """Readable and the same on every retry, with characters only that fit into a filter of MLflow."""
        parts = [self.orchestrator, self.dag_id, self.run_id]
        if self.task_id is not None:
            parts.append(self.task_id)
            if self.map_index >= 0:
                parts.append(str(self.map_index))
        return "/".join(quote(part, safe=":+@ ~=,") for part in parts)

    @property
    def parent(self) -> RunKey:
        return RunKey(orchestrator=self.orchestrator, dag_id=self.dag_id, run_id=self.run_id)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a run or version comes from. Only what is known is written; nothing here may be a secret."""

    orchestrator: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    """The orchestrator's count of tries; several tries may share one attempt."""
    attempt: int | None = None
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


class RunTree:
    """Opens, finds and closes runs.

    :param clock: seconds since 1970; injected in tests
    """

    def __init__(self, client: MLflowClient, *, clock: Callable[[], float] = time.time) -> None:
        self.client = client
        self._clock = clock

    async def ensure_experiment(self, name: str) -> str:
        """The experiment's id; created when missing.

        :raises ConfigurationError: an empty name, or an experiment in MLflow's trash
        """
        if not name.strip():
            raise ConfigurationError("experiment", name, "give the experiment a name")
        try:
            answer = await self.client.get("experiments/get-by-name", {"experiment_name": name})
        except TrackingNotFoundError:
            try:
                created = await self.client.post("experiments/create", {"name": name})
            except TrackingRequestError as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                answer = await self.client.get("experiments/get-by-name", {"experiment_name": name})
            else:
                return str(created["experiment_id"])
        experiment = answer["experiment"]
        if experiment.get("lifecycle_stage") == "deleted":
            raise ConfigurationError(
                "experiment",
                name,
                "it is in MLflow's trash: mlflow experiments restore --experiment-id "
                f"{experiment['experiment_id']}",
            )
        return str(experiment["experiment_id"])

    async def open_parent(
        self, experiment_id: str, identity: RunKey, *, name: str, tags: Mapping[str, object] | None = None
    ) -> Run:
        """The run of the whole DAG run, open. ``identity`` may be that of any of its tasks."""
        return await self._open(experiment_id, identity.parent, name=name, tags=dict(tags or {}))

    async def open_child(
        self,
        parent: Run,
        key: RunKey,
        *,
        name: str,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Run:
        """The run of one task under ``parent``, open; a retry gets the same one.

        :raises ConfigurationError: a key without a task
        """
        if key.task_id is None:
            raise ConfigurationError(
                "task_id", key.value, "a child run belongs to a task: set task_id in its RunKey"
            )
        run = await self._open(
            parent.experiment_id, key, name=name, tags={**(tags or {}), PARENT_TAG: parent.run_id}
        )
        if params:
            await self._log_new_params(run, params)
            run = await self.get(run.run_id)
        return run

    async def close(self, run_id: str, status: RunStatus | str, *, end_time: int | None = None) -> None:
        """Write the final status. The last writer wins: call it after the training process is gone.

        :param end_time: milliseconds since 1970; now, by default
        """
        body = {"run_id": run_id, "status": _status(status).value, "end_time": end_time or self._now()}
        await self.client.post("runs/update", body)

    async def settle_parent(self, parent_run_id: str) -> None:
        """Close the parent run once no child is open: FAILED if a child failed, else KILLED if one was
        killed, else FINISHED. A child that opens later opens it again.
        """
        parent = await self.get(parent_run_id)
        answer = await self.client.post(
            "runs/search",
            {
                "experiment_ids": [parent.experiment_id],
                "filter": f"tags.`{PARENT_TAG}` = {quoted(parent_run_id)}",
                "max_results": 1000,
            },
        )
        statuses = {Run.from_api(run).status for run in answer.get("runs", ())}
        if not statuses or statuses & {RunStatus.RUNNING.value, RunStatus.SCHEDULED.value}:
            return
        worst = (status for status in (RunStatus.FAILED, RunStatus.KILLED) if status.value in statuses)
        await self.close(parent_run_id, next(worst, RunStatus.FINISHED))

    async def get(self, run_id: str) -> Run:
        """:raises TrackingNotFoundError: no such run"""
        return Run.from_api((await self.client.get("runs/get", {"run_id": run_id}))["run"])

    async def find(self, experiment_id: str, key: RunKey) -> Run | None:
        """The oldest run with this key that is not in the trash."""
        return min(
            await self._all(experiment_id, key),
            key=lambda run: (run.start_time or 0, run.run_id),
            default=None,
        )

    async def prefer_container_run(self, experiment_id: str, key: RunKey) -> None:
        """Where a container opened a run of its own, put what was opened for it beside that into the trash.

        It opens one only if it was started without: MLflow did not answer then, and a run that it had made
        all the same, without its answer getting through, is still empty.
        """
        runs = await self._all(experiment_id, key)
        if any(run.tags.get(OPENED_BY_TAG) == OPENED_BY_CONTAINER for run in runs):
            for run in runs:
                if OPENED_BY_TAG not in run.tags:
                    await self.client.post("runs/delete", {"run_id": run.run_id})

    async def _all(self, experiment_id: str, key: RunKey) -> list[Run]:
        wanted = quoted(key.value)
        answer = await self.client.post(
            "runs/search",
            {
                "experiment_ids": [experiment_id],
                "filter": f"tags.`{RUN_KEY_TAG}` = {wanted}",
                "order_by": ["attributes.start_time ASC"],
                "max_results": 100,
            },
        )
        runs = [Run.from_api(run) for run in answer.get("runs", ())]
        # Some databases compare without regard to case.
        return [run for run in runs if run.tags.get(RUN_KEY_TAG) == key.value]

    async def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags, redacted and clipped; ``None`` values are left out."""
        for part in _parts(list(clean_tags(tags).items()), BATCH_TAGS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "tags": _pairs(part)})

    async def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Log params, redacted and clipped. The same value again is fine.

        :raises TrackingRequestError: a param that already has another value
        """
        for part in _parts(list(_clean_params(params).items()), BATCH_PARAMS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "params": _pairs(part)})

    async def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics at one step. Not-a-number and infinities are sent in the form MLflow takes."""
        now = self._now()
        entries = [
            {"key": clean_key(key), "value": _number(value), "timestamp": now, "step": step}
            for key, value in metrics.items()
        ]
        for part in _parts(entries, BATCH_METRICS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "metrics": list(part)})

    async def logged_models(self, run: Run) -> list[LoggedModel]:
        """The models this run logged, oldest first, whatever their status."""
        found: list[LoggedModel] = []
        token: str | None = None
        while True:
            answer = await self.client.post(
                "logged-models/search",
                {
                    "experiment_ids": [run.experiment_id],
                    "filter": f"source_run_id = {quoted(run.run_id)}",
                    "page_token": token,
                },
            )
            found += [LoggedModel.from_api(model) for model in answer.get("models", ())]
            token = answer.get("next_page_token")
            if not token:
                return sorted(found, key=lambda model: (model.created, model.model_id))

    async def _open(self, experiment_id: str, key: RunKey, *, name: str, tags: dict[str, object]) -> Run:
        tags = {
            "mlflow.source.name": key.dag_id if key.task_id is None else f"{key.dag_id}.{key.task_id}",
            "mlflow.source.type": "JOB",
            **tags,
            RUN_KEY_TAG: key.value,
            "mlflow.runName": name,
        }
        run = await self.find(experiment_id, key)
        if run is None:
            return await self._create(experiment_id, key, name=name, tags=clean_tags(tags))
        return await self._reopen(run, clean_tags(tags))

    async def _create(self, experiment_id: str, key: RunKey, *, name: str, tags: dict[str, str]) -> Run:
        """Create, then look again: an answer may have been lost, or another worker may have been faster."""
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": self._now(),
            "tags": _pairs(tags.items()),
        }
        created: Run | None = None
        asked = time.monotonic()
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                answer = await self.client.post("runs/create", body, idempotent=False)
                created = Run.from_api(answer["run"])
            except (TrackingUnreachableError, TrackingRequestError) as error:
                if isinstance(error, TrackingRequestError) and error.status < 500 and error.status != 408:
                    raise
                run = await self.find(experiment_id, key)
                if run is not None:
                    return run
                if attempt == CREATE_ATTEMPTS:
                    raise
                continue
            break
        # One that began earlier than ours may be stored later. It takes about as long as ours took.
        await asyncio.sleep(max(SETTLE_SECONDS, SETTLE_TIMES * (time.monotonic() - asked)))
        if created is None:
            raise AssertionError("unreachable")  # pragma: no cover
        try:
            run = await self.find(experiment_id, key)
        except TrackingUnreachableError:
            return created  # it exists: to say otherwise would make the container open another beside it
        if run is None or run.run_id == created.run_id:
            return run or await self.get(created.run_id)
        # Somebody was faster: ours is the double. MLflow keeps it in the trash.
        await self.client.post("runs/delete", {"run_id": created.run_id})
        return run

    async def _reopen(self, run: Run, tags: dict[str, str]) -> Run:
        changed = {key: value for key, value in tags.items() if run.tags.get(key) != value}
        if changed:
            await self.set_tags(run.run_id, changed)
        if run.status != RunStatus.RUNNING.value or run.end_time is not None:
            # An end time of 0 is how MLflow's REST API spells "none": the field cannot be cleared otherwise.
            await self.client.post(
                "runs/update", {"run_id": run.run_id, "status": RunStatus.RUNNING.value, "end_time": 0}
            )
            return await self.get(run.run_id)
        return await self.get(run.run_id) if changed else run

    async def _log_new_params(self, run: Run, params: Mapping[str, object]) -> None:
        wanted = _clean_params(params)
        changed = {key: value for key, value in wanted.items() if run.params.get(key, value) != value}
        await self.log_params(
            run.run_id, {key: value for key, value in wanted.items() if key not in run.params}
        )
        if changed:
            await self.set_tags(run.run_id, {CHANGED_PARAMS_TAG: json.dumps(changed, sort_keys=True)})

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _status(status: RunStatus | str) -> RunStatus:
    try:
        return RunStatus(status)
    except ValueError:
        known = ", ".join(item.value for item in RunStatus)
        raise ConfigurationError("status", status, f"MLflow knows {known}") from None


def _clean_params(params: Mapping[str, object]) -> dict[str, str]:
    # The same rules as for tags: a param named "password" is no place for one either.
    return {key: clip(value, MAX_PARAM) for key, value in clean_tags(params).items()}


def _pairs(items: Any) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in items]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _number(value: float) -> float | str:
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


__all__ = [
    "CHANGED_PARAMS_TAG",
    "PARENT_TAG",
    "RUN_KEY_TAG",
    "Lineage",
    "LoggedModel",
    "Run",
    "RunKey",
    "RunStatus",
    "RunTree",
]
