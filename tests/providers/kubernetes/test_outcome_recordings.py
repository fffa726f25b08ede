"""The total function against everything the real cluster did: event by event."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.recorded_endings import ENDINGS, has_succeeded, is_complete
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
    until_quota_grows,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
    WaitFor,
)

K = OutcomeKind


def observed(recordings: Any, scenario: str, job: str | None = None) -> list[tuple[Any, Observation]]:
    steps = []
    for seen in recordings.replay(scenario, job):
        pods = list(seen.pods.values())
        steps.append((seen.job, decide(seen.job, pods, seen.events, queue=seen.queue)))
    return steps


def first_end(steps: list[tuple[Any, Observation]]) -> Outcome:
    outcome = next(step.outcome for _, step in steps if step.phase is Phase.FINISHED)
    assert outcome is not None
    return outcome


@pytest.mark.parametrize(("scenario", "job", "kind", "exit_code", "infrastructure"), ENDINGS)
def test_a_recorded_workload_ends_as_what_it_was(
    recordings: Any, scenario: str, job: str | None, kind: K, exit_code: int | None, infrastructure: bool
) -> None:
    steps = observed(recordings, scenario, job)
    end = first_end(steps)
    assert (end.kind, end.exit_code, end.infrastructure) == (kind, exit_code, infrastructure)
    assert "What to do:" in end.explain() or kind is K.SUCCEEDED
    assert Outcome.from_dict(end.to_dict()) == end


@pytest.mark.parametrize(("scenario", "job"), [(name, job) for name, job, *_ in ENDINGS])
def test_success_is_said_once_the_pod_or_the_job_shows_it_and_never_before(
    recordings: Any, scenario: str, job: str | None
) -> None:
    for seen in recordings.replay(scenario, job):
        step = decide(seen.job, list(seen.pods.values()), seen.events, queue=seen.queue)
        said = step.outcome is not None and step.outcome.kind is K.SUCCEEDED
        shown = seen.job is not None and any(map(has_succeeded, seen.pods.values()))
        single = scenario not in ("job-indexed", "job-pod-force-deleted")
        assert not said or shown or is_complete(seen.job)
        assert said or not (shown and single)
        assert (step.phase is Phase.FINISHED) == (step.outcome is not None)


@pytest.mark.parametrize("scenario", ["job-success", "job-exit-3", "native-sidecar", "preempted"])
def test_a_single_pods_end_is_known_before_its_job_is_told(recordings: Any, scenario: str) -> None:
    steps = observed(recordings, scenario, "high" if scenario == "preempted" else None)
    first = next(job_object for job_object, step in steps if step.phase is Phase.FINISHED)
    assert not {entry["type"] for entry in first["status"].get("conditions", [])} & {"Complete", "Failed"}


@pytest.mark.parametrize(
    "scenario",
    [
        *("job-evicted-replaced", "node-taint", "kueue-preempted", "kueue-drained"),
        *("kueue-0.19-preempted", "kueue-0.19-drained"),
    ],
)
def test_a_replaced_pod_is_not_an_end(recordings: Any, scenario: str) -> None:
    steps = observed(recordings, scenario)
    ends = [number for number, (_, step) in enumerate(steps) if step.phase is Phase.FINISHED]
    pods = {step.pod_name for _, step in steps if step.pod_name}
    assert len(pods) == 2
    assert all(step.phase is Phase.FINISHED for _, step in steps[ends[0] :])


def waits(recordings: Any, scenario: str, job: str | None = None) -> set[K | None]:
    steps = observed(recordings, scenario, job)
    return {step.permanent_wait for _, step in steps if step.phase is Phase.WAITING}


@pytest.mark.parametrize(
    ("scenario", "job", "kind", "words"),
    [
        ("job-unschedulable", None, K.UNSCHEDULABLE, "Insufficient cpu"),
        ("job-image-pull", None, K.IMAGE_PULL, "ImagePullBackOff"),
        ("job-image-pull", None, K.IMAGE_PULL, "ErrImagePull"),
        ("secret-missing", None, K.REJECTED, 'secret "absent" not found'),
        ("configmap-missing", None, K.REJECTED, 'configmap "absent" not found'),
        ("kueue-no-queue", None, K.QUOTA_WAIT, "LocalQueue lq doesn't exist"),
        ("kueue-waits", None, None, "suspended"),
        ("kueue-preempted", "k1", None, "WaitingForQuota"),
        ("kueue-drained", None, None, "ClusterQueue cq is inactive"),
        ("kueue-0.19-no-queue", None, K.QUOTA_WAIT, "LocalQueue lq doesn't exist"),
        ("kueue-0.19-waits", "k2", None, "insufficient unused quota"),
        ("kueue-0.19-preempted", "k1", None, "Preempted to accommodate a workload"),
        ("kueue-0.19-preempted", "k1", None, "insufficient unused quota"),
        ("kueue-0.19-drained", None, None, "The ClusterQueue is stopped"),
        ("kueue-0.19-drained", None, None, "ClusterQueue cq is inactive"),
        ("quota", "q2", None, "exceeded quota: one"),
    ],
)
def test_a_wait_says_why_and_what_it_would_end_as(
    recordings: Any, scenario: str, job: str | None, kind: K | None, words: str
) -> None:
    steps = observed(recordings, scenario, job)
    told = {step.permanent_wait for _, step in steps if step.phase is Phase.WAITING and words in step.detail}
    assert told == {kind}


@pytest.mark.parametrize(
    ("scenario", "kind"),
    [
        ("kueue-indexed-job", K.SUCCEEDED),  # the quota grew
        ("kueue-never-fits", K.CANCELLED),
        ("kueue-0.19-never-fits", K.CANCELLED),
        ("kueue-deleted-waiting", K.CANCELLED),
        ("kueue-0.19-deleted-waiting", K.CANCELLED),
    ],
)
def test_a_request_above_the_whole_quota_is_a_wait_for_whom_wants_to_wait_for_a_larger_one(
    recordings: Any, scenario: str, kind: K
) -> None:
    steps = [(job, until_quota_grows(step)) for job, step in observed(recordings, scenario)]
    assert first_end(steps).kind is kind
    told = [step for _, step in steps if "more than the whole quota" in step.detail]
    assert told
    for step in told:
        assert (step.phase, step.permanent_wait, step.waiting_for) == (Phase.WAITING, None, WaitFor.QUOTA)
        assert "> maximum capacity (" in step.detail
        assert step.since is not None


def test_a_job_being_deleted_is_not_over_while_its_pod_may_run(recordings: Any) -> None:
    for job_object, step in observed(recordings, "job-deleted-foreground"):
        if job_object is not None and job_object["metadata"].get("deletionTimestamp"):
            assert step.phase is Phase.RUNNING
            assert "being deleted" in step.detail


def test_a_failed_program_is_explained_with_its_last_lines(recordings: Any) -> None:
    end = first_end(observed(recordings, "job-exit-3"))
    assert end.last_lines == ("boom",)
    assert end.node == "node1"
    assert end.image_id is not None
    text = end.explain()
    for words in ("exit code 3", f"pod {end.pod_name}", "node node1", "  boom", "What to do: read the last"):
        assert words in text


def test_a_failed_init_container_is_named(recordings: Any) -> None:
    assert "init container 'fetch'" in first_end(observed(recordings, "init-failed")).message


def test_a_pod_that_never_ran_has_no_exit_code_although_its_status_claims_137(recordings: Any) -> None:
    last_pods = list(list(recordings.replay("secret-missing"))[-1].pods.values())
    statuses = last_pods[0]["status"]["containerStatuses"]
    assert statuses[0]["state"]["terminated"]["exitCode"] == 137
    end = decide(None, last_pods).outcome
    assert end is not None
    assert (end.kind, end.exit_code, end.last_lines) == (K.CANCELLED, None, ())


def test_a_failure_without_its_pod_takes_the_exit_code_from_the_jobs_own_words(recordings: Any) -> None:
    job = list(recordings.replay("job-fail-fast"))[-1].job
    end = decide(job, []).outcome
    assert end is not None
    assert (end.kind, end.exit_code) == (K.APPLICATION_ERROR, 42)


def test_a_failure_without_its_pod_and_without_words_is_unknown(recordings: Any) -> None:
    job = list(recordings.replay("job-exit-3"))[-1].job
    end = decide(job, []).outcome
    assert end is not None
    assert end.kind is K.UNKNOWN
    assert "pod is gone" in end.message
