"""Which failures of a Job's pods count, for whom, and how many are too many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.conformance_client import condition, conditions

if TYPE_CHECKING:
    from helpers.conformance_client import Object, Space

INDEX = "batch.kubernetes.io/job-completion-index"


def submit(space: Space, code: str, **spec: Any) -> Object:
    return space.create(
        "jobs", {"metadata": {"name": "one"}, "spec": {"template": {"spec": space.pod_spec(code)}, **spec}}
    )


def ended(space: Space) -> Object:
    return space.wait(
        "jobs", "one", lambda job: {conditions(job).get(kind) for kind in ("Complete", "Failed")} & {"True"}
    )


def indexes(space: Space) -> list[str]:
    """Of every pod the Job has had: those that ended stay."""
    pods = space.list("pods", labelSelector="job-name=one")
    return sorted(pod["metadata"]["annotations"][INDEX] for pod in pods)


def on_exit(action: str, *codes: int, operator: str = "In") -> Object:
    return {"action": action, "onExitCodes": {"operator": operator, "values": list(codes)}}


def fails_at(*wrong: int, code: int) -> str:
    return f"import os; raise SystemExit({code} if int(os.environ['JOB_COMPLETION_INDEX']) in {wrong} else 0)"


INDEXED = {"completionMode": "Indexed", "completions": 3, "parallelism": 3}


@pytest.mark.not_embedded("limit of failures for each index")
def test_a_policy_gives_an_index_up(space: Space) -> None:
    """Jobs, Pod failure policy, FailIndex: avoid unnecessary retries within the index."""
    rules = {"rules": [on_exit("FailIndex", 42)]}
    submit(space, fails_at(1, code=42), **INDEXED, backoffLimitPerIndex=3, podFailurePolicy=rules)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "FailedIndexes"
    assert (job["status"]["failedIndexes"], job["status"]["completedIndexes"]) == ("1", "0,2")
    assert (job["status"]["failed"], job["status"]["succeeded"]) == (1, 2)
    assert indexes(space) == ["0", "1", "2"]


@pytest.mark.not_embedded("limit of failures for each index")
def test_a_job_of_which_no_index_succeeds_counts_no_success(space: Space) -> None:
    """JobStatus: a count of nothing is left out."""
    rules = {"rules": [on_exit("FailIndex", 42)]}
    submit(space, fails_at(0, 1, 2, code=42), **INDEXED, backoffLimitPerIndex=1, podFailurePolicy=rules)
    job = ended(space)
    assert job["status"]["failedIndexes"] == "0-2"
    assert "succeeded" not in job["status"]
    assert "completedIndexes" not in job["status"]


@pytest.mark.not_embedded("limit of failures for each index")
def test_other_failures_of_an_index_are_tried_again(space: Space) -> None:
    """Jobs, Backoff limit per index: an index fails once it has more failures than that."""
    rules = {"rules": [on_exit("FailIndex", 42)]}
    submit(space, fails_at(1, code=1), **INDEXED, backoffLimitPerIndex=1, podFailurePolicy=rules)
    job = ended(space)
    assert job["status"]["failedIndexes"] == "1"
    assert job["status"]["failed"] == 2
    assert indexes(space) == ["0", "1", "1", "2"]


def test_a_policy_counts_what_it_says_counts(space: Space) -> None:
    """Jobs, Pod failure policy, Count: towards backoffLimit; the first rule that matches decides."""
    rules = {"rules": [on_exit("Count", 42), on_exit("FailJob", 41, operator="NotIn")]}
    submit(space, "raise SystemExit(42)", podFailurePolicy=rules, backoffLimit=1)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "BackoffLimitExceeded"
    assert job["status"]["failed"] == 2


def test_a_later_rule_is_looked_at_when_no_earlier_one_matches(space: Space) -> None:
    """Jobs, Pod failure policy: rules are evaluated in order."""
    rules = {"rules": [on_exit("Count", 42), on_exit("FailJob", 41, operator="NotIn")]}
    submit(space, "raise SystemExit(43)", podFailurePolicy=rules, backoffLimit=6)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "PodFailurePolicy"
    assert job["status"]["failed"] == 1


@pytest.mark.not_embedded("limit of failures for each index")
def test_too_many_failed_indexes_end_a_job(space: Space) -> None:
    """Jobs, Backoff limit per index, maxFailedIndexes: once exceeded, all running pods are terminated."""
    # The first two fail; the others would run on.
    code = (
        "import os, time\n"
        "if int(os.environ['JOB_COMPLETION_INDEX']) > 1:\n"
        "    time.sleep(600)\n"
        "raise SystemExit(1)"
    )
    spec = {"completionMode": "Indexed", "completions": 5, "parallelism": 3}
    submit(space, code, **spec, backoffLimitPerIndex=0, maxFailedIndexes=1)
    job = ended(space)
    assert condition(job, "FailureTarget")["reason"] == "MaxFailedIndexesExceeded"
    assert condition(job, "Failed")["reason"] == "MaxFailedIndexesExceeded"
    assert job["status"]["failedIndexes"] == "0,1"
    assert not job["status"].get("active")
    # One of the five never had its turn.
    assert "4" not in indexes(space)


@pytest.mark.not_embedded("limit of failures for each index")
def test_as_many_failed_indexes_as_allowed_end_nothing(space: Space) -> None:
    """Jobs, Backoff limit per index, maxFailedIndexes: the others go on."""
    spec = {**INDEXED, "backoffLimitPerIndex": 0, "maxFailedIndexes": 1}
    submit(space, fails_at(0, code=1), **spec)
    job = ended(space)
    assert condition(job, "Failed")["reason"] == "FailedIndexes"
    assert (job["status"]["failedIndexes"], job["status"]["completedIndexes"]) == ("0", "1,2")
