"""What is sent to Argo Rollouts has the shape of what recordings of a real cluster show to work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.replays import load
from nighttrain.providers.serving.backends.argo import moves
from nighttrain.providers.serving.backends.argo.look import read
from nighttrain.providers.serving.backends.argo.manifests import build_rollout, build_template, new_version
from nighttrain.providers.serving.backends.argo.objects import (
    ROLLOUT,
    STABLE_HASH,
    STABLE_TEMPLATE,
    Objects,
    is_observed,
)
from nighttrain.providers.serving.backends.argo.steps import is_open_pause, steps_for, weight_at
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.spec import (
    ENDPOINT_LABEL,
    FENCE_ANNOTATION,
    PERCENT_ANNOTATION,
    VERSION_LABEL,
)

if TYPE_CHECKING:
    from nighttrain.providers.serving.spec import ServingSpec

Json = dict[str, Any]
Make = Callable[..., "ServingSpec"]
RECORDINGS = Path(__file__).parents[1] / "recordings"
HASH = "rollouts-pod-template-hash"


def shape(value: Any, path: str = "") -> frozenset[str]:
    """The paths of a patch, what is written in a status, and nothing of a template but that it is one."""
    if path == ".spec.template":
        return frozenset({path})
    if isinstance(value, dict):
        inside = (shape(held, f"{path}.{key}") for key, held in value.items())
        return frozenset().union(*inside)
    return frozenset({f"{path} = {json.dumps(value) if isinstance(value, bool | None) else '(a value)'}"})


def recorded() -> dict[tuple[str | None, frozenset[str]], str]:
    """The shapes of the recorded patches of Rollouts that were accepted, by subresource."""
    found = {}
    for path in sorted(RECORDINGS.glob("rollouts-*.jsonl.gz")):
        for request in load(path).writes():
            _, _, below = request.path.partition("/rollouts/m")
            if request.method == "PATCH" and "/rollouts/" in request.path:
                assert request.content_type == "application/merge-patch+json"
                found[below.lstrip("/") or None, shape(request.body)] = f"{path.name} at {request.at}"
    return found


def rollout(version: str, weight: int, **status: Any) -> Json:
    """One that waits with version 2 as candidate beside version 1."""
    labels = {ENDPOINT_LABEL: "delay", VERSION_LABEL: version}
    steps = steps_for((25, 50), routed=True)
    index = next(i for i, step in enumerate(steps) if "pause" in step and weight_at(steps, i) == weight)
    state = {
        "phase": "Paused",
        "observedGeneration": "4",
        "currentPodHash": "h2",
        "stableRS": "h1",
        "currentStepIndex": index,
        "controllerPause": True,
        "pauseConditions": [{"reason": "CanaryPauseStep", "startTime": "2026-11-26T00:00:00Z"}],
    }
    return {
        "metadata": {"name": "delay", "generation": 4, "resourceVersion": "7"},
        "spec": {
            "replicas": 4,
            "strategy": {"canary": {"steps": steps, "trafficRouting": {"plugins": {}}}},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main"}]}},
        },
        "status": state | status,
    }


def replica_set(version: str, pod_hash: str, size: int) -> Json:
    labels = {ENDPOINT_LABEL: "delay", VERSION_LABEL: version, HASH: pod_hash}
    counts = {"replicas": size, "readyReplicas": size, "availableReplicas": size}
    return {
        "metadata": {"name": pod_hash, "generation": 1, "labels": labels},
        "spec": {"replicas": size, "template": {"metadata": {"labels": labels}}},
        "status": {"observedGeneration": 1, **counts},
    }


def objects(held: Json) -> Objects:
    return Objects(rollout=held, replica_sets=[replica_set("1", "h1", 4), replica_set("2", "h2", 1)])


TEMPLATE = {"metadata": {"labels": {VERSION_LABEL: "1"}}, "spec": {"containers": [{"name": "old"}]}}
TARGET = Target(
    endpoint="delay",
    namespace="default",
    model_name="m",
    candidate="2",
    stable="1",
    names={ROLLOUT: "delay", STABLE_HASH: "h1", STABLE_TEMPLATE: json.dumps(TEMPLATE)},
    shares=(25, 50),
)


def every_move() -> dict[str, moves.Move | None]:
    inconclusive = [{"reason": "InconclusiveAnalysisRun", "startTime": "2026-11-26T00:00:00Z"}]
    returning = rollout("1", 25, stableRS="h2", currentPodHash="h1")
    return {
        "promote": moves.towards(TARGET, objects(rollout("2", 25)), 50),
        "promote after an inconclusive analysis": moves.towards(
            TARGET, objects(rollout("2", 25, pauseConditions=inconclusive)), 50
        ),
        "promote the last": moves.onwards(TARGET, objects(rollout("2", 100))),
        "abort": moves.towards(TARGET, objects(rollout("2", 25)), 0),
        "the old template": moves.back(TARGET, objects(rollout("2", 0, abort=True, phase="Degraded"))),
        "the old template in full": moves.towards(TARGET, objects(returning), 0),
    }


def test_every_patch_has_the_shape_of_one_that_was_recorded(serving_spec: Make) -> None:
    known, used = recorded(), set()
    for name, move in every_move().items():
        assert move is not None, name
        found = ("status" if move.of_status else None, shape(move.body))
        assert found in known, (name, move)
        used.add(found)
    spec = serving_spec("2")
    made = build_rollout(spec, TARGET, 1, "delay", "route")
    assert (None, shape(new_version(build_template(spec, made), TARGET, made))) in known
    used.add((None, shape(new_version(build_template(spec, made), TARGET, made))))
    by_hand = {
        ("scale", shape({"spec": {"replicas": 8}})),
        (None, shape({"spec": {"paused": True}})),
        (None, shape({"spec": {"paused": False}})),
        ("status", shape({"status": {"abort": False}})),
    }
    assert set(known) - by_hand == used, "and each of those is one of ours"


def test_another_strategy_writes_its_steps_in_the_same_patch_and_nothing_else(serving_spec: Make) -> None:
    made = build_rollout(serving_spec("1"), TARGET, 1, "delay", None)
    patch = new_version(build_template(serving_spec("2"), made), replace(TARGET, shares=(10,)), made)
    steps = [{"setWeight": 1}, {"pause": {}}, {"setWeight": 10}, {"pause": {}}]
    assert patch["spec"]["strategy"] == {"canary": {"steps": steps}}
    assert set(new_version(build_template(serving_spec("2"), made), TARGET, made)["spec"]) == {"template"}


def test_the_first_rollout_has_the_shape_of_one_that_was_recorded(serving_spec: Make) -> None:
    for route, name in ((None, "rollouts-services"), ("route", "rollouts-routed")):
        body = build_rollout(serving_spec("1", replicas=4), TARGET, 1, "delay", route)
        request = next(
            each
            for each in load(RECORDINGS / f"{name}.jsonl.gz").writes()
            if each.method == "POST" and each.path.endswith("/rollouts")
        )
        ours, theirs = body["spec"]["strategy"]["canary"], request.body["spec"]["strategy"]["canary"]
        assert set(ours) == set(theirs)
        assert set(body["spec"]) - {"progressDeadlineSeconds"} == set(request.body["spec"])
        if route:
            (plugin,) = theirs["trafficRouting"]["plugins"]
            assert ours["trafficRouting"]["plugins"] == {
                plugin: {"httpRoute": "route", "namespace": "default"}
            }
        kinds = {key for step in theirs["steps"] for key in step}
        assert {key for step in ours["steps"] for key in step} - {"setCanaryScale"} == kinds


def test_the_steps_of_a_strategy() -> None:
    pause: Json = {"pause": {}}
    assert steps_for((), routed=False) == [{"setWeight": 1}, pause]
    assert steps_for((20,), routed=False) == [{"setWeight": 1}, pause, {"setWeight": 20}, pause]
    assert steps_for((), routed=True) == [
        {"setCanaryScale": {"weight": 100}},
        pause,
        {"setWeight": 100},
        pause,
    ]
    routed = steps_for((10, 60), routed=True)
    follow = {"setCanaryScale": {"matchTrafficWeight": True}}
    scale: Json = {"setCanaryScale": {"weight": 10}}
    assert routed[:5] == [scale, pause, {"setWeight": 10}, pause, follow]
    assert routed[5:] == [{"setWeight": 60}, pause, {"setWeight": 100}, pause]
    assert [weight_at(routed, index) for index in range(len(routed) + 1)] == [
        0,
        0,
        10,
        10,
        10,
        60,
        60,
        100,
        100,
        100,
    ]
    assert not is_open_pause([{"pause": {"duration": "3s"}}], 0)
    assert not is_open_pause(routed, len(routed))


@pytest.mark.parametrize(
    "changed",
    [
        {"currentPodHash": "h1"},
        {"observedGeneration": "2"},
        {"observedGeneration": 4},
        {"observedGeneration": ""},
        {"phase": "Progressing"},
        {"pauseConditions": None},
        {"currentStepIndex": 2},
        {"currentStepIndex": 99},
        {"abort": True},
        {"stableRS": "h2"},
    ],
    ids=str,
)
def test_nothing_is_promoted_while_the_status_is_not_sure_to_be_about_it(changed: Json) -> None:
    held = rollout("2", 25, **changed)
    assert moves.onwards(TARGET, objects(held)) is None
    held = rollout("2", 25)
    held["spec"]["paused"] = True
    assert moves.onwards(TARGET, objects(held)) is None
    assert moves.onwards(TARGET, Objects(rollout=rollout("2", 25))) is None, "whose hash it is is not known"
    assert moves.onwards(replace(TARGET, candidate="3"), objects(rollout("3", 25))) is None


def test_the_generation_is_a_text_and_moves_twice() -> None:
    held = rollout("2", 25)
    assert is_observed(held)
    for generation in (3, 5):
        held["metadata"]["generation"] = generation
        assert not is_observed(held)


def test_the_template_comes_back_once_the_stable_version_is_at_full_size() -> None:
    state: Json = {"abort": True, "phase": "Degraded"}
    small = [replica_set("1", "h1", 3), replica_set("2", "h2", 0)]
    assert moves.back(TARGET, Objects(rollout=rollout("2", 0, **state), replica_sets=small)) is None
    move = moves.back(TARGET, objects(rollout("2", 0, **state)))
    assert move is not None
    labels = {ENDPOINT_LABEL: None, VERSION_LABEL: "1"}
    assert move.body == {"spec": {"template": {"metadata": {"labels": labels}, "spec": TEMPLATE["spec"]}}}
    # A new template that Argo has not seen yet takes an abort back.
    unseen = rollout("2", 0, observedGeneration="2", currentPodHash="h1")
    early = moves.back(TARGET, objects(unseen))
    assert early is not None
    assert (early.of_status, early.body) == (False, move.body)


def test_who_asked_for_an_abort_is_told_apart() -> None:
    held = rollout("2", 0, abort=True, phase="Degraded", message="RolloutAborted: x")
    marks = {FENCE_ANNOTATION: "2/7", PERCENT_ANNOTATION: "50"}
    for percent in (50, 0):
        marks[PERCENT_ANNOTATION] = str(percent)
        held["metadata"]["annotations"] = marks
        look = read(TARGET, objects(held))
        assert (look.asked_percent, look.fence) == (percent, 7)
        assert "RolloutAborted: x" in str(look.readiness.failure)


def test_the_labels_of_a_selector_are_kept(serving_spec: Make) -> None:
    given = {"spec": {"selector": {"matchLabels": {"app": "team", VERSION_LABEL: "0"}}}}
    labels = build_template(serving_spec("2"), given)["metadata"]["labels"]
    assert (labels["app"], labels[VERSION_LABEL], labels[ENDPOINT_LABEL]) == ("team", "2", "delay")


def test_a_look_is_total() -> None:
    odd: list[Any] = [None, "", [], {}, 7, {"metadata": None, "spec": [], "status": "x"}]
    for value in odd:
        for key in ("spec", "status", "metadata"):
            held = rollout("2", 25) | {key: value}
            read(TARGET, objects(held))
        read(TARGET, Objects(rollout=rollout("2", 25), replica_sets=[{"metadata": value, "status": value}]))
