"""Plans that once broke a promise, or seemed to. Written out: a new call makes another plan of a seed.

Each of their faults has to strike.
"""

from __future__ import annotations

from helpers.faulty_flows.call_faults import Fault
from helpers.faulty_flows.flow import Plan

FOUND = {
    "a worker that was given up wrote its attempt's failure on the run of the next (229)": Plan(
        (Fault("mlflow POST runs/search", 3, "timeout_done", 12, process="zombie"),),
        codes=(3, 0),
        deferrable=False,
        zombie=True,
    ),
    "a process died before it had made its Job, and its run named no successor": Plan(
        (Fault("k8s POST jobs all", 1, "crash_before"),), cancel="marked"
    ),
    "a conflict at the end of a cancelled training's run, which stayed open": Plan(
        (Fault("mlflow POST runs/update", 1, "409"),), cancel="timed out"
    ),
    "a process died with a run for an attempt that another one had made, and the night was KILLED": Plan(
        (Fault("k8s GET jobs one", 3, "crash_after"),), deferrable=False, evicted=True, zombie=True
    ),
    "a training that started without MLflow, and was marked afterwards (87)": Plan(
        (Fault("mlflow *", 2, "timeout_done", 12),), cancel="marked"
    ),
    "the run was made, its answer never came, the task was marked (103)": Plan(
        (
            Fault("mlflow POST runs/create", 2, "reply_lost"),
            Fault("mlflow POST runs/search", 3, "timeout_done", 12),
        ),
        cancel="marked",
    ),
    "a try dies after it has noted its training's failure (366)": Plan(
        (Fault("k8s PATCH jobs one", 1, "crash_after"),), codes=(3, 3)
    ),
    "a conflict at the deletion: it was taken for another Job's, and its end waited for": Plan(
        (Fault("k8s DELETE jobs one", 1, "409"),), cancel="timed out"
    ),
    "an outage between the run's end and its parent's, whom nobody settled afterwards": Plan(
        (
            Fault("airflow xcom train nighttrain_link_workload", 1, "crash_before"),
            Fault("mlflow POST runs/search", 5, "reply_lost", 12),
        ),
        deferrable=False,
        cancel="timed out",
    ),
    "a conflict at the removal of a candidate, which was left": Plan(
        (Fault("k8s DELETE deployments one", 1, "409"),), flow="rollout", cancel="timed out"
    ),
    "a read answered with a conflict was taken for a refusal, and the run got no parent (157)": Plan(
        (
            Fault("mlflow GET experiments/get-by-name", 2, "409"),
            Fault("k8s GET jobs one", 1, "crash_after"),
        ),
        deferrable=False,
        last=True,
    ),
    "the same, more often than a client asks (158)": Plan(
        (Fault("mlflow GET experiments/get-by-name", 2, "409", 12),), cancel="marked"
    ),
    "an odd refusal while the parent was made, and the last run had none (101)": Plan(
        (Fault("mlflow POST runs/create", 1, "409"),), last=True
    ),
    "the same, again and again while the training started": Plan(
        (Fault("mlflow GET experiments/get-by-name", 2, "409", 12),), last=True
    ),
    "two processes opened a run for one attempt, and the one whose run had no Job died (279)": Plan(
        (
            Fault("k8s PATCH jobs one", 2, "crash_before", process="zombie"),
            Fault("airflow xcom train nighttrain_link_workload", 2, "crash_before"),
        ),
        deferrable=False,
        evicted=True,
        zombie=True,
    ),
}
