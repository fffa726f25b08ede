"""How often the statistical rule gives a verdict where nothing differs: its type-I error on real flights.

Days. Every four weeks of 2013 a candidate and a champion are trained (28 days of flights, the champion's end
three days earlier) and score the flights of the next 28 days, as does the baseline: 308 days, each with the
sum of every model's absolute errors. These days are the whole world here: the candidate's sums are moved so
that its error is exactly that of the other in it.
Samples. Whole days are drawn with replacement, 10, 14 and 28 at a time, 1,000 times, and judged with
``mae <= champion (paired)`` and ``mae <= baseline (paired)``. Whatever is accepted or rejected is an error;
2.5 % of each are nominal. Intervals are Wilson's at 95 %.
Command: ``./run bench -k gate_errors``.
"""

from __future__ import annotations

import json
import math
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from nighttrain.providers.registry.gates import Recorded, judge_recorded
from nighttrain.providers.registry.gates.recorded_files import PairedLosses
from nighttrain.providers.registry.gates.verdicts import VerdictKind

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3_600)]

RESAMPLES = 1_000
SIZES = (10, 14, 28)
KEPT = Path(__file__).parents[1] / "data" / "flight_days.json"


def test_type_one_error(show: Any) -> None:
    days = flight_days()
    kept = json.loads(KEPT.read_text("utf-8"))
    assert days["days"] == kept["days"]
    assert days["sums"]["champion"] == pytest.approx(kept["sums"]["champion"], rel=0.1)
    rows = [
        (other, size, *(f"{share(count)}" for count in verdicts(days, other, size)))
        for other in ("champion", "baseline")
        for size in SIZES
    ]
    show(
        f"verdicts where nothing differs, {RESAMPLES:,} resamples of whole days",
        ("compared with", "days", "accepted", "rejected"),
        rows,
        "nominal: 2.5 % each; in brackets Wilson's interval at 95 %",
    )


def flight_days() -> dict[str, Any]:
    """Real flights by day, with every model's sum of absolute errors."""
    import pandas as pd

    from nighttrain.dags.airline_delay import flights, model

    sources = flights.read_sources()

    def trained(night: date) -> Any:
        frame = flights.training_frame(sources, night, 28)
        return model.build(model.Hyperparameters()).fit(flights.features(frame), frame[flights.TARGET])

    tables = []
    for period in range(11):
        night = date(2013, 2, 1) + timedelta(days=28 * period)
        candidate, champion = trained(night), trained(night - timedelta(days=3))
        held_out = flights.held_out_frame(sources, night, 28)
        rows, actual = flights.features(held_out), held_out[flights.TARGET]
        losses = {
            "candidate": abs(actual - candidate.predict(rows)),
            "champion": abs(actual - champion.predict(rows)),
            "baseline": abs(actual - held_out["dep_delay"]),
        }
        table = pd.DataFrame({"day": flights.scheduled_days(held_out), "rows": 1, **losses})
        tables.append(table.groupby("day").sum().reset_index())
    whole = pd.concat(tables, ignore_index=True)
    return {
        "days": whole["day"].tolist(),
        "rows": whole["rows"].tolist(),
        "sums": {name: whole[name].tolist() for name in ("candidate", "champion", "baseline")},
    }


def verdicts(days: dict[str, Any], other: str, size: int, resamples: int = RESAMPLES) -> tuple[int, int]:
    """How many resamples are accepted, and how many rejected."""
    generator = random.Random(2013)
    sums, rows = days["sums"], days["rows"]
    mean = (sum(sums["candidate"]) - sum(sums[other])) / sum(rows)
    kinds = []
    for _ in range(resamples):
        drawn = [generator.randrange(len(rows)) for _ in range(size)]
        paired = PairedLosses(
            tuple(str(place) for place in range(size)),
            tuple(rows[day] for day in drawn),
            {
                "candidate": tuple(sums["candidate"][day] - mean * rows[day] for day in drawn),
                other: tuple(sums[other][day] for day in drawn),
            },
        )
        recorded = Recorded({"candidate": {}, other: {}}, has_champion=True, paired={"mae": paired})
        kinds.append(judge_recorded([f"mae <= {other} (paired)"], recorded).kind)
    return kinds.count(VerdictKind.ACCEPTED), kinds.count(VerdictKind.REJECTED)


def share(count: int, of: int = RESAMPLES) -> str:
    """A share in per cent with Wilson's interval."""
    z, found = 1.959964, count / of
    middle = (found + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(found * (1 - found) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return f"{found * 100:.1f} % ({(middle - half) * 100:.1f} to {(middle + half) * 100:.1f})"
