"""The run of an attempt: found, however much of it is known, and closed with its DAG run's.

A process that holds an attempt may know the run's id, or only what finds the run that the container opened of
its own, because MLflow was away when it started. Where a container opened none, one is made: a task that ran
is in the tree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    TrackingError,
    TrackingNotFoundError,
    TrackingTrashError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking.runs import OPENING_TAG, PARENT_TAG, Lineage, RunKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.kubernetes.outcome.outcome import Outcome
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.tracking.run_tree import RunTree
    from nighttrain.providers.tracking.runs import RunStatus

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
EXPERIMENT_ID_VARIABLE = "MLFLOW_EXPERIMENT_ID"
EXPERIMENT_NAME_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
RUN_CONTEXT_VARIABLE = "MLFLOW_RUN_CONTEXT"

# A refusal that is an accident, of a proxy say, does not come twice; one that does is nobody's to wait for.
PARENT_TRIES = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttemptRun:
    """An attempt's run, as far as a process knows it.

    :param run_id: empty where it is not known, as are the two ids that follow
    :param key: whose run it is; ``None`` where only the id is known
    :param experiment_name: where the container was to open a run
    :param run_name: the name of one that is made
    :param opening: the token that the container was given for the run that it opens
    :param params: parameters of a run that is made
    :param tags: tags of a run that is made
    """

    run_id: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""
    key: RunKey | None = None
    experiment_name: str = ""
    run_name: str = ""
    opening: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_container(cls, key: RunKey, environment: Mapping[str, str]) -> AttemptRun:
        """The run that a container wrote to.

        :param environment: what the container was started with. It names the run, or the experiment in which
            the container was to open one
        """
        opening = opening_of(environment.get(RUN_CONTEXT_VARIABLE))
        return cls(
            run_id=environment.get(RUN_ID_VARIABLE, ""),
            key=key,
            experiment_name=environment.get(EXPERIMENT_NAME_VARIABLE, "") if opening else "",
            run_name=str(key.task_id),
            opening=opening,
        )

    @classmethod
    def from_dicts(cls, ids: Mapping[str, str], wanted: Mapping[str, Any] | None) -> AttemptRun:
        """From :meth:`ids` and :meth:`wanted`, as a trigger keeps them."""
        run = cls(
            run_id=ids.get("run_id", ""),
            experiment_id=ids.get("experiment_id", ""),
            parent_run_id=ids.get("parent_run_id", ""),
        )
        if not wanted:
            return run
        fields = {name: wanted[name] for name in ("orchestrator", "dag_id", "run_id", "task_id", "map_index")}
        return replace(
            run,
            # A trigger that an earlier version stored knows neither region nor opening.
            key=RunKey(**fields, region=wanted.get("region", "")),
            experiment_name=wanted["experiment_name"],
            run_name=wanted["run_name"],
            opening=wanted.get("opening", ""),
        )

    @property
    def can_be_found(self) -> bool:
        """True if there is something to find it by; a container without a run of ours has nothing."""
        return bool(self.run_id or (self.key is not None and self.experiment_name))

    def ids(self) -> dict[str, str]:
        """The ids as plain values; empty while the run's is not known."""
        if not self.run_id:
            return {}
        return {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "parent_run_id": self.parent_run_id,
        }

    def wanted(self) -> dict[str, Any]:
        """Plain values that find the run while its id is not known."""
        if self.key is None:
            return {}
        of_its_own = {"experiment_name": self.experiment_name, "run_name": self.run_name}
        return {**of_its_own, **asdict(self.key), "opening": self.opening}

    async def find(self, tree: RunTree) -> AttemptRun:
        """The same with its ids: what started while MLflow was away, or refused its parent, is completed.

        :raises TrackingError: MLflow does not answer, or refuses
        """
        if self.run_id and self.parent_run_id:
            return self
        if self.run_id:
            return await self._with_parent(tree)
        if self.key is None:
            raise TrackingNotFoundError("the attempt's run has neither an id nor a key to be found by")
        experiment_id = await tree.ensure_experiment(self.experiment_name)
        run = await tree.take_over(
            experiment_id,
            self.key,
            name=self.run_name,
            opening=self.opening,
            parent_run_id=await open_parent(tree, experiment_id, self.key.parent),
            tags=self.tags,
            params=dict(self.params),
        )
        return replace(
            self,
            run_id=run.run_id,
            experiment_id=run.experiment_id,
            parent_run_id=run.tags.get(PARENT_TAG, ""),
        )

    async def close(self, tree: RunTree, status: RunStatus, tags: Mapping[str, object]) -> None:
        """Close it, once it is found and its container is gone; :func:`settle_parent` follows.

        What another process had opened for the same attempt, or an earlier one, names this as its successor:
        before it is closed, since nobody comes back for a run that is.

        :param tags: what the run is to say of its attempt
        :raises TrackingError: MLflow does not answer, or refuses
        """
        if tags:
            await tree.set_tags(self.run_id, tags)
        await tree.supersede(await tree.get(self.run_id))
        await tree.close(self.run_id, status)

    async def _with_parent(self, tree: RunTree) -> AttemptRun:
        run = await tree.get(self.run_id)
        parent = run.tags.get(PARENT_TAG, "")
        if not parent and self.key is not None:
            parent = await open_parent(tree, run.experiment_id, self.key.parent)
            if parent:
                await tree.set_tags(run.run_id, {PARENT_TAG: parent})
        return replace(self, experiment_id=run.experiment_id, parent_run_id=parent)


def opening_of(run_context: str | None) -> str:
    """The token in MLFLOW_RUN_CONTEXT, by which a container opens its run; empty if there is none."""
    try:
        told = json.loads(run_context or "{}")
    except ValueError:  # the user's own
        return ""
    return str(told.get(OPENING_TAG, "")) if isinstance(told, dict) else ""


def attempt_tags(
    lineage: Callable[..., Lineage], cluster: str, workload: Workload, outcome: Outcome | None = None
) -> dict[str, str]:
    """The tags by which a run names its attempt.

    :param lineage: gives the tags from what is known so far
    :param cluster: the API server's address
    """
    known: dict[str, Any] = {
        "cluster": cluster,
        "attempt": workload.attempt,
        "namespace": workload.namespace,
        "job_name": workload.name,
        "job_uid": workload.uid,
    }
    if outcome is not None:
        known.update(pod_uid=outcome.pod_uid, image_digest=outcome.image_id, outcome=outcome.kind.value)
    return lineage(**known).tags()


async def open_parent(tree: RunTree, experiment_id: str, key: RunKey) -> str:
    """The id of the DAG run's run; empty where MLflow refuses one, which no task fails for.

    :param key: the DAG run's
    :raises TrackingUnreachableError: MLflow does not answer
    """
    whole = Lineage(orchestrator=key.orchestrator, dag_id=key.dag_id, run_id=key.run_id)
    name, tags = f"{key.dag_id} {key.run_id}", whole.tags()
    for tries_left in reversed(range(PARENT_TRIES)):
        try:
            return (await tree.open_parent(experiment_id, key, name=name, tags=tags)).run_id
        except TrackingUnreachableError:
            raise
        except TrackingError as error:
            if not tries_left:
                _log.warning("The task's run stands alone, without one of its DAG run: %s", error)
    return ""


async def settle_parent(tree: RunTree, parent_run_id: str) -> None:
    """Have the DAG run's run say how its tasks stand.

    :raises TrackingUnreachableError: MLflow does not answer
    """
    await _tell_parent(tree.settle_parent, parent_run_id)


async def reopen_parent(tree: RunTree, parent_run_id: str) -> None:
    """Have the DAG run's run say that one of its tasks goes on.

    :raises TrackingUnreachableError: MLflow does not answer
    """
    await _tell_parent(tree.reopen, parent_run_id)


async def _tell_parent(tell: Callable[[str], Awaitable[None]], parent_run_id: str) -> None:
    """No task fails for what MLflow refuses of the DAG run's run."""
    if not parent_run_id:
        return
    for tries_left in reversed(range(PARENT_TRIES)):
        try:
            await tell(parent_run_id)
        except TrackingUnreachableError:
            raise
        except TrackingError as error:
            if tries_left and not isinstance(error, TrackingTrashError):
                continue
            said = restoring(error, run_id=parent_run_id)
            _log.warning("The DAG run's run is left to the reaper, or to its next task: %s", said)
        return


def restoring(error: Exception, *, run_id: str, experiment_id: str = "") -> str:
    """MLflow's sentence, and the commands that bring back what is in its trash."""
    if not isinstance(error, TrackingTrashError):
        return str(error)
    commands = [f"mlflow runs restore --run-id {run_id}"] if run_id else []
    if experiment_id:
        commands.append(
            f"if its experiment was deleted, mlflow experiments restore --experiment-id {experiment_id}"
        )
    return f"it is in MLflow's trash. To have it back: {'; '.join(commands)}. MLflow says: {error}"
