"""The run tree of a DAG run: one parent, and under it a run for each attempt of each task.

The parent is elected (see :mod:`~nighttrain.providers.tracking.election`). Which run is an attempt's is
decided by the cluster: it is the one that the attempt's Job was created with. MLflow has no request tokens,
so each call that makes a run writes a token of its own, by which the run is found when the answer was lost.
Statuses are written from the workload's outcome, because the status the training process leaves behind cannot
be trusted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingTrashError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking import measured
from nighttrain.providers.tracking.client import PAGE
from nighttrain.providers.tracking.election import Election
from nighttrain.providers.tracking.names import MAX_PARAM, check_key, fit_run_name
from nighttrain.providers.tracking.runs import (
    CHANGED_PARAMS_TAG,
    EPOCH_TAG,
    OPENED_BY_TAG,
    OPENING_TAG,
    PARENT_TAG,
    PREVIOUS_TAG,
    RUN_KEY_TAG,
    RUN_NUMBER_TAG,
    SUPERSEDED_TAG,
    LoggedModel,
    Run,
    RunStatus,
)
from nighttrain.providers.tracking.tags import clean_tags, quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import RunKey

_log = logging.getLogger(__name__)

CREATE_ATTEMPTS = 3
"""How often a run is created while the answers get lost. Each round already bridges a restart."""

GENERATIONS = 100
"""So many parents of one DAG run in the trash, one after the other, are no person's doing."""

SETTLE_ROUNDS = 20
"""Tasks that end at once look at each other's writes: each round one of them is the last."""

BATCH_METRICS = 1_000
BATCH_PARAMS = 100
BATCH_TAGS = 100
"""MLflow's own limits of one log-batch call."""

T = TypeVar("T")


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
        """The run of the whole DAG run: one for all who ask, whenever they do.

        One that a person put into the trash is followed by another. It is left as it is if it was closed:
        :meth:`reopen` it once it has a child that goes on.

        :param identity: may be that of any of its tasks
        """
        key = identity.parent
        for generation in range(GENERATIONS):
            election = self._election(experiment_id, key.value, generation)
            elected = await election.elected()
            if elected is not None:
                run = await self._get_or_none(elected)
            else:
                known = await self.find(experiment_id, key)
                run = await self._elect(
                    election,
                    known,
                    lambda: self._create(experiment_id, key, name=name, tags=dict(tags or {})),
                )
            if run is not None and not run.deleted:
                return run
        raise TrackingRequestError(
            f"{GENERATIONS} parent runs of {key.value} are in MLflow's trash: does something delete them?"
        )

    def _election(self, experiment_id: str, key: str, generation: int) -> Election:
        return Election(self.client, experiment_id, key, f"parent {generation}")

    async def reopen(self, run_id: str) -> None:
        """Have the run say that it goes on, if it does not. One in the trash is left there."""
        run = await self.get(run_id)
        if not run.deleted and (run.status != RunStatus.RUNNING.value or run.end_time is not None):
            # An end time of 0 is how MLflow's REST API spells "none": the field cannot be cleared otherwise.
            await self.client.post(
                "runs/update", {"run_id": run_id, "status": RunStatus.RUNNING.value, "end_time": 0}
            )

    async def open_attempt(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        parent_run_id: str = "",
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
        opening: str | None = None,
    ) -> Run:
        """A new run for the next attempt of a task. Each call makes one.

        It counts only once a Job was created with it. If another one was, :meth:`discard` it; if this one,
        :meth:`supersede` those before it.

        :param parent_run_id: the DAG run's; empty where it has none
        :param opening: finds the run again where the answer was lost: a fresh token by default
        :raises ConfigurationError: a key without a task
        """
        if key.task_id is None:
            raise ConfigurationError(
                "task_id", key.value, "an attempt belongs to a task: set task_id in its RunKey"
            )
        # What another process opened for this very attempt, and died or lost, is no attempt before it.
        earlier = [run for run in await self.attempts(experiment_id, key) if run.had_job]
        number = max((run.number for run in earlier), default=0) + 1
        run = await self._create(
            experiment_id,
            key,
            # MLflow's page shows the names side by side.
            name=name if number == 1 else f"{name} #{number}",
            tags={
                **(tags or {}),
                RUN_NUMBER_TAG: number,
                PARENT_TAG: parent_run_id or None,
                PREVIOUS_TAG: earlier[-1].run_id if earlier else None,
            },
            opening=opening,
        )
        if params:
            try:
                await self.log_params(run.run_id, params)
            except (TrackingRequestError, TrackingUnauthorizedError, ConfigurationError):
                await self.discard(run.run_id)  # no container will be started with it
                raise
        return run

    async def take_over(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        opening: str,
        parent_run_id: str,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Run:
        """The run of an attempt that started while MLflow was away: the one that its container opened, or
        else a new one, the same for all who ask.

        :param opening: the token that the container was given; without one (a trigger that an earlier version
            stored) it is the task's last run
        """
        if opening:
            made = await self._made_with(experiment_id, opening)
        else:
            made = (await self.attempts(experiment_id, key))[-1:]
        own = [run for run in made if OPENED_BY_TAG in run.tags]
        run = own[0] if own else None
        if run is None:
            election = Election(self.client, experiment_id, key.value, f"opening {opening}")
            elected = await election.elected()
            run = await self._get_or_none(elected) if elected else None
        if run is None:
            run = await self._elect(
                election,
                made[0] if made else None,
                lambda: self.open_attempt(experiment_id, key, name=name, opening=opening),
            ) or await self.open_attempt(experiment_id, key, name=name)
        others = [each for each in await self.attempts(experiment_id, key) if each.run_id != run.run_id]
        number = run.number or max((each.number for each in others if each.had_job), default=0) + 1
        await self.set_tags(
            run.run_id, {**(tags or {}), RUN_NUMBER_TAG: number, PARENT_TAG: parent_run_id or None}
        )
        if params:
            await self._log_new_params(run, params)
        return await self.get(run.run_id)

    async def attempts(self, experiment_id: str, key: RunKey) -> list[Run]:
        """The runs of a task that are not in the trash, in the order of its attempts."""
        return sorted(
            await self._tagged(experiment_id, RUN_KEY_TAG, key.value),
            key=lambda run: (run.number, run.start_time or 0, run.run_id),
        )

    async def supersede(self, run: Run) -> None:
        """Say on the runs of the task's earlier attempts that this one followed, and close what nobody did:
        the run of a process that died before it had created its Job, or whose Job another one had created.

        What the same opening made twice, since an answer was lost, goes into the trash.
        """
        key, opening = run.tags.get(RUN_KEY_TAG, ""), run.tags.get(OPENING_TAG)
        for other in await self._tagged(run.experiment_id, RUN_KEY_TAG, key):
            if other.run_id == run.run_id:
                continue
            if opening and other.tags.get(OPENING_TAG) == opening:
                if OPENED_BY_TAG not in other.tags:  # a container may open several
                    await self.discard(other.run_id)
                continue
            if other.number < run.number or (other.number == run.number and not other.had_job):
                with contextlib.suppress(TrackingTrashError):  # whoever opened it was faster
                    await self._give_way(other, run)

    async def step_aside(self, run: Run) -> None:
        """Say of a run that never had a Job that it is no attempt, where another process's run of the same
        wish had one: the task goes by that.
        """
        if run.had_job:
            return
        of_task = await self._tagged(run.experiment_id, RUN_KEY_TAG, run.tags.get(RUN_KEY_TAG, ""))
        had_job = [
            each for each in of_task if each.had_job and each.tags.get(EPOCH_TAG) == run.tags.get(EPOCH_TAG)
        ]
        if had_job:
            last = max(had_job, key=lambda each: each.number)
            await self.set_tags(run.run_id, {SUPERSEDED_TAG: last.run_id, RUN_NUMBER_TAG: last.number})

    async def _give_way(self, earlier: Run, run: Run) -> None:
        if earlier.is_open:
            await self.close(earlier.run_id, RunStatus.KILLED)
        if SUPERSEDED_TAG not in earlier.tags:
            await self.set_tags(earlier.run_id, {SUPERSEDED_TAG: run.run_id})

    async def discard(self, run_id: str) -> None:
        """Put a run into the trash that nothing refers to: one whose Job was not created with it, say."""
        await self.client.post("runs/delete", {"run_id": run_id})

    async def close(self, run_id: str, status: RunStatus | str, *, end_time: int | None = None) -> None:
        """Write the final status. The last writer wins: call it after the training process is gone.

        :param end_time: milliseconds since 1970; now, by default
        """
        body = {"run_id": run_id, "status": _status(status).value, "end_time": end_time or self._now()}
        await self.client.post("runs/update", body)

    async def settle_parent(self, parent_run_id: str) -> None:
        """Have the parent run say how its tasks stand, each by its last attempt: RUNNING while one goes on,
        else FAILED if one failed, KILLED if one was killed, or FINISHED.

        Whoever writes looks again afterwards: of several that settle at once the last one sees the others.
        """
        parent = await self.get(parent_run_id)
        for _ in range(SETTLE_ROUNDS):
            wanted = await self._status_of_children(parent)
            parent = await self.get(parent_run_id)
            if wanted is None or parent.deleted or parent.status == wanted.value:
                return
            if wanted is RunStatus.RUNNING:
                await self.reopen(parent_run_id)
            else:
                await self._discard_losers(parent)
                await self.close(parent_run_id, wanted)

    async def _status_of_children(self, parent: Run) -> RunStatus | None:
        of_parent = f"tags.`{PARENT_TAG}` = {quoted(parent.run_id)}"
        # Asked first, since of a thousand mapped tasks all but the last need to know no more than this.
        running = await self._search(
            parent.experiment_id, f"{of_parent} AND attributes.status = 'RUNNING'", at_most=10
        )
        if any(SUPERSEDED_TAG not in run.tags for run in running):
            return RunStatus.RUNNING
        last: dict[str, Run] = {}
        for run in sorted(
            await self._search(parent.experiment_id, of_parent),
            key=lambda run: (SUPERSEDED_TAG not in run.tags, run.number, run.start_time or 0),
        ):
            last[run.tags.get(RUN_KEY_TAG, run.run_id)] = run
        if not last:
            return None
        if any(run.is_open for run in last.values()):
            return RunStatus.RUNNING
        statuses = {run.status for run in last.values()}
        worst = (status for status in (RunStatus.FAILED, RunStatus.KILLED) if status.value in statuses)
        return next(worst, RunStatus.FINISHED)

    async def _discard_losers(self, parent: Run) -> None:
        """Those that lost an election, and whose makers died before they could discard them.

        One that was elected, before or after this one, may be somebody's parent, or about to become it; and
        where MLflow lets nobody elect, every one is.
        """
        key = parent.tags.get(RUN_KEY_TAG)
        if key is None:
            return
        beside = [
            run
            for run in await self._tagged(parent.experiment_id, RUN_KEY_TAG, key)
            if run.run_id != parent.run_id and run.is_open and OPENING_TAG in run.tags
        ]
        elected = await self._elected(parent.experiment_id, key) if beside else []
        for run in beside if elected else ():
            of_it = f"tags.`{PARENT_TAG}` = {quoted(run.run_id)}"
            if run.run_id not in elected and not await self._search(run.experiment_id, of_it, at_most=1):
                await self.discard(run.run_id)

    async def _elected(self, experiment_id: str, key: str) -> list[str]:
        """The parents that were elected, one after the other."""
        found: list[str] = []
        for generation in range(GENERATIONS):
            elected = await self._election(experiment_id, key, generation).elected()
            if elected is None:
                break
            found.append(elected)
        return found

    async def get(self, run_id: str) -> Run:
        """:raises TrackingNotFoundError: no such run"""
        return Run.from_api((await self.client.get("runs/get", {"run_id": run_id}))["run"])

    async def _get_or_none(self, run_id: str) -> Run | None:
        try:
            return await self.get(run_id)
        except TrackingNotFoundError:  # removed for good
            return None

    async def find(self, experiment_id: str, key: RunKey) -> Run | None:
        """The oldest run with this key that is not in the trash."""
        return min(
            await self._tagged(experiment_id, RUN_KEY_TAG, key.value),
            key=lambda run: (run.start_time or 0, run.run_id),
            default=None,
        )

    async def _tagged(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        found = await self._search(experiment_id, f"tags.`{tag}` = {quoted(value)}")
        # Some databases compare without regard to case.
        return [run for run in found if run.tags.get(tag) == value]

    async def _made_with(self, experiment_id: str, opening: str) -> list[Run]:
        """What one opening made, oldest first."""
        found = await self._tagged(experiment_id, OPENING_TAG, opening)
        return sorted(found, key=lambda run: (run.start_time or 0, run.run_id))

    async def _search(self, experiment_id: str, filter_: str, *, at_most: int | None = None) -> list[Run]:
        """Every run that a filter finds; some of them with ``at_most``."""
        asked = {"experiment_ids": [experiment_id], "filter": filter_, "max_results": at_most or PAGE}
        if at_most is None:
            return [Run.from_api(run) for run in await self.client.search("runs", asked)]
        answer = await self.client.post("runs/search", asked)
        return [Run.from_api(run) for run in answer.get("runs", ())]

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

    async def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics at one step. Not-a-number and infinities are sent in the form MLflow takes.

        :raises ConfigurationError: a name that MLflow refuses, or a value that was never measured
        """
        now = self._now()
        entries = [
            {
                "key": check_key(key, field="metrics", value=value),
                "value": _number(key, value),
                "timestamp": now,
                "step": step,
            }
            for key, value in metrics.items()
        ]
        for part in _parts(entries, BATCH_METRICS):
            await self.client.post("runs/log-batch", {"run_id": run_id, "metrics": list(part)})

    async def logged_models(self, run: Run) -> list[LoggedModel]:
        """The models this run logged, oldest first, whatever their status."""
        asked = {
            "experiment_ids": [run.experiment_id],
            "filter": f"source_run_id = {quoted(run.run_id)}",
        }
        found = await self.client.search("logged-models", asked, found_as="models")
        models = map(LoggedModel.from_api, found)
        return sorted(models, key=lambda model: (model.created, model.model_id))

    async def _elect(
        self, election: Election, known: Run | None, make: Callable[[], Awaitable[Run]]
    ) -> Run | None:
        """The elected run, where there was none; ``None`` if it is gone for good.

        :param known: stands, where there is one; otherwise one is made, which goes if it loses
        """
        candidate = known or await make()
        try:
            elected = await election.stand(candidate.run_id)
        except TrackingUnreachableError:
            raise
        except (TrackingRequestError, TrackingUnauthorizedError) as error:
            # A server that lets these credentials make runs but no experiments. No task fails for that.
            _log.warning("MLflow elects no run, so that several may stand side by side: %s", error)
            return candidate
        if elected == candidate.run_id:
            return candidate
        if candidate is not known:
            await self.discard(candidate.run_id)
        return await self._get_or_none(elected)

    async def _create(
        self,
        experiment_id: str,
        key: RunKey,
        *,
        name: str,
        tags: Mapping[str, object],
        opening: str | None = None,
    ) -> Run:
        """One run, also where the answer to the first call is lost."""
        opening, name = opening or uuid.uuid4().hex, fit_run_name(name)
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
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": self._now(),
            "tags": _pairs(cleaned.items()),
        }
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

    async def _log_new_params(self, run: Run, params: Mapping[str, object]) -> None:
        wanted = _clean_params(params, self._known_secrets)
        changed = {key: value for key, value in wanted.items() if run.params.get(key, value) != value}
        await self.log_params(
            run.run_id, {key: value for key, value in wanted.items() if key not in run.params}
        )
        if changed:
            await self.set_tags(run.run_id, {CHANGED_PARAMS_TAG: json.dumps(changed, sort_keys=True)})

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


def _number(name: str, value: object) -> float | str:
    if measured.read(value) in (measured.NoNumber.MISSING, measured.NoNumber.UNREADABLE):
        raise ConfigurationError(
            f"metrics[{name!r}]", repr(value), "give a number; leave out what was not measured"
        )
    return measured.to_json(value)
