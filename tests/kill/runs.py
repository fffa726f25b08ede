"""What has to hold of a flow's runs in MLflow: one parent, and a run for each attempt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kill.flow import DAG, Flow

from nighttrain.providers.tracking.runs import PARENT_TAG, RUN_KEY_TAG, RunKey

RUN_NUMBER_TAG = "nighttrain.run_number"
SUPERSEDED_TAG = "nighttrain.superseded_by"

OWN_RUNS = False  # until main has it

Json = dict[str, Any]


def run_violations(flow: Flow, environments: list[dict[str, str]]) -> Iterator[str]:
    """Promises about runs that the flow broke.

    :param environments: what each Job of the task was started with
    """
    key = RunKey(orchestrator="airflow", dag_id=DAG, run_id=flow.run_id, task_id=flow.workload_task)
    parents, children = _search(flow, key.parent.value), _search(flow, key.value)
    if len(parents) != 1:
        yield f"{len(parents)} parent runs"
    for child in children:
        if [_tags(child).get(PARENT_TAG)] != [parent["info"]["run_id"] for parent in parents]:
            yield f"run {_number(child)} of the task names the parent {_tags(child).get(PARENT_TAG)}"
    if OWN_RUNS:
        yield from _attempts(flow, children, environments)
    yield from _statuses(flow, parents, children)


def _attempts(flow: Flow, children: list[Json], environments: list[dict[str, str]]) -> Iterator[str]:
    """Each attempt has a run of its own, and none of them is in the trash."""
    numbers = [_number(child) for child in children]
    if numbers != list(range(1, len(children) + 1)):
        yield f"the task's runs are numbered {numbers}"
    if len(children) != len(environments):
        yield f"{len(children)} runs of the task, {len(environments)} attempts"
    given = [environment["MLFLOW_RUN_ID"] for environment in environments if "MLFLOW_RUN_ID" in environment]
    if len(set(given)) != len(given):
        yield f"two attempts were given one run: {given}"
    active = {child["info"]["run_id"] for child in children}
    if not set(given) <= active:
        yield f"attempts were given {given}, the task's active runs are {sorted(active)}"
    for child, successor in zip(children, children[1:], strict=False):
        if _tags(child).get(SUPERSEDED_TAG) != successor["info"]["run_id"]:
            yield f"run {_number(child)} of the task does not name its successor"


def _statuses(flow: Flow, parents: list[Json], children: list[Json]) -> Iterator[str]:
    """Earlier attempts did not end well, the last one's run and the parent end as the task did."""
    expected = {"success": "FINISHED", "failed": "FAILED"}[flow.states[flow.workload_task]]
    if flow.plan.cancel:
        expected = "KILLED"
    *earlier, last = [child["info"]["status"] for child in children] or [expected]
    wrong = set(earlier) - {"FAILED", "KILLED"} if not flow.plan.clears else set(earlier) & {"RUNNING"}
    if wrong:
        yield f"earlier attempts' runs are {earlier}"
    if last != expected:
        yield f"the last run of the task is {last}, and not {expected}"
    for parent in parents:
        if parent["info"]["status"] != expected:
            yield f"the parent run is {parent['info']['status']}, and not {expected}"


def _search(flow: Flow, key: str) -> list[Json]:
    mlflow = flow.place.mlflow
    found = mlflow.call("GET", "experiments/get-by-name", experiment_name=flow.experiment)
    answer = mlflow.call(
        "POST",
        "runs/search",
        experiment_ids=[found["experiment"]["experiment_id"]],
        filter=f"tags.`{RUN_KEY_TAG}` = '{key}'",
        max_results=100,
    )
    return sorted(answer.get("runs", ()), key=lambda run: (_number(run), run["info"]["start_time"]))


def _tags(run: Json) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}


def _number(run: Json) -> int:
    return int(_tags(run).get(RUN_NUMBER_TAG, "0"))
