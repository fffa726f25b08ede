"""What a look says of shares by replicas: pure functions, and recordings of a real cluster."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from helpers.interleaved import as_recorded, interleaved, recorded
from nighttrain.providers.serving.backends.manifests import build_deployment, build_service, version_labels
from nighttrain.providers.serving.backends.plain.objects import NOTHING_THERE, Objects
from nighttrain.providers.serving.backends.plain.replica_look import look_at_replicas
from nighttrain.providers.serving.backends.plain.shares import ready_endpoints, replicas_for_share, share
from nighttrain.providers.serving.backends.plain.strays import changed
from nighttrain.providers.serving.backends.traffic import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.interleaved import Present
    from nighttrain.providers.serving.spec import ServingSpec

TARGET = Target(endpoint="delay", namespace="default", model_name="airline-delay", candidate="2", stable="1")
P = "nighttrain.dev/"


@pytest.mark.parametrize("percent", [1, 5, 10, 20, 33, 50, 75, 99])
def test_the_number_of_replicas_is_the_smallest_of_the_nearest(percent: int) -> None:
    for stable in range(1, 25):
        # In this order a later one, of the same distance, is not taken.
        best = 1
        for replicas in range(1, 100 * stable):
            distances = [abs(Fraction(n, n + stable) - Fraction(percent, 100)) for n in (replicas, best)]
            best = replicas if distances[0] < distances[1] else best
        assert replicas_for_share(percent, stable) == best


def pod(name: str, version: str, *, ready: bool = True, going: bool = False) -> dict[str, Any]:
    labels = version_labels("delay", version)
    meta: dict[str, Any] = {"name": name, "labels": labels}
    if going:
        meta["deletionTimestamp"] = "2026-11-26T00:00:00Z"
    state = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"metadata": meta, "status": state}


def endpoint_slice(*names: str, lost: tuple[str, ...] = ()) -> dict[str, Any]:
    ready = [{"conditions": {"ready": True}, "targetRef": {"name": name}} for name in names]
    return {
        "endpoints": [*ready, *({"conditions": {"ready": False}, "targetRef": {"name": n}} for n in lost)]
    }


def deployed(make: Callable[..., ServingSpec], version: str, ready: int, wanted: int) -> dict[str, Any]:
    found = build_deployment(make(version, replicas=wanted))
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), ready)
    found["metadata"] |= {"generation": 1, "resourceVersion": "7", "uid": f"uid-{version}"}
    return found | {"status": {"observedGeneration": 1, **counts}}


@pytest.fixture
def shared(serving_spec: Callable[..., ServingSpec]) -> Objects:
    """A canary of one pod beside three."""
    old, new = deployed(serving_spec, "1", 3, 3), deployed(serving_spec, "2", 1, 1)
    service = build_service(old)
    service["metadata"]["resourceVersion"] = "11"
    service["metadata"]["annotations"] |= {
        P + "candidate-version": "2",
        P + "candidate-percent": "10",
        P + "rollout-fence": "2/5",
    }
    service["spec"]["selector"] = {P + "endpoint": "delay"}
    pods = [pod("a", "1"), pod("b", "1"), pod("c", "1"), pod("x", "2")]
    return Objects(
        service=service, stable=old, candidate=new, pods=pods, slices=[endpoint_slice("a", "b", "c", "x")]
    )


def test_the_share_is_that_of_the_ready_endpoints_and_never_the_asked_one(shared: Objects) -> None:
    look = look_at_replicas(TARGET, shared)
    assert (look.asked_percent, look.routed_percent, look.strayed) == (10, 25, None)
    assert (look.fence, look.resource_versions) == (5, {"service": "11"})
    assert (look.promoted, look.undone, look.stable_ready, look.readiness.ready) == (False, False, True, True)


@pytest.mark.parametrize("mark", [None, "candidate-replicas", "replaced", "scaled-up"])
def test_promoted_is_what_remembers_nothing_of_the_rollout(shared: Objects, mark: str | None) -> None:
    """A process that ended right after the switch left the mark: the next one takes it away first."""
    service, candidate = shared.service, shared.candidate
    assert service is not None
    assert candidate is not None
    service["metadata"]["annotations"] = {P + "stable-version": "2", P + "previous-version": "1"}
    service["spec"]["selector"] = version_labels("delay", "2")
    if mark:
        candidate["metadata"]["annotations"][P + mark] = "1"
    look = look_at_replicas(TARGET, replace(shared, slices=[endpoint_slice("x")]))
    assert look.promoted == (mark is None)


def test_while_slices_and_pods_differ_no_share_is_reported(shared: Objects) -> None:
    look = look_at_replicas(TARGET, replace(shared, slices=[endpoint_slice("a", "b", "c", lost=("x",))]))
    assert look.routed_percent is None
    assert look.unseen == "the Service's EndpointSlices do not show its ready pods yet"
    without = replace(shared, slices=None, pods=[*shared.pods[:2], pod("c", "1", going=True), shared.pods[3]])
    assert look_at_replicas(TARGET, without).routed_percent == pytest.approx(100 / 3)


def test_another_hand_at_the_selector_is_seen_and_named(shared: Objects) -> None:
    service = shared.service
    assert service is not None
    service["spec"]["selector"] = version_labels("delay", "1")
    service["metadata"]["managedFields"] = [
        {"manager": "nighttrain", "time": "2026-11-26T01:00:00Z", "fieldsV1": {"f:spec": {"f:selector": {}}}},
        {"manager": "argocd", "time": "2026-11-26T02:00:00Z", "fieldsV1": {"f:spec": {"f:selector": {}}}},
        {"manager": "kubelet", "time": "2026-11-26T03:00:00Z", "fieldsV1": {"f:status": {}}},
    ]
    look = look_at_replicas(TARGET, shared)
    assert look.asked_percent == 0
    assert look.strayed == (
        'somebody changed spec.selector of Service delay: it is {"nighttrain.dev/endpoint": "delay", '
        '"nighttrain.dev/version": "1"}, and this rollout had written {"nighttrain.dev/endpoint": "delay"}; '
        "the field manager argocd wrote it last, at 2026-11-26T02:00:00Z"
    )
    service["metadata"]["annotations"][P + "rollout-fence"] = "3/9"
    look = look_at_replicas(TARGET, shared)
    assert (look.fence, look.strayed) == (0, None), "what another rollout wrote says nothing about this one"


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        ("stable-version", "7", "stable-version of Service delay: it is 7, and this rollout had written 1"),
        ("candidate-version", "7", "another rollout or rollback, of version 7, has begun"),
    ],
)
def test_another_rollout_is_seen(shared: Objects, annotation: str, value: str, words: str) -> None:
    assert shared.service is not None
    shared.service["metadata"]["annotations"][P + annotation] = value
    assert words in (look_at_replicas(TARGET, shared).strayed or "")
    assert look_at_replicas(TARGET, replace(shared, service=None)).strayed == "somebody deleted Service delay"


def test_where_nothing_is_there_nothing_can_come_too_late() -> None:
    first = replace(TARGET, stable=None)
    look = look_at_replicas(first, Objects(service=None, stable=None, candidate=None, pods=[], slices=[]))
    assert (look.asked_percent, look.routed_percent, look.undone, look.fence) == (0, 0, True, NOTHING_THERE)


def test_who_wrote_a_field_is_left_out_where_nobody_tells() -> None:
    found = {"kind": "Service", "metadata": {"name": "delay"}}
    assert changed(found, "spec.selector", {}, "x").endswith("had written x")


# Recordings: a Deployment of two, then three pods is rolled from one template to another, and back.

QUIET = {3.15: ("old", 2), 5.05: ("old", 3), 12.3: ("new", 3), 30: ("", 0)}
SELECTING = {"spec": {"selector": {"app": "web"}}}


def template_of(found: dict[str, Any]) -> str:
    """Which of the two templates a pod of the recording was made from."""
    return {"69f94c6c67": "old", "69d8bdbb44": "new"}[found["metadata"]["labels"]["pod-template-hash"]]


def counted(present: Present) -> dict[str, int] | None:
    found = ready_endpoints(SELECTING, present.of("pods"), present.of("endpointslices"), template_of)
    return None if found is None else dict(found)


def test_a_recorded_rollout_ends_as_written_by_hand() -> None:
    events = recorded("deployment-rollout")
    for until, (template, number) in QUIET.items():
        *_, present = as_recorded([event for event in events if event.at <= until])
        assert counted(present) == ({template: number} if number else {}), until


def test_in_no_interleaving_a_share_is_reported_that_never_was() -> None:
    events = recorded("deployment-rollout")
    templates = {e.object["metadata"]["name"]: template_of(e.object) for e in events if e.stream == "pods"}
    true: set[tuple[int, int]] = set()
    for event in events:
        if event.stream == "endpointslices":
            ready = [
                templates[endpoint["targetRef"]["name"]]
                for endpoint in event.object.get("endpoints") or []
                if endpoint["conditions"]["ready"]
            ]
            true.add((ready.count("old"), ready.count("new")))
    reported = set()
    for seed in range(60):
        for present in interleaved(events, seed):
            if "endpointslices" in present.at and (found := counted(present)) is not None:
                reported.add((found.get("old", 0), found.get("new", 0)))
                assert (share(found, "new") == 100) == (found.keys() == {"new"})
    assert reported <= true
    assert {(3, 0), (0, 3)} <= reported


def as_endpoint(present: Present, stable: dict[str, Any], *, promoted: bool) -> Objects:
    """The recorded objects as if the new template were a candidate's, and its Service had been switched."""
    pods = []
    for found in present.of("pods"):
        version = {"old": "1", "new": "2"}[template_of(found)]
        labels = version_labels("delay", version)
        pods.append(found | {"metadata": found["metadata"] | {"labels": labels}})
    service = build_service(stable)
    service["metadata"] |= {"resourceVersion": "1", "annotations": {P + "stable-version": "1"}}
    if promoted:
        service["metadata"]["annotations"] = {P + "stable-version": "2", P + "previous-version": "1"}
        service["spec"]["selector"] = version_labels("delay", "2")
    deployments = present.of("deployments")
    return Objects(
        service=service,
        stable=stable,
        candidate=deployments[0] if deployments else None,
        pods=pods,
        slices=present.of("endpointslices"),
    )


def test_a_recorded_candidate_is_promoted_only_while_all_its_pods_are_there(
    serving_spec: Callable[..., ServingSpec],
) -> None:
    """From 12.15, when the Deployment reports its three new pods, to the patch that takes them back."""
    stable = deployed(serving_spec, "1", 3, 3)
    # Its Deployment has the candidate's template from the third generation on, until the fourth.
    events = [
        event
        for event in recorded("deployment-rollout")
        if event.stream != "deployments" or event.object["metadata"]["generation"] == 3
    ]
    said = 0
    for seed in range(60):
        for present in interleaved(events, seed):
            look = look_at_replicas(TARGET, as_endpoint(present, stable, promoted=True))
            assert not look.undone
            if look.promoted:
                said += 1
                assert present.at["deployments"] >= 12.15
                assert 12.14 <= present.at["pods"] < 20.4
                assert 12.06 <= present.at["endpointslices"] < 14.9
    assert said


def test_a_recorded_candidate_that_never_becomes_ready_is_never_ready_and_then_fails(
    serving_spec: Callable[..., ServingSpec],
) -> None:
    events, stable = recorded("deployment-stuck"), deployed(serving_spec, "1", 2, 2)
    events = [event for event in events if 2.7 < event.at < 18.8]
    for seed in range(40):
        failures = []
        for present in interleaved(events, seed):
            pods = [found for found in present.of("pods") if "564d765765" in str(found["metadata"]["labels"])]
            deployments = present.of("deployments")
            if not deployments:
                continue
            service = build_service(stable)
            service["metadata"]["resourceVersion"] = "1"
            labelled = [
                each | {"metadata": each["metadata"] | {"labels": version_labels("delay", "2")}}
                for each in pods
            ]
            look = look_at_replicas(
                TARGET,
                Objects(service=service, stable=stable, candidate=deployments[0], pods=labelled, slices=None),
            )
            assert not look.readiness.ready
            assert not look.promoted
            assert not look.undone
            failures.append(look.readiness.failure)
        assert failures[-1] is not None
