"""How long each kind of wait may take."""

from __future__ import annotations

from typing import Any

from nighttrain.providers.attempts.waiting import Limits
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
    Phase,
    WaitFor,
)
from nighttrain.providers.kubernetes.values.timeouts import Timeouts


def told(kind: str, **fields: Any) -> Observation:
    """An observation of a wait of some kind."""
    return Observation(Phase.WAITING, waiting_for=WaitFor[kind], **fields)


def observation(kind: OutcomeKind | None, grace: int = 0) -> Observation:
    return Observation(Phase.WAITING, permanent_wait=kind, grace_seconds=grace)


def test_the_start_up_budget_counts_only_time_without_progress() -> None:
    budget = Limits(Timeouts(100))
    stuck = observation(OutcomeKind.IMAGE_PULL)
    assert budget.left(stuck, 0) == 100
    assert budget.left(observation(OutcomeKind.UNKNOWN), 60) == 40  # reasons come and go: still not started
    assert budget.left(observation(None), 90) is None  # a queue: healthy
    assert budget.left(stuck, 1000) == 100
    assert budget.left(stuck, 1100) == 0
    assert budget.left(observation(OutcomeKind.EVICTED, grace=30), 1100) == 30


def test_each_kind_of_wait_has_a_bound_of_its_own() -> None:
    limits = Limits(Timeouts(startup=10, schedule=20, queue=30))
    assert limits.left(told("QUOTA"), 0) == 30
    assert limits.left(told("NODE"), 25) == 20
    assert limits.left(told("START"), 40) == 10
    assert limits.left(told("START"), 49) == 1
    assert limits.seconds(told("NODE")) == 20
    other = Limits(Timeouts(10, sidecar_grace=3, node_lost=50))
    assert other.left(told("SIDECARS"), 0) == 3
    assert other.left(told("NODE_BACK", grace_seconds=30), 0) == 80
    assert other.seconds(told("NODE_BACK")) == 50


def test_a_queue_without_a_bound_is_waited_for_and_one_that_never_grants_is_not() -> None:
    limits = Limits(Timeouts(startup=10))
    assert limits.left(told("QUOTA"), 0) is None
    assert limits.left(told("QUOTA"), 1e6) is None
    assert limits.left(told("QUOTA", permanent_wait=OutcomeKind.QUOTA_WAIT), 1e6) is not None
    assert Limits(Timeouts(startup=10)).left(told("NODE"), 5) == 10


def test_a_wait_that_began_before_this_process_is_not_younger_for_it() -> None:
    limits = Limits(Timeouts(startup=100))
    since = "2026-11-24T00:00:00Z"
    began = 1795478400.0
    assert limits.left(told("START", since=since), 5, began + 70) == 30
    assert limits.left(told("START", since=since), 5, None) == 100
    assert limits.left(told("START", since="not a time"), 5, began) == 100
