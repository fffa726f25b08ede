"""Jobs: how many pods, how often, and how it is told that they are done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import condition, conditions

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

SLEEP = "import time; time.sleep(600)"


def submit(space: Space, code: str, template: Object | None = None, **spec: Any) -> Object:
    pods = {"spec": space.pod_spec(code, **(template or {}))}
    return space.create("jobs", {"metadata": {"name": "one"}, "spec": {"template": pods, **spec}})


def ended(space: Space) -> Object:
    return space.wait("jobs", "one", lambda job: "True" in (done(job, "Complete"), done(job, "Failed")))


def done(job: Object, kind: str) -> str:
    return conditions(job).get(kind, "")


def pods(space: Space) -> list[Object]:
    return space.list("pods", labelSelector="job-name=one")


def test_a_job_completes(space: Space) -> None:
    """Jobs, Job termination and cleanup: Complete, with counts and times."""
    submit(space, "pass")
    job = ended(space)
    assert done(job, "Complete") == "True"
    assert job["status"]["succeeded"] == 1
    assert job["status"]["startTime"] <= job["status"]["completionTime"]
    assert "active" not in job["status"]


def test_a_jobs_end_is_told_in_two_steps(space: Space) -> None:
    """Jobs, Terminal Job conditions: SuccessCriteriaMet comes before Complete."""
    created = submit(space, "pass")
    history = space.history("jobs", created, lambda job: done(job, "Complete") == "True")
    first = {
        kind: next(at for at, job in enumerate(history) if done(job, kind) == "True")
        for kind in ("SuccessCriteriaMet", "Complete")
    }
    assert first["SuccessCriteriaMet"] < first["Complete"]


def test_a_jobs_pods_are_its_own(space: Space) -> None:
    """Jobs, Pod selector, and Owners and Dependents: a controller reference and labels."""
    job = submit(space, "pass")
    ended(space)
    [pod] = pods(space)
    [owner] = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("Job", job["metadata"]["uid"], True)
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "one"
    assert pod["metadata"]["name"].startswith("one-")


def test_a_failed_pod_is_tried_again_as_often_as_told(space: Space) -> None:
    """Jobs, Pod backoff failure policy: backoffLimit retries, then BackoffLimitExceeded."""
    submit(space, "raise SystemExit(1)", backoffLimit=1)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "BackoffLimitExceeded"
    assert job["status"]["failed"] == 2
    assert len(pods(space)) == 2


def test_a_job_without_retries_fails_at_once(space: Space) -> None:
    """Jobs, Terminal Job conditions: FailureTarget comes before Failed."""
    created = submit(space, "raise SystemExit(1)", backoffLimit=0)
    history = space.history("jobs", created, lambda job: done(job, "Failed") == "True")
    first = {
        kind: next(at for at, job in enumerate(history) if done(job, kind) == "True")
        for kind in ("FailureTarget", "Failed")
    }
    assert first["FailureTarget"] < first["Failed"]
    assert history[-1]["status"]["failed"] == 1


def test_a_job_completes_as_often_as_told(space: Space) -> None:
    """Jobs, Parallel execution for Jobs: a fixed completion count."""
    created = submit(space, "pass", completions=3, parallelism=2)
    history = space.history("jobs", created, lambda job: done(job, "Complete") == "True")
    assert history[-1]["status"]["succeeded"] == 3
    assert max(job["status"].get("active", 0) for job in history) <= 2
    assert len(pods(space)) == 3


def test_the_pods_of_an_indexed_job_know_their_index(space: Space) -> None:
    """Jobs, Completion mode, Indexed: JOB_COMPLETION_INDEX, an annotation and a label."""
    code = "import os; print(os.environ['JOB_COMPLETION_INDEX'])"
    submit(space, code, completions=3, parallelism=3, completionMode="Indexed")
    job = ended(space)
    assert job["status"]["completedIndexes"] == "0-2"
    found = {}
    for pod in pods(space):
        index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == index
        found[index] = space.output(pod["metadata"]["name"]).strip()
    assert found == {"0": "0", "1": "1", "2": "2"}


@pytest.mark.not_embedded("limit of failures for each index")
def test_a_limit_for_each_index(space: Space) -> None:
    """Jobs, Backoff limit per index: the others go on, the Job fails at its end."""
    code = "import os; raise SystemExit(os.environ['JOB_COMPLETION_INDEX'] == '1')"
    submit(space, code, completions=3, parallelism=3, completionMode="Indexed", backoffLimitPerIndex=0)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "FailedIndexes"
    assert job["status"]["failedIndexes"] == "1"
    assert job["status"]["completedIndexes"] == "0,2"


def test_a_policy_fails_the_job_for_an_exit_code(space: Space) -> None:
    """Jobs, Pod failure policy: FailJob, without another try."""
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]
    submit(space, "raise SystemExit(42)", podFailurePolicy={"rules": rules}, backoffLimit=6)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "PodFailurePolicy"
    assert "42" in condition(job, "Failed")["message"]
    assert len(pods(space)) == 1


def test_a_policy_does_not_count_what_it_ignores(space: Space) -> None:
    """Jobs, Pod failure policy: Ignore does not count towards backoffLimit."""
    rules = [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [42]}}]
    submit(space, "raise SystemExit(42)", podFailurePolicy={"rules": rules}, backoffLimit=0)

    def replaced(job: Object) -> bool:
        uncounted = (job["status"].get("uncountedTerminatedPods") or {}).get("failed")
        return len(pods(space)) >= 2 and not uncounted

    job = space.wait("jobs", "one", replaced)
    assert done(job, "Failed") != "True"


def test_a_suspended_job_has_no_pods(space: Space) -> None:
    """Jobs, Suspending a Job: created suspended, it starts when it is resumed."""
    submit(space, "pass", suspend=True)
    job = space.wait("jobs", "one", lambda job: done(job, "Suspended") == "True")
    assert "startTime" not in job["status"]
    assert pods(space) == []
    space.patch("jobs", "one", {"spec": {"suspend": False}})
    job = ended(space)
    assert done(job, "Suspended") == "False"
    assert done(job, "Complete") == "True"


def test_suspending_a_job_ends_its_pods(space: Space) -> None:
    """Jobs, Suspending a Job: active pods are deleted, and do not count as failed."""
    submit(space, SLEEP)
    space.wait("jobs", "one", lambda job: job["status"].get("ready") == 1)
    [pod] = pods(space)
    space.patch("jobs", "one", {"spec": {"suspend": True}})
    space.wait_gone("pods", pod["metadata"]["name"])
    job = space.wait("jobs", "one", lambda job: not job["status"].get("active"))
    assert done(job, "Suspended") == "True"
    assert not job["status"].get("failed")


def test_a_deadline_fails_a_job(space: Space) -> None:
    """Jobs, Job termination and cleanup: activeDeadlineSeconds ends all pods, DeadlineExceeded."""
    submit(space, SLEEP, activeDeadlineSeconds=2)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "DeadlineExceeded"
    assert not job["status"].get("active")


def test_a_finished_job_is_deleted_after_its_time(space: Space) -> None:
    """Automatic Cleanup for Finished Jobs: ttlSecondsAfterFinished, with its pods."""
    submit(space, "pass", ttlSecondsAfterFinished=1)
    space.wait_gone("jobs", "one")
    for pod in pods(space):
        space.wait_gone("pods", pod["metadata"]["name"])


def test_a_container_that_restarts_counts_against_the_limit(space: Space) -> None:
    """Jobs, Handling Pod and container failures: OnFailure restarts in the same pod."""
    template = {"restartPolicy": "OnFailure"}
    # It fails once; where the folder is the container's own it stays for the next run of it.
    submit(space, "raise SystemExit(1)", template, backoffLimit=1)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "BackoffLimitExceeded"


def test_a_job_is_told_about_by_events(space: Space) -> None:
    """Jobs, Running an example Job: SuccessfulCreate and Completed."""
    submit(space, "pass")
    ended(space)
    assert space.event("SuccessfulCreate", "one")["involvedObject"]["kind"] == "Job"
    assert space.event("Completed", "one")["type"] == "Normal"


def test_a_deleted_job_takes_its_pods_along_when_told(space: Space) -> None:
    """Garbage Collection, Background cascading deletion."""
    submit(space, SLEEP)
    space.wait("jobs", "one", lambda job: job["status"].get("active") == 1)
    [pod] = pods(space)
    space.try_delete("jobs", "one", propagationPolicy="Background")
    space.wait_gone("pods", pod["metadata"]["name"])


def test_a_deleted_job_waits_for_its_pods_when_told(space: Space) -> None:
    """Garbage Collection, Foreground cascading deletion: the owner goes last."""
    submit(space, SLEEP)
    space.wait("jobs", "one", lambda job: job["status"].get("active") == 1)
    job = space.delete("jobs", "one", propagationPolicy="Foreground")
    assert "foregroundDeletion" in job["metadata"]["finalizers"]
    space.wait_gone("jobs", "one")
    assert pods(space) == []


def test_a_deleted_job_leaves_its_pods_when_told(space: Space) -> None:
    """Garbage Collection, Orphaned dependents: they stay, without their owner."""
    submit(space, SLEEP)
    space.wait("jobs", "one", lambda job: job["status"].get("active") == 1)
    space.try_delete("jobs", "one", propagationPolicy="Orphan")
    space.wait_gone("jobs", "one")
    [pod] = pods(space)
    assert "ownerReferences" not in pod["metadata"]
    assert "deletionTimestamp" not in pod["metadata"]
