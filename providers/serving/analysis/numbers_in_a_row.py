"""Verdicts on a number that a query or a check gives: so many in a row beyond the limit are a failure.

A number has no size of sample, so this is a rule of thumb: looking more often does raise its false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nighttrain.providers.serving.analysis.values import Judgement, Tally, Verdict

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.metrics import Metric


def judge(metric: Metric, tallies: Sequence[Tally]) -> Judgement:
    """Failed after ``failures`` in a row, successful if the newest is within the limit. A gap is no data."""
    values = [value for tally in tallies for value in tally.values]
    newest = tallies[-1].values[-1] if tallies and tallies[-1].values else None
    row = _row(metric, values)
    if newest is None:
        verdict, sentence = Verdict.INCONCLUSIVE, f"{metric.name}: no number."
    elif not row:
        verdict = Verdict.SUCCESSFUL
        sentence = f"{metric.name} is {newest:.6g}, within its limit of {metric.limit:.6g}."
    else:
        verdict = Verdict.FAILED if row >= metric.failures else Verdict.INCONCLUSIVE
        times = f"{row} in a row; {metric.failures} are a failure"
        sentence = f"{metric.name} is {newest:.6g}, {metric.worse} its limit of {metric.limit:.6g} ({times})."
    evidence = {"value": newest, "limit": metric.limit, "worse": metric.worse, "in_a_row": row}
    return Judgement(metric=metric.name, verdict=verdict, sentence=sentence, evidence=evidence)


def _row(metric: Metric, values: Sequence[float | None]) -> int:
    """How many of the newest values, without a gap, are beyond the limit."""
    row = 0
    for value in reversed(values):
        if value is None or not (value > metric.limit if metric.worse == "above" else value < metric.limit):
            break
        row += 1
    return row
