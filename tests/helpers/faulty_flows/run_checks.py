"""What has to hold of a flow's runs in MLflow: one parent, and a run for each attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.faulty_flows.flow import DAG, Flow
from nighttrain.providers.tracking.runs import (
    OPENED_BY_TAG,
    PARENT_TAG,
    RUN_KEY_TAG,
    RUN_NUMBER_TAG,
    SUPERSEDED_TAG,
    RunKey,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
OUTCOME_TAG = "nighttrain.outcome"


def run_violations(
    flow: Flow, environments: list[dict[str, str]], kept: list[dict[str, str]]
) -> Iterator[str]:
    """Promises about runs that the flow broke.

    :param environments: what each Job of the task was started with
    :param kept: the same of those that are still there
    """
    key = RunKey(orchestrator="airflow", dag_id=DAG, run_id=flow.run_id, task_id=flow.workload_task)
    parents, children = _search(flow, key.parent.value), _search(flow, key.value)
    if len(parents) != 1 and (parents or children):
        yield f"{len(parents)} parent runs"
    for child in children:
        if [_tags(child).get(PARENT_TAG)] != [parent["info"]["run_id"] for parent in parents]:
            yield f"run {_number(child)} of the task names the parent {_tags(child).get(PARENT_TAG)}"
    given = [environment["MLFLOW_RUN_ID"] for environment in environments if "MLFLOW_RUN_ID" in environment]
    yield from _attempts(children, given, len(environments))
    of_kept = {environment.get("MLFLOW_RUN_ID", "") for environment in kept}
    yield from _statuses(flow, parents, children, of_kept)


def _attempts(children: list[Json], given: list[str], attempts: int) -> Iterator[str]:
    """Each attempt has a run of its own, and none of them is in the trash.

    There are more runs where a process died before it had created its Job.
    """
    ids = [child["info"]["run_id"] for child in children]
    if len(set(given)) != len(given):
        yield f"two attempts were given one run: {given}"
    if not set(given) <= set(ids):
        yield f"attempts were given {given}, the task's active runs are {ids}"
    own = [child for child in children if OPENED_BY_TAG in _tags(child)]
    if len(children) < attempts:
        yield f"{attempts} attempts and {len(children)} runs"
    for place, child in enumerate(children):
        without_job = child["info"]["run_id"] not in given and child not in own
        if without_job and len(given) + len(own) >= attempts and child["info"]["status"] != "KILLED":
            yield f"run {_number(child)} of the task, that had no Job, is {child['info']['status']}"
        if place < len(children) - 1 and _tags(child).get(SUPERSEDED_TAG) not in ids[place + 1 :]:
            yield f"run {_number(child)} of the task does not name its successor"


def _statuses(flow: Flow, parents: list[Json], children: list[Json], of_kept: set[str]) -> Iterator[str]:
    """Earlier attempts did not end well; the last one's run, and the parent, end as the task did."""
    *earlier, last = [child["info"]["status"] for child in children] or ["none"]
    kept = bool(children) and children[-1]["info"]["run_id"] in of_kept
    expected = _expected(flow, bool(children), kept)
    if set(earlier) - ({"FAILED", "KILLED"} | ({"FINISHED"} if flow.plan.clears else set())):
        yield f"earlier attempts' runs are {earlier}"
    if last not in expected:
        yield f"the last run of the task is {last}, and not {' or '.join(sorted(expected))}"
    if (
        flow.plan.cancel
        and last == "FAILED"
        and (outcome := _tags(children[-1]).get(OUTCOME_TAG)) != "unknown"
    ):
        yield f"the cancelled task's last run is FAILED, with the outcome {outcome}"
    # Where the process died before the task had a run, the reaper closes what it had opened.
    followed = last if children else "KILLED"
    for parent in parents:
        if parent["info"]["status"] != followed:
            yield f"the parent run is {parent['info']['status']}, the task's last run is {last}"


def _expected(flow: Flow, any_run: bool, kept: bool) -> set[str]:
    """How the last run may end. :param kept: its Job is still there"""
    if flow.plan.cancel:
        # A process that dies between the Job's removal and its run's end leaves a run of which nobody knows
        # any more how it ended; so does an outage just then.
        outage = any(fault.label.startswith("mlflow") and fault.times > 1 for fault in flow.plan.faults)
        return {"KILLED"} if flow.cancelled and not outage else {"KILLED", "FAILED"}
    if flow.states[flow.workload_task] == "success":
        return {"FINISHED"}
    if not flow.plan.last:
        return {"FAILED"}
    if not any_run:
        return {"none"}
    if kept:  # and tells how it ended
        return {"FINISHED"} if "end 0" in flow.lines() else {"FAILED"}
    # What nobody waits for may be removed while it ends.
    return {"FINISHED", "KILLED"} if "end 0" in flow.lines() else {"FAILED", "KILLED"}


def _search(flow: Flow, key: str) -> list[Json]:
    mlflow = flow.place.mlflow
    try:
        found = mlflow.call("GET", "experiments/get-by-name", experiment_name=flow.experiment)
    except AssertionError:  # nobody came as far as to make it
        return []
    answer = mlflow.call(
        "POST",
        "runs/search",
        experiment_ids=[found["experiment"]["experiment_id"]],
        filter=f"tags.`{RUN_KEY_TAG}` = '{key}'",
        max_results=100,
    )
    return sorted(answer.get("runs", ()), key=_place)


def _place(run: Json) -> tuple[int, bool, int]:
    """Of several that were opened for one attempt the one that had the Job is the last."""
    return _number(run), SUPERSEDED_TAG not in _tags(run), run["info"]["start_time"]


def _tags(run: Json) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}


def _number(run: Json) -> int:
    return int(_tags(run).get(RUN_NUMBER_TAG, "0"))
