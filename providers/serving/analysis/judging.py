"""From what was measured to a verdict: pure functions, the same tallies give the same verdict.

The order of severity is failed, error, inconclusive, successful. What cannot be measured says nothing about
the candidate, and what was not measured is no number: neither ends in failed or in successful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nighttrain.providers.serving.analysis import distances, numbers_in_a_row, rates, wording
from nighttrain.providers.serving.analysis.metrics import LET_THROUGH, Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.tallies import add
from nighttrain.providers.serving.analysis.values import Judgement, Tally, Verdict

__all__ = ["add", "false_alarms_each", "judge", "judge_all", "overall"]

_SEVERITY = (Verdict.FAILED, Verdict.ERROR, Verdict.INCONCLUSIVE)


def judge_all(analysis: Analysis, tallies: Mapping[str, Sequence[Tally]]) -> tuple[Judgement, ...]:
    """The verdict on each metric; the false alarms are shared out among those that are tests.

    :param tallies: by the metric's name; none is no data
    """
    each = false_alarms_each(analysis)
    return tuple(
        judge(
            metric,
            tallies.get(metric.name, ()),
            false_alarms=each,
            let_through=analysis.let_through,
        )
        for metric in analysis.metrics
    )


def false_alarms_each(analysis: Analysis) -> float:
    """The probability of a false alarm that each test is given; numbers are no tests."""
    tests = sum(metric.kind is not Kind.NUMBER for metric in analysis.metrics)
    return analysis.false_alarms / max(tests, 1)


def judge(
    metric: Metric, tallies: Sequence[Tally], *, false_alarms: float, let_through: float = LET_THROUGH
) -> Judgement:
    """The verdict on one metric, after all that was measured so far.

    :param false_alarms: the probability that a version which is no worse is ever said to have failed
    :param let_through: the probability that a version beyond the limit is ever said to be successful
    """
    if tallies and tallies[-1].errors:
        return _blind(metric, tallies[-1])
    if metric.kind is Kind.NUMBER:
        return numbers_in_a_row.judge(metric, tallies)
    if metric.kind is Kind.DISTANCE:
        return distances.judge(metric, tallies, false_alarms=false_alarms, let_through=let_through)
    found = rates.compare(metric, tallies)
    verdict = rates.decide(metric, found, false_alarms=false_alarms, let_through=let_through)
    return wording.of_rates(metric, found, verdict, false_alarms=false_alarms, let_through=let_through)


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """What all metrics say together; with none of them nothing is known."""
    found = {judgement.verdict for judgement in judgements}
    if not found:
        return Verdict.INCONCLUSIVE
    return next((verdict for verdict in _SEVERITY if verdict in found), Verdict.SUCCESSFUL)


def _blind(metric: Metric, newest: Tally) -> Judgement:
    times = f"{newest.errors} times in a row" if newest.errors > 1 else "once"
    sentence = f"{metric.name} could not be measured, {times}: {newest.last_error}"
    evidence = {"errors": newest.errors, "last_error": newest.last_error}
    return Judgement(metric=metric.name, verdict=Verdict.ERROR, sentence=sentence, evidence=evidence)
