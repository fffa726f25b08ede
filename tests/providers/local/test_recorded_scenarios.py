"""The recordings of a real cluster, replayed: the same steps, or a difference that has a reason."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.recorded_histories import scenarios
from helpers.recording_replay import Replay, replay_all

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[3] / "docs" / "embedded-cluster-differences.md"


Steps = dict[tuple[str, str], list[tuple[Any, ...]]]
Edit = Callable[[Steps], Steps]


def _same(steps: Steps) -> Steps:
    return steps


@dataclass(frozen=True)
class Difference:
    """What is not as recorded, and why. The edits take it out of both sides; the rest must be the same.

    :param always: seen in every run, so that an entry that is not needed any more is found
    """

    what: str
    why: str
    recorded: Edit = _same
    own: Edit = _same
    always: bool = False


def without_answer(method: str, path: str) -> Edit:
    """Leave one call out of the comparison."""

    def edit(steps: Steps) -> Steps:
        kept = [each for each in steps["http", ""] if (each[0], each[1]) != (method, path)]
        return {**steps, ("http", ""): kept}

    return edit


def without_all_running(steps: Steps) -> Steps:
    """Pods without the moment in which all of several containers ran."""

    def all_run(step: tuple[Any, ...]) -> bool:
        return len(step) == 4 and len(step[3]) > 1 and all(state[1] == "running" for state in step[3])

    return {
        key: [step for step in each if not (key[0] == "pods" and all_run(step))]
        for key, each in steps.items()
    }


def without_empty_leaving(steps: Steps) -> Steps:
    """ReplicaSets without the moment between the beginning and the end of their deletion."""
    return {
        key: [step for step in each if not (key[0] == "replicasets" and step == ("deleting",))]
        for key, each in steps.items()
    }


ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    "deployment-rollout": (
        Difference(
            "A ReplicaSet without pods is deleted in one step, not marked first",
            "the recorded garbage collector still believed in pods that had just gone",
            without_empty_leaving,
            without_empty_leaving,
        ),
    ),
    "forbidden": (
        Difference(
            "Listing nodes is allowed",
            "there is no RBAC: whole namespaces can be forbidden, cluster-wide kinds cannot",
            without_answer("GET", "/api/v1/nodes"),
            without_answer("GET", "/api/v1/nodes"),
            always=True,
        ),
        Difference(
            "An access review answers 404, not 201",
            "there are no rules to ask for",
            without_answer("POST", ACCESS_REVIEWS),
            without_answer("POST", ACCESS_REVIEWS),
            always=True,
        ),
    ),
    "logs": (
        Difference(
            "The log of a pod just created answers 200, not 204",
            "a pod is bound at once here; 204 is the answer before it is bound",
            without_answer("GET", "/api/v1/namespaces/rec/pods/log/log"),
            without_answer("GET", "/api/v1/namespaces/rec/pods/log/log"),
        ),
    ),
    "pod-sidecar-lingers": (
        Difference(
            "Both containers are seen running",
            "a real kubelet writes a status less often than a container can start and end",
            without_all_running,
            without_all_running,
        ),
    ),
    "quota": (
        Difference(
            "Creating the ResourceQuota answers 404, not 201",
            "quotas are no objects: the test says how many pods the namespace may hold",
            without_answer("POST", "/api/v1/namespaces/rec/resourcequotas"),
            without_answer("POST", "/api/v1/namespaces/rec/resourcequotas"),
            always=True,
        ),
    ),
}

# What the embedded cluster leaves to a real one.
NOT_SERVED = {
    "custom-resources": "rules in CEL, columns and scale of custom objects",
    "job-indexed": "a limit of failures for each index",
    "node-taint": "taints",
    "preempted": "priorities and preemption",
    "server-side-apply": "server-side apply",
}
REPLAYED = [name for name in scenarios() if name not in NOT_SERVED]


@pytest.fixture(scope="module")
def replays(request: pytest.FixtureRequest) -> dict[str, Replay]:
    """All chosen scenarios, side by side: one after the other they would take minutes."""
    chosen = {
        item.callspec.params["scenario"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec")
    }
    return asyncio.run(replay_all([name for name in REPLAYED if name in chosen]))


def _all_steps(history: Any) -> Steps:
    return {**history.steps(), ("http", ""): history.answers()}


@pytest.mark.parametrize("scenario", REPLAYED)
def test_replayed_as_recorded(scenario: str, replays: dict[str, Replay]) -> None:
    replay = replays[scenario]
    recorded, own = _all_steps(replay.recorded), _all_steps(replay.seen)
    differences = DIFFERENCES.get(scenario, ())
    if any(each.always for each in differences):
        assert own != recorded, "as recorded by now: take it out of the table of differences"
    for difference in differences:
        recorded, own = difference.recorded(recorded), difference.own(own)
    for key in sorted({*recorded, *own}):
        assert own.get(key) == recorded.get(key), key
    assert not replay.late or differences, f"waited in vain before {replay.late}"


def test_differences_are_documented() -> None:
    """One row for each difference, with its reason."""
    rows = set(re.findall(r"^\| `([\w-]+)` \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE))
    expected = {
        (scenario, difference.what, difference.why)
        for scenario, differences in DIFFERENCES.items()
        for difference in differences
    }
    expected |= {(name, "Not replayed", f"it needs {what}") for name, what in NOT_SERVED.items()}
    assert rows == expected


def test_every_difference_is_of_a_recording() -> None:
    assert set(DIFFERENCES) <= set(REPLAYED)
    assert set(NOT_SERVED) <= set(scenarios())
