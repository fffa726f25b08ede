"""Faults by chance, which a seed repeats: what a careful client survives."""

from __future__ import annotations

import random
from typing import Any

from nighttrain.providers.local.cluster.faults.faults import Fault, FaultPlan

VERBS = ("get", "list", "create", "patch", "delete", "watch")

# Long enough to be seen, short enough for a test that really waits.
STALL_SECONDS = 0.2


def random_plan(seed: int, number: int, *, within: int = 20) -> FaultPlan:
    """A plan of transient faults; the same seed makes the same plan.

    :param within: each strikes one of the first so many calls of its verb
    """
    chance = random.Random(seed)
    return FaultPlan([_random_fault(chance, chance.choice(VERBS), within) for _ in range(number)])


def _random_fault(chance: random.Random, verb: str, within: int) -> Fault:
    aim: dict[str, Any] = {"verb": verb, "nth": chance.randint(1, within)}
    if verb == "watch":
        after = chance.randint(0, 3)
        return chance.choice(
            (
                Fault.cut(after=after, **aim),
                Fault.cut(after=after, torn=True, **aim),
                Fault.expire(after=after, **aim),
                Fault.answer(503, **aim),
                Fault.compact(**aim),
            )
        )
    return chance.choice(
        (
            Fault.answer(429, retry_after=1, **aim),
            Fault.answer(500, **aim),
            Fault.answer(503, **aim),
            Fault.drop_reply(**aim),
            Fault.reset(**aim),
            Fault.stall(STALL_SECONDS, **aim),
        )
    )
