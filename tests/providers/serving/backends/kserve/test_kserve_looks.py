"""A look at what recordings ended as, with one thing changed: what was so is so no more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.interleaved import Present, as_recorded
from helpers.kserve_replays import cases
from helpers.replays import Case, load
from nighttrain.providers.serving.backends.kserve.look import read
from nighttrain.providers.serving.backends.kserve.objects import Objects
from nighttrain.providers.serving.backends.kserve.plan import Plan, service_name
from nighttrain.providers.serving.backends.kserve.stamp import (
    NOTHING,
    Stamp,
    read_stamp,
    sharing,
    stamp_object,
)
from nighttrain.providers.serving.backends.traffic import Target

RECORDINGS = Path(__file__).parents[1] / "recordings"
Change = Callable[[Case, dict[str, dict[str, Any]]], None]


def ended(name: str, until: float = 1e9) -> tuple[Case, Present]:
    """The second version's rollout as the recording left it, or as it was at a second."""
    (found,) = (each for each in cases(load(RECORDINGS / f"{name}.jsonl.gz"), 3) if each[0] == "next")
    _, recording, case = found
    events = [event for event in recording.events if event.at < until]
    *_, present = as_recorded(events)
    return case, present


def changed(case: Case, present: Present, change: Change) -> Present:
    """What is there, by stream and by what it is to the rollout, with a change made."""
    found = Present(copy.deepcopy(present.objects), dict(present.at))
    by_stream: dict[str, dict[str, Any]] = {}
    for (stream, name), obj in found.objects.items():
        by_stream.setdefault(stream, {})[name] = obj
    change(case, by_stream)
    found.objects = {(stream, name): obj for stream, held in by_stream.items() for name, obj in held.items()}
    return found


def service(case: Case, held: dict[str, dict[str, Any]]) -> Any:
    return held["inferenceservices"][case.target.endpoint]


def condition(kind: str) -> Change:
    def change(case: Case, held: dict[str, dict[str, Any]]) -> None:
        for each in service(case, held)["status"]["conditions"]:
            if each["type"] == kind:
                each["status"] = "Unknown"

    return change


def route_changed(case: Case, held: dict[str, dict[str, Any]]) -> None:
    held["httproutes"][case.target.endpoint]["metadata"]["generation"] += 1


def route_refused(case: Case, held: dict[str, dict[str, Any]]) -> None:
    (parent,) = held["httproutes"][case.target.endpoint]["status"]["parents"]
    parent["conditions"][-1]["status"] = "False"


def some_to_the_other(case: Case, held: dict[str, dict[str, Any]]) -> None:
    refs = held["httproutes"][case.target.endpoint]["spec"]["rules"][0]["backendRefs"]
    plan = Plan.of(case.target)
    names = {service_name(case.target.endpoint, each) for each in (plan.stable_name, plan.candidate_name)}
    (other,) = names - {refs[0]["name"]}
    refs.append({**refs[0], "name": other, "weight": 0})


def canary_said(case: Case, held: dict[str, dict[str, Any]]) -> None:
    service(case, held)["status"]["canaryStatuses"] = [{"name": "x", "ready": True, "trafficPercent": 0}]


def smaller(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["deployments"].values():
        each["spec"]["replicas"] = 1
        counts = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
        each["status"].update(dict.fromkeys(counts, 1))


def one_pod_less(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["deployments"].values():
        each["status"]["readyReplicas"] -= 1


def not_followed(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["deployments"].values():
        each["metadata"]["generation"] += 1
        each["status"]["observedGeneration"] += 1


def other_pods(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["deployments"].values():
        each["spec"]["template"]["metadata"]["labels"]["nighttrain.dev/version"] = "9"


def candidate_left(case: Case, held: dict[str, dict[str, Any]]) -> None:
    (only,) = held["deployments"].values()
    name = service_name(case.target.endpoint, Plan.of(case.target).candidate_name)
    left = copy.deepcopy(only)
    left["metadata"]["name"] = name
    left["spec"]["template"]["metadata"]["labels"]["nighttrain.dev/version"] = case.target.candidate
    held["deployments"][name] = left


def being_deleted(case: Case, held: dict[str, dict[str, Any]]) -> None:
    service(case, held)["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"


def other_predictor(case: Case, held: dict[str, dict[str, Any]]) -> None:
    service(case, held)["spec"]["predictor"]["labels"]["nighttrain.dev/version"] = "9"


def newer_revision(case: Case, held: dict[str, dict[str, Any]]) -> None:
    service(case, held)["status"]["components"]["predictor"]["latestCreatedRevision"] += "9"


def revision_not_ready(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["revisions"].values():
        for said in each["status"]["conditions"]:
            said["status"] = "Unknown" if said["type"] == "Ready" else said["status"]


def percentage(case: Case, held: dict[str, dict[str, Any]]) -> None:
    service(case, held)["spec"]["predictor"]["canaryTrafficPercent"] = 0


def candidate_routed(case: Case, held: dict[str, dict[str, Any]]) -> None:
    for each in held["revisions"].values():
        each["metadata"]["labels"]["serving.knative.dev/routingState"] = "active"


BOTH = [condition("Ready"), condition("PredictorReady"), being_deleted, other_predictor]
STANDARD = [
    *BOTH,
    condition("IngressReady"),
    route_changed,
    route_refused,
    some_to_the_other,
    canary_said,
    smaller,
    one_pod_less,
    not_followed,
    other_pods,
]
KNATIVE = [*BOTH, condition("RoutesReady"), newer_revision, revision_not_ready, percentage]
CASES = [
    *(("kserve-canary-promoted-in-two-next", change) for change in STANDARD),
    *(("kserve-canary-undone-in-two-next", change) for change in [*STANDARD, candidate_left]),
    *(("knative-canary", change) for change in KNATIVE),
    *(("knative-undone-at-zero", change) for change in [*KNATIVE, candidate_routed]),
]


@pytest.mark.parametrize(
    ("name", "change"), CASES, ids=[f"{name}-{change.__name__}-{n}" for n, (name, change) in enumerate(CASES)]
)
def test_with_one_thing_missing_nothing_is_promoted_or_undone(name: str, change: Change) -> None:
    case, present = ended(name)
    look = case.look(present)
    assert look.promoted or look.undone
    look = case.look(changed(case, present, change))
    assert not look.promoted
    assert not look.undone


def test_a_share_is_not_reported_while_the_status_says_that_the_candidate_is_not_ready() -> None:
    case, present = ended("kserve-canary-next", until=18.0)
    assert case.look(present).routed_percent == 25

    def unready(case: Case, held: dict[str, dict[str, Any]]) -> None:
        service(case, held)["status"]["canaryStatuses"][0]["ready"] = False

    look = case.look(changed(case, present, unready))
    assert (look.routed_percent, look.asked_percent) == (None, 25)
    assert "not ready" in str(look.unseen)


def test_the_old_revision_with_the_canarys_percentage_is_not_the_canary() -> None:
    case, present = ended("knative-undone-at-zero", until=5.2)
    traffic = next(iter(present.of("inferenceservices")))["status"]["components"]["predictor"]["traffic"]
    assert [each["percent"] for each in traffic] == [20, 80]
    look = case.look(present)
    assert (look.asked_percent, look.routed_percent, look.readiness.ready) == (20, None, False)
    assert look.unseen is not None
    assert "0 percent are routed" in look.unseen


def test_the_rejected_version_that_gets_everything_is_seen() -> None:
    case, present = ended("knative-undone", until=20.5)
    look = case.look(present)
    assert (look.asked_percent, look.routed_percent, look.undone) == (0, 100, False)
    look = case.look(changed(case, present, condition("RoutesReady")))
    assert look.routed_percent is None, "what the traffic says is not routed yet"


TARGET = Target(endpoint="delay", namespace="ml", model_name="m", candidate="2", stable="1")
OWNER = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "delay", "uid": "u"}}
STAMP = Stamp(candidate="2", fence=7, asked=sharing(50), fence_before=6, asked_before=NOTHING)


def test_a_stamp_says_whose_change_is_there() -> None:
    assert read_stamp(TARGET, stamp_object(TARGET, OWNER, STAMP, None)) == STAMP
    assert STAMP.fence_of(sharing(50)) == 7
    assert STAMP.fence_of(NOTHING) == 6, "asked for, and not made, or put back"
    assert STAMP.explains(NOTHING)
    assert not STAMP.explains(sharing(49))


@pytest.mark.parametrize(
    "asked", ["", "[]", "{", "null", '{"candidate": "3"}', '{"candidate": "2", "fence": "7"}']
)
def test_a_stamp_that_is_another_rollouts_or_none_says_nothing(asked: str) -> None:
    assert read_stamp(TARGET, {"data": {"asked": asked}}) is None
    assert read_stamp(TARGET, None) is None


@pytest.mark.parametrize(
    "broken", [{}, {"spec": None}, {"spec": {"predictor": 7, "canary": "x"}, "status": []}]
)
@pytest.mark.parametrize("name", ["kserve-canary-next", "knative-canary"])
def test_whatever_the_objects_hold_a_look_returns_and_claims_nothing(name: str, broken: Any) -> None:
    case, _ = ended(name)
    objects = Objects(
        service=broken, stamp={"data": 3}, deployments={"x": {}}, route={"spec": []}, revisions={"y": {}}
    )
    look = read(case.target, objects)
    assert not any((look.promoted, look.undone, look.readiness.ready, look.stable_ready))
    assert look.routed_percent is None
