"""The total function on what no recording holds: garbage, contradictions, a kubelet's refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nighttrain.providers import errors
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
    timed_out,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.redaction import redact

K = OutcomeKind

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8))
WORDS = [
    "status",
    "metadata",
    "spec",
    "phase",
    "conditions",
    "type",
    "reason",
    "message",
    "containerStatuses",
]
WORDS += ["initContainerStatuses", "state", "terminated", "waiting", "running", "exitCode", "name", "uid"]
WORDS += ["deletionTimestamp", "suspend", "involvedObject", "lastTimestamp", "deletionGracePeriodSeconds"]
VALUES = [
    "True",
    "Failed",
    "Succeeded",
    "Pending",
    "Running",
    "FailureTarget",
    "DisruptionTarget",
    "OOMKilled",
]
VALUES += ["Unschedulable", "PodScheduled", "FailedCreate", "InvalidImageName", "ErrImagePull", "StartError"]
garbage = st.recursive(
    st.one_of(scalars, st.sampled_from(VALUES)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=400, deadline=None)
@given(job=garbage, pods=st.lists(garbage, max_size=3), events=st.lists(garbage, max_size=3), queue=garbage)
def test_garbage_never_raises_and_never_succeeds(job: Any, pods: Any, events: Any, queue: Any) -> None:
    observation = decide(job, pods, events, queue=queue)
    assert (observation.outcome is not None) == (observation.phase is Phase.FINISHED)
    if observation.outcome is not None:
        assert observation.outcome.kind is not K.SUCCEEDED  # "Complete" is not among the words
        assert observation.outcome.explain()
        assert Outcome.from_dict(observation.outcome.to_dict()) == observation.outcome
    assert timed_out(observation, pods, 1.0).kind is not K.SUCCEEDED


@st.composite
def broken(draw: st.DrawFn, original: Any) -> Any:
    """A real object with some of its values replaced by garbage or removed."""
    obj = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 4))):
        place = obj
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(garbage)
            break
    return obj


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_failure_never_becomes_a_success(data: st.DataObject, recordings: Any) -> None:
    last = list(recordings.replay("job-oom"))[-1]
    job = data.draw(broken(last.job))
    pods = [data.draw(broken(pod)) for pod in last.pods.values()]
    observation = decide(job, pods, last.events)
    assert observation.outcome is None or observation.outcome.kind is not K.SUCCEEDED


def job_with(*conditions: str, **status: Any) -> dict[str, Any]:
    listed = [{"type": kind, "status": "True", "reason": "R", "message": "m"} for kind in conditions]
    return {"metadata": {"name": "j", "uid": "u"}, "spec": {}, "status": {"conditions": listed, **status}}


def pod_with(phase: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "pu"}, "status": {"phase": phase, **status}}


def test_complete_needs_a_success_somewhere() -> None:
    assert decide(job_with("Complete", succeeded=1), []).outcome.kind is K.SUCCEEDED  # type: ignore[union-attr]
    for job, pods in [
        (job_with("Complete"), []),
        (job_with("Complete"), [pod_with("Failed")]),
        (job_with("Complete", "Failed", succeeded=1), []),
        (job_with("SuccessCriteriaMet", succeeded=1), [pod_with("Succeeded")]),
    ]:
        outcome = decide(job, pods).outcome
        assert outcome is None or outcome.kind is K.UNKNOWN


@pytest.mark.parametrize(
    ("reason", "kind", "infrastructure"),
    [
        ("Evicted", K.EVICTED, True),
        ("NodeLost", K.NODE_LOST, True),
        ("Shutdown", K.NODE_LOST, True),
        ("Preempting", K.PREEMPTED, True),
        ("UnexpectedAdmissionError", K.REJECTED, True),
        ("OutOfcpu", K.REJECTED, True),
    ],
)
def test_a_kubelets_own_reason_is_understood(reason: str, kind: K, infrastructure: bool) -> None:
    pod = pod_with("Failed", reason=reason, message="said the kubelet", containerStatuses=None)
    outcome = decide(job_with("Failed"), [pod]).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.infrastructure) == (kind, infrastructure)
    assert "said the kubelet" in outcome.explain()


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([], id="its pod is gone"),
        pytest.param([pod_with("Running")], id="last seen running"),
        pytest.param([pod_with("Failed")], id="ended without a word"),
    ],
)
def test_a_disruption_that_only_the_job_remembers_is_the_clusters_doing(pods: list[Any]) -> None:
    job = job_with("Failed")
    job["status"]["conditions"][0] |= {
        "reason": "PodFailurePolicy",
        "message": "Pod ml/p has condition DisruptionTarget matching FailJob rule at index 0",
    }
    outcome = decide(job, pods).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.infrastructure) == (K.EVICTED, True)
    preempted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    better = decide(job, [pod_with("Failed", conditions=[preempted])]).outcome
    assert better is not None
    assert better.kind is K.PREEMPTED


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "exceeded quota: q, requested: requests.cpu=5, used: requests.cpu=0, limited: requests.cpu=4",
            K.QUOTA_WAIT,
        ),
        (
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=4, limited: requests.cpu=4",
            None,
        ),
        (
            "exceeded quota: q, requested: memory=2Gi,pods=1, used: memory=0, limited: memory=1Gi,pods=9",
            K.QUOTA_WAIT,
        ),
        ('pods "j-x" is forbidden: violates PodSecurity "restricted:latest"', K.REJECTED),
    ],
)
def test_a_refused_pod_waits_for_quota_or_never_starts(message: str, kind: K | None) -> None:
    event = {"involvedObject": {"uid": "u"}, "reason": "FailedCreate", "message": message}
    observation = decide(job_with(), [], [event])
    if kind is K.QUOTA_WAIT:  # more than the whole quota: no waiting helps
        assert observation.outcome is not None
        assert (observation.outcome.kind, observation.outcome.infrastructure) == (kind, False)
        assert "exceeded quota" in observation.outcome.explain()
    else:
        assert observation.phase is Phase.WAITING
        assert observation.permanent_wait is kind


def test_the_pod_that_failed_explains_and_not_a_later_one_that_did_well() -> None:
    def pod(name: str, created: str, phase: str, code: int) -> dict[str, Any]:
        state = {"terminated": {"exitCode": code, "reason": "Error"}}
        status = {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}
        return {"metadata": {"name": name, "creationTimestamp": created}, "status": status}

    pods = [
        pod("bad", "2026-01-01T00:00:00Z", "Failed", 7),
        pod("good", "2026-01-01T00:01:00Z", "Succeeded", 0),
    ]
    outcome = decide(job_with("Failed"), pods).outcome
    assert outcome is not None
    assert (outcome.pod_name, outcome.exit_code) == ("bad", 7)


def test_a_pull_that_takes_long_is_told() -> None:
    def event(reason: str, minute: int) -> dict[str, Any]:
        about = {"involvedObject": {"uid": "pu"}, "reason": reason, "message": f"{reason} image big:1"}
        return about | {"lastTimestamp": f"2026-01-01T00:0{minute}:00Z"}

    state = {"waiting": {"reason": "ContainerCreating"}}
    pod = pod_with("Pending", containerStatuses=[{"name": "main", "state": state}])
    pulling = decide(job_with(), [pod], [event("Pulling", 1)])
    assert (pulling.permanent_wait, pulling.detail) == (K.IMAGE_PULL, "Pulling: Pulling image big:1")
    pulled = decide(job_with(), [pod], [event("Pulling", 1), event("Pulled", 2)])
    assert (pulled.permanent_wait, pulled.detail) == (K.START_TIMEOUT, "ContainerCreating")


def test_a_queue_without_kueue_is_told() -> None:
    job = {"metadata": {"uid": "u"}, "spec": {"suspend": True}}
    assert decide(job, [], queue={"absent": True}).permanent_wait is K.QUOTA_WAIT
    assert decide(job, []).permanent_wait is None


def queued(reason: str, message: str = "", **spec: Any) -> dict[str, Any]:
    reserved = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
    return {"metadata": {"name": "job-k1-1"}, "spec": spec, "status": {"conditions": [reserved]}}


ABOVE = (
    "insufficient quota for {} in flavor {}, previously considered podsets requests (0) + current podset "
    "request (5) > maximum capacity (1)"
).format
IN_USE = "insufficient unused quota for {} in flavor {}, 1 more needed".format


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        # A gate of Kueue's: the reason says it all.
        ("ExceedsMaxQuota", "", "never"),
        ("Misconfigured", "LocalQueue lq doesn't exist", "blocked"),
        ("NoMatchingFlavor", "", "blocked"),
        ("Deactivated", "The workload is deactivated", "blocked"),
        ("WaitingForQuota", f"pod set main: {ABOVE('cpu', 'a')}, {IN_USE('memory', 'a')}", "healthy"),
        *((reason, "", "healthy") for reason in ("Suspended", "PendingEvaluation", "AdmissionGated")),
        ("WaitingForPreemptedWorkloads", "Pending the preemption of 1 workload(s)", "healthy"),
        # Without it the message does.
        ("Pending", f"couldn't assign flavors to pod set main: {ABOVE('cpu', 'a')}", "never"),
        ("Pending", "insufficient quota for cpu in flavor a, request > maximum capacity (5 > 4)", "never"),
        ("Pending", f"pod set main: {ABOVE('cpu', 'a')}, {ABOVE('cpu', 'b')}", "never"),
        # Of two flavors the second is large enough, but in use.
        ("Pending", f"pod set main: {ABOVE('cpu', 'a')}, {IN_USE('cpu', 'b')}", "healthy"),
        # One flavor, and one of its two resources is too small.
        ("Pending", f"pod set main: {ABOVE('cpu', 'a')}, {IN_USE('memory', 'a')}", "never"),
        # Of two pod sets one can never be placed.
        ("Pending", f"pod set a: {IN_USE('cpu', 'x')}; pod set b: {ABOVE('cpu', 'x')}", "never"),
        (
            "Pending",
            f"pod set main: {IN_USE('cpu', 'a')}. Pending the preemption of 1 workload(s)",
            "healthy",
        ),
        ("Pending", "pod set main: resource nvidia.com/gpu unavailable in ClusterQueue", "blocked"),
        ("Pending", "pod set main: untolerated taint {k v NoSchedule} in flavor a", "blocked"),
        ("Pending", f"pod set main: untolerated taint {{}} in flavor a, {IN_USE('cpu', 'b')}", "healthy"),
        ("Pending", f"pod set main: flavor a doesn't match node affinity, {ABOVE('cpu', 'b')}", "never"),
        ("Inadmissible", "ClusterQueue cq doesn't exist", "blocked"),
        ("Inadmissible", "Workload namespace doesn't match ClusterQueue selector", "blocked"),
        ("Inadmissible", "LocalQueue lq is inactive", "healthy"),
        ("Inadmissible", "LocalQueue lq is terminating or missing", "blocked"),
        ("Pending", "pod set main: flavor a not found", "blocked"),
        ("Inadmissible", "resources validation failed: requests exceed their limits", "blocked"),
        ("Inadmissible", "resources didn't satisfy LimitRange constraints: cpu above max", "blocked"),
        # Words that nobody knows yet.
        ("Pending", "", "healthy"),
        ("Inadmissible", "the moon is not full", "healthy"),
        ("WaitingForTheMoon", f"pod set main: {ABOVE('cpu', 'a')}", "healthy"),
    ],
)
def test_what_kueue_says_is_read_in_both_forms_of_words(reason: str, message: str, expected: str) -> None:
    job = {"metadata": {"uid": "u"}, "spec": {"suspend": True}}
    seen = decide(job, [], queue=queued(reason, message))
    if expected == "never":
        assert seen.outcome is not None
        assert (seen.outcome.kind, seen.outcome.reason) == (K.QUOTA_WAIT, "NeverFits")
    else:
        kind = K.QUOTA_WAIT if expected == "blocked" else None
        assert (seen.phase, seen.permanent_wait) == (Phase.WAITING, kind)
    assert (message[:60] or reason) in (seen.outcome.message if seen.outcome else seen.detail)


def test_a_deactivated_workload_is_named_with_what_brings_it_back() -> None:
    job = {"metadata": {"uid": "u"}, "spec": {"suspend": True}}
    seen = decide(job, [], queue=queued("Pending", "The workload is deactivated", active=False))
    assert seen.permanent_wait is K.QUOTA_WAIT
    assert "job-k1-1" in seen.detail
    assert "spec.active" in seen.detail


@pytest.mark.parametrize("kind", [kind for kind in K if kind is not K.SUCCEEDED])
def test_every_failure_has_an_error_and_a_remedy(kind: K) -> None:
    outcome = Outcome(kind=kind, reason="R", message="m", exit_code=9, last_lines=("a", "b"))
    with pytest.raises(errors.WorkloadFailedError) as raised:
        outcome.raise_for_failure()
    assert raised.value.outcome == outcome
    assert "What to do:" in str(raised.value)


def test_no_two_failures_share_an_error() -> None:
    raised: dict[type[Exception], set[tuple[K, bool]]] = {}
    for kind in [kind for kind in K if kind is not K.SUCCEEDED]:
        for infrastructure in (False, True):
            with pytest.raises(errors.WorkloadFailedError) as caught:
                Outcome(kind=kind, infrastructure=infrastructure).raise_for_failure()
            raised.setdefault(caught.type, set()).add((kind, infrastructure))
    assert errors.WorkloadFailedError not in raised
    assert [kinds for kinds in raised.values() if len({kind for kind, _ in kinds}) > 1] == []
    # A policy that catches one must not catch another: only what the tree in errors.py says is a kind of it.
    related = {(child, of) for child in raised for of in raised if child is not of and issubclass(child, of)}
    assert related == {
        (errors.RegistryUnavailable, errors.ImagePullFailed),
        (errors.RejectedByNode, errors.Rejected),
    }


def test_success_raises_nothing() -> None:
    Outcome(kind=K.SUCCEEDED).raise_for_failure()


def test_an_outcome_of_a_later_version_is_read_as_unknown() -> None:
    assert Outcome.from_dict({"kind": "melted", "colour": "blue"}).kind is K.UNKNOWN


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("could not log in: password=hunter22 rejected", "hunter22"),
        ("AWS_SECRET_ACCESS_KEY: abcdefgh12345", "abcdefgh12345"),
        ('{"api_key": "k-123456"}', "k-123456"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("postgres://user:pa55@db:5432/x", "pa55"),
        ("key AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
    ],
)
def test_what_looks_like_a_credential_is_masked(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_ordinary_log_lines_stay_as_they_are() -> None:
    for line in (
        "epoch 1 loss 0.5",
        "tokens per second: x",
        "Traceback (most recent call last):",
        "mae = 17.2",
    ):
        assert redact(line) == line


def test_clipped_text_holds_nothing_that_postgresql_refuses() -> None:
    assert errors.clip("a\0b\ud800c", 10) == "a\ufffdb\ufffdc"  # Airflow's XComs and triggers are jsonb there
    assert errors.clip("\0" * 9, 3) == "\ufffd\ufffd…"


def test_last_lines_are_redacted_and_clipped() -> None:
    message = "\n".join([*(f"line {number}" for number in range(50)), "token=abcdef123", "x" * 5000])
    state = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    pod = pod_with("Failed", containerStatuses=[{"name": "main", "state": state}])
    outcome = decide(job_with("Failed"), [pod]).outcome
    assert outcome is not None
    assert len(outcome.last_lines) == 20
    assert "abcdef123" not in outcome.explain()
    assert len(outcome.last_lines[-1]) == 400
