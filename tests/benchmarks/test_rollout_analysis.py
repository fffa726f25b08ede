"""Good rollouts that are undone, bad ones that are not, and who met them: against two rules of thumb.

Simulated time, an hour for each rollout, looks every 30 seconds; the functions that judge are the engine's.
Requests come independently of one another (Poisson), 1, 10 or 100 a second; latencies are lognormal, with
the stable version's 95th percentile estimated from 1,000 requests beforehand. Each version is also sent one
golden request a second, which counts like a client's, and the two answers to which are compared.

- ours: ``canary(10, 25, 50)``, 15 minutes each at least, 10 minutes watched at 100 percent; errors and
  latency with the default limits, disagreement with 2 percent, false alarms 1 percent in all.
- Argo Rollouts' rule: the same shares and holds; a threshold on each metric every 5 minutes,
  ``failureLimit: 3``.
- Flagger's rule: steps of 10 to 50 percent, thresholds every minute, the 5th failed check undoes.
- Both rules' thresholds know the base rate: errors 1 percentage point above it, 95th percentile a fifth above
  the stable version's, disagreement 2 percent.

A bad version that is not undone within the hour, promoted or still undecided, is missed. Twice no errors is
no fault, so that cell is left out. Command: ``./run bench -k rollout_analysis``, 50 rollouts in each cell;
with ``--full`` 1,000.
"""

from __future__ import annotations

import statistics
import zlib
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from helpers.simulated_rollouts import (
    ANALYSIS,
    BARELY,
    DISAGREES,
    GOOD,
    MORE_ERRORS,
    NIGHT,
    SLOW,
    Ending,
    Version,
    World,
    argo_rule,
    draw,
    flagger_rule,
    known_ratio,
    most,
    nighttrain_rule,
)
from nighttrain.providers.serving.analysis.judging import add, judge
from nighttrain.providers.serving.analysis.values import Counts, Sample, Tally, Verdict

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(7_200)]

RULES = ("ours", "Argo", "Flagger")
PER_SECOND, ERRORS = (1, 10, 100), (0.0, 0.001, 0.01)
GOOD_ONES = {"no other": GOOD, "barely tolerable": BARELY}
BAD_ONES = {"2x errors": MORE_ERRORS, "+50 % p95": SLOW, "5 % disagree": DISAGREES}


@dataclass(frozen=True)
class Outcome:
    """Of one rule in one cell."""

    undone: float
    promoted: float
    exposed: float


@pytest.fixture
def rollouts(request: pytest.FixtureRequest) -> int:
    return 1_000 if request.config.getoption("--full") else 50


def test_good_versions(show: Any, rollouts: int) -> None:
    rows, alarms = [], []
    for version, per_second, (name, world) in product(GOOD_ONES, PER_SECOND, worlds().items()):
        found, _ = outcomes(replace(world, per_second=per_second), GOOD_ONES[version], rollouts)
        alarms.append(found["ours"].undone)
        undone, promoted = (
            [share(getattr(found[rule], what)) for rule in RULES] for what in ("undone", "promoted")
        )
        rows.append((version, f"{per_second}", name, *undone, *promoted))
    columns = ("version", "requests/s", "errors", *heads("undone"), *heads("promoted"))
    title = f"good versions that were undone, and promoted within the hour; {rollouts:,} rollouts a row"
    show(title, columns, rows, "barely tolerable: a fifth slower, 2 % disagreement")
    assert max(alarms) * rollouts <= most(rollouts, ANALYSIS.false_alarms)


def test_bad_versions(show: Any, rollouts: int) -> None:
    rows = []
    for name, per_second, errors in product(BAD_ONES, PER_SECOND, ERRORS):
        version = BAD_ONES[name]
        if version is MORE_ERRORS and not errors:
            continue
        found, at_best = outcomes(World(per_second=per_second, errors=errors), version, rollouts)
        missed = [share(1 - found[rule].undone) for rule in RULES]
        least = share(1 - at_best) if version is MORE_ERRORS else ""
        exposed = [f"{found[rule].exposed:,.0f}" for rule in RULES]
        rows.append((name, f"{per_second}", share(errors), *missed, least, *exposed))
    columns = ("version", "requests/s", "errors", *heads("missed"), "at best", *heads("requests"))
    title = f"bad versions that were missed, and the requests that met them; {rollouts:,} rollouts a row"
    note = "requests: clients' in the hour, mean. At best: missed by a test that knows both rates beforehand"
    show(title, columns, rows, note)


def test_clients_requests_alone(show: Any, rollouts: int) -> None:
    """Golden requests are compared with one another and counted nowhere else."""
    rows, alarms = [], []
    for per_second, errors in product(PER_SECOND, ERRORS):
        world = World(per_second=per_second, errors=errors, golden_counted=False)
        good, _ = outcomes(world, GOOD, rollouts)
        alarms.append(good["ours"].undone)
        slow, _ = outcomes(world, SLOW, rollouts)
        twice, _ = outcomes(world, MORE_ERRORS, rollouts) if errors else (None, 0.0)
        rows.append(
            (
                f"{per_second}",
                share(errors),
                *(share(good[rule].undone) for rule in RULES),
                share(good["ours"].promoted),
                *(share(1 - twice[rule].undone) if twice else "" for rule in RULES),
                *(share(1 - slow[rule].undone) for rule in RULES),
            )
        )
    columns = ("requests/s", "errors", *heads("undone"), "promoted: ours", *heads("2x"), *heads("p95"))
    title = f"the same with clients' requests alone: good ones undone, bad ones missed; {rollouts:,} a row"
    show(title, columns, rows)
    assert max(alarms) * rollouts <= most(rollouts, ANALYSIS.false_alarms)


def test_requests_needed(show: Any, rollouts: int) -> None:
    """Until each verdict, in steady traffic of one share, looked at every 20 requests of the candidate."""
    rows = []
    for errors in (0.0, 0.001, 0.01, 0.05):
        for percent in (10, 50):
            times = {"the same": 1.0, "2x": 2.0, "5x": 5.0}
            cells = [needed(errors, each, percent, min(rollouts, 100)) for each in times.values()]
            rows.append((share(errors), f"{percent} %", *cells, needed(errors, None, percent, 20)))
    show(
        "the candidate's requests until the verdict, median",
        ("errors", "share", "the same: successful", "2x: failed", "5x: failed", "all fail: failed"),
        rows,
        "limit 1 %, a third of 1 % false alarms; -: no such verdict within 20,000 requests in half the runs",
    )


def worlds() -> dict[str, World]:
    """Base rates by their names."""
    steady = {share(errors): World(per_second=1, errors=errors) for errors in ERRORS}
    return {**steady, "1 %, 10 % for 15 min": World(per_second=1, errors=0.01, drift=NIGHT)}


def heads(what: str) -> list[str]:
    return [f"{what}: {rule}" for rule in RULES]


def outcomes(world: World, version: Version, rollouts: int) -> tuple[dict[str, Outcome], float]:
    """Of each rule on the same streams, and the share that a test which knew both rates would undo."""
    streams = draw(world, version, rollouts, seed=zlib.crc32(repr((world, version)).encode()))
    places = range(rollouts)
    endings = {
        "ours": [nighttrain_rule(streams, place) for place in places],
        "Argo": [argo_rule(streams, place, world) for place in places],
        "Flagger": [flagger_rule(streams, place, world) for place in places],
    }
    known = [known_ratio(streams, place, 2.0, ANALYSIS.false_alarms) for place in places]
    return {rule: summed_up(each) for rule, each in endings.items()}, statistics.mean(known)


def summed_up(endings: list[Ending]) -> Outcome:
    return Outcome(
        undone=statistics.mean(ending.undone is not None for ending in endings),
        promoted=statistics.mean(ending.promoted is not None for ending in endings),
        exposed=statistics.mean(ending.exposed for ending in endings),
    )


def needed(errors: float, times: float | None, percent: int, runs: int) -> str:
    """The candidate's requests until it failed, or succeeded where it is no worse; the median."""
    if not errors and times not in (None, 1.0):
        return ""
    rng = np.random.default_rng(13)
    wanted = Verdict.SUCCESSFUL if times == 1.0 else Verdict.FAILED
    rate = 1.0 if times is None else errors * times
    counts = sorted(_until(rng, wanted, rate, errors, percent) for _ in range(runs))
    middle = counts[len(counts) // 2]
    return f"{middle:,}" if middle < 20_000 else "-"


def _until(rng: Any, wanted: Verdict, rate: float, errors: float, percent: int) -> int:
    at_once, others = 20, round(20 * (100 - percent) / percent)
    tallies: tuple[Tally, ...] = ()
    for look in range(1, 1_001):
        sample = Sample(
            metric="errors",
            at=look,
            seconds=1,
            candidate=Counts(requests=at_once, bad=int(rng.binomial(at_once, rate))),
            stable=Counts(requests=others, bad=int(rng.binomial(others, errors))),
        )
        tallies = add(tallies, sample, share=percent / 100)
        if look % max(1, look // 20) == 0:  # Fewer looks later: a table of round numbers does not need all.
            found = judge(ANALYSIS.metrics[0], tallies, false_alarms=ANALYSIS.false_alarms / 3)
            if found.verdict is wanted:
                return look * at_once
    return 20_000


def share(value: float) -> str:
    return f"{value * 100:.3g} %"
