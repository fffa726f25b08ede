"""The state of a rollout in its object: what cannot be read is told, and it fits however long it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.errors import ServingError
from nighttrain.providers.serving.analysis.golden import MAX_CHARACTERS, Golden
from nighttrain.providers.serving.analysis.metrics import MAX_METRICS, Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.values import Counts, Judgement, Tally, Verdict
from nighttrain.providers.serving.rollouts.state import Point
from nighttrain.providers.serving.strategy import canary

if TYPE_CHECKING:
    from helpers.simulated_serving import World

    from .conftest import Rollouts

# https://kubernetes.io/docs/concepts/configuration/configmap/: a ConfigMap cannot exceed 1 MiB.
MOST = 1 << 20


@pytest.mark.parametrize("metrics", [1, 3, MAX_METRICS])
async def test_the_state_of_a_long_rollout_fits_into_its_object(rollouts: Rollouts, metrics: int) -> None:
    names = [f"{'m' * 40}{number:02}" for number in range(metrics)]
    measured = tuple(Metric(name=name, kind=Kind.ERRORS, source={"type": "traffic"}) for name in names)
    strategy = replace(
        canary(10, 50, analysis=Analysis(metrics=measured)),
        golden=Golden(requests=("x" * (MAX_CHARACTERS - 200),)),
    )
    state = await rollouts.begin(strategy=strategy)
    assert state is not None
    values = dict.fromkeys(names, (0.12345678901234567, 0.12345678901234567))
    for number in range(2000):
        state = state.with_point(
            Point(at=1764201600.123456 + number, percent=33.3, verdict=Verdict.INCONCLUSIVE, values=values)
        )
    for number in range(200):
        state = state.saying(1764201600.123456 + number, "x" * 10_000)
    counts = Counts(requests=10**9, bad=10**8)
    tally = Tally(
        share=0.1, candidate=counts, stable=counts, ratios=(-12345.678901234567,) * 20, stakes=(1.5,) * 20
    )
    full = replace(
        state,
        tallies=dict.fromkeys(names, (tally,) * 3),
        judgements=tuple(
            Judgement(metric=name, verdict=Verdict.INCONCLUSIVE, sentence="x" * 500) for name in names
        ),
        memory={name: {"pods": {f"{pod:036}/0": [10**6] * 6 for pod in range(10)}} for name in names},
    )
    assert len(full.to_json().encode()) < MOST
    assert len(full.points) >= 24


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: data | {"state": "edited by hand"},
        lambda data: data | {"state": json.dumps(json.loads(data["state"]) | {"of_another_release": 1})},
        lambda data: data | {"state": json.dumps(json.loads(data["state"]) | {"phase": "sideways"})},
        lambda data: data | {"order": "[]"},
    ],
)
async def test_a_state_that_cannot_be_read_is_named_with_what_to_do(
    rollouts: Rollouts, world: World, break_it: object
) -> None:
    await rollouts.begin()
    kept = world.objects["delay-rollout"]
    kept["data"] = break_it(kept["data"])  # type: ignore[operator]
    with pytest.raises(ServingError, match="kubectl delete configmap delay-rollout -n default"):
        await rollouts.begin()
