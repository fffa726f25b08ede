"""Runs of MLflow, one at a time: made once though an answer is lost, found, written, closed.

MLflow has no request tokens, so each call that makes a run writes a token of its own, by which the run is
found when the answer was lost.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking.config import PAGE
from nighttrain.providers.tracking.names import MAX_PARAM, MAX_RUN_ID, check_text, fit_run_name
from nighttrain.providers.tracking.runs import (
    CHANGED_PARAMS_TAG,
    OPENING_TAG,
    RUN_KEY_TAG,
    LoggedModel,
    Run,
    RunStatus,
)
from nighttrain.providers.tracking.tags import clean_tags, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import RunKey

CREATE_ATTEMPTS = 3
"""How often a run is created while the answers get lost. Each round already bridges a restart."""

BATCH_PARAMS = 100
BATCH_TAGS = 100
BATCH_METRICS = 1000
"""MLflow's own limits of one log-batch call."""

_UPLOAD = "/ajax-api/2.0/mlflow/upload-artifact"
_PROXY = "/api/2.0/mlflow-artifacts/artifacts/"

T = TypeVar("T")


class RunStore:
    """Makes, finds, writes and closes runs.

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

    async def get(self, run_id: str) -> Run:
        """The run of that id.

        :raises TrackingNotFoundError: no such run
        :raises ConfigurationError: no run can have that id
        """
        check_text("run_id", run_id, MAX_RUN_ID)
        return Run.from_api((await self.client.get("runs/get", {"run_id": run_id}))["run"])

    async def _get_or_none(self, run_id: str) -> Run | None:
        try:
            return await self.get(run_id)
        except TrackingNotFoundError:  # removed for good
            return None

    async def _search(self, experiment_id: str, filter_: str, *, at_most: int | None = None) -> list[Run]:
        """Every run that a filter finds; with ``at_most`` no more than so many of them."""
        asked = {"experiment_ids": [experiment_id], "filter": filter_, "max_results": at_most or PAGE}
        if at_most is None:
            return [Run.from_api(run) for run in await self.client.search("runs", asked)]
        answer = await self.client.post("runs/search", asked)
        return [Run.from_api(run) for run in answer.get("runs", ())]

    async def _tagged(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        found = await self._search(experiment_id, f"tags.`{tag}` = {quoted(value)}")
        # Some databases compare without regard to case.
        return [run for run in found if run.tags.get(tag) == value]

    async def _made_with(self, experiment_id: str, opening: str) -> list[Run]:
        """The runs that one opening made, oldest first."""
        found = await self._tagged(experiment_id, OPENING_TAG, opening)
        return sorted(found, key=lambda run: (run.start_time or 0, run.run_id))

    async def logged_models(self, run: Run) -> list[LoggedModel]:
        """The models this run logged, oldest first, whatever their status."""
        asked = {
            "experiment_ids": [run.experiment_id],
            "filter": f"source_run_id = {quoted(run.run_id)}",
        }
        found = await self.client.search("logged-models", asked, found_as="models")
        models = map(LoggedModel.from_api, found)
        return sorted(models, key=lambda model: (model.created, model.model_id))

    async def _create(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        tags: Mapping[str, object],
        opening: str | None = None,
    ) -> Run:
        """Make one run, and no second one where the answer to the first call is lost."""
        opening = opening or uuid.uuid4().hex
        body = self._new_run(experiment_id, key, fit_run_name(name), opening, tags)
        for attempt in itertools.count(1):
            try:
                answer = await self.client.post("runs/create", body, idempotent=False)
                return Run.from_api(answer["run"])
            except (TrackingUnreachableError, TrackingRequestError) as error:
                status = error.status if isinstance(error, TrackingRequestError) else 0
                if 400 <= status < 500 and status not in (408, 409):
                    raise
                made = await self._made_with(experiment_id, opening)
                if made:
                    return made[0]
                if attempt == CREATE_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")  # pragma: no cover

    def _new_run(
        self, experiment_id: str, key: RunKey, name: str, opening: str, tags: Mapping[str, object]
    ) -> dict[str, Any]:
        cleaned = clean_tags(
            {
                "mlflow.source.name": key.dag_id if key.task_id is None else f"{key.dag_id}.{key.task_id}",
                "mlflow.source.type": "JOB",
                **tags,
                RUN_KEY_TAG: key.value,
                OPENING_TAG: opening,
                "mlflow.runName": name,
            },
            known=self._known_secrets,
        )
        return {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": self._now(),
            "tags": _pairs(cleaned.items()),
        }

    async def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags, redacted and clipped; ``None`` values are left out."""
        cleaned = clean_tags(tags, known=self._known_secrets)
        for part in _parts(list(cleaned.items()), BATCH_TAGS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "tags": _pairs(part)})

    async def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Log params, redacted and clipped. The same value again is fine.

        :raises ConfigurationError: a name that MLflow refuses
        :raises TrackingRequestError: a param that already has another value
        """
        for part in _parts(list(_clean_params(params, self._known_secrets).items()), BATCH_PARAMS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "params": _pairs(part)})

    async def log_missing_params(self, run: Run, params: Mapping[str, object]) -> None:
        """Log the params that the run does not have; those it has with another value go into a tag."""
        wanted = _clean_params(params, self._known_secrets)
        changed = {key: value for key, value in wanted.items() if run.params.get(key, value) != value}
        await self.log_params(
            run.run_id, {key: value for key, value in wanted.items() if key not in run.params}
        )
        if changed:
            await self.set_tags(run.run_id, {CHANGED_PARAMS_TAG: json.dumps(changed, sort_keys=True)})

    async def log_metrics(self, run_id: str, metrics: Sequence[Mapping[str, object]]) -> None:
        """Log points ``{"key", "value", "timestamp", "step"}`` of series; the same again changes nothing."""
        for part in _parts(metrics, BATCH_METRICS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "metrics": list(part)})

    async def put_file(self, run: Run, path: str, content: bytes) -> None:
        """Put a file among the run's artifacts.

        :raises TrackingError: MLflow refuses, or does not answer
        """
        location = urlsplit(run.artifact_uri)
        if location.scheme == "mlflow-artifacts":
            place = "/".join(part for part in (location.path.strip("/"), path) if part)
            await self.client.upload("PUT", _PROXY + quote(place), content)
        else:
            # The server reaches its own store, with credentials that we do not have.
            await self.client.upload("POST", _UPLOAD, content, params={"run_uuid": run.run_id, "path": path})

    async def reopen(self, run_id: str) -> None:
        """Set the run's status to RUNNING, if it is not. One in the trash is left there."""
        run = await self.get(run_id)
        if not run.deleted and (run.status != RunStatus.RUNNING.value or run.end_time is not None):
            # An end time of 0 is how MLflow's REST API spells "none": the field cannot be cleared otherwise.
            await self.client.post(
                "runs/update", {"run_id": run_id, "status": RunStatus.RUNNING.value, "end_time": 0}
            )

    async def close(self, run_id: str, status: RunStatus | str, *, end_time: int | None = None) -> None:
        """Write the final status. The last writer wins: call it after the training process is gone.

        :param end_time: milliseconds since 1970; now, by default
        """
        body = {"run_id": run_id, "status": _status(status).value, "end_time": end_time or self._now()}
        await self.client.post("runs/update", body)

    async def discard(self, run_id: str) -> None:
        """Put a run into the trash that nothing refers to: one whose Job was not created with it, say."""
        await self.client.post("runs/delete", {"run_id": run_id})

    @property
    def _known_secrets(self) -> tuple[str | None, ...]:
        return self.client.config.password, self.client.config.token

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _status(status: RunStatus | str) -> RunStatus:
    try:
        return RunStatus(status)
    except ValueError:
        known = ", ".join(item.value for item in RunStatus)
        raise ConfigurationError("status", status, f"MLflow knows {known}") from None


def _clean_params(params: Mapping[str, object], known: Iterable[str | None] = ()) -> dict[str, str]:
    # The same rules as for tags: a param named "password" is no place for one either.
    return clean_tags(params, limit=MAX_PARAM, field="parameters", known=known)


def _pairs(items: Any) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in items]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
