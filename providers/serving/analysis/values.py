"""The values of an analysis: what was measured, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What the measurements so far say about the candidate."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    """Too little is known: no data, too few requests, or the interval spans the limit. Nothing follows."""
    ERROR = "error"
    """The measuring failed, which says nothing about the candidate."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Requests to one version, and how many of them went wrong (failed, were slow, disagreed)."""

    requests: int = 0
    bad: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(requests=self.requests + other.requests, bad=self.bad + other.bad)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one source measured for one metric over one interval.

    :param at: the interval's end, seconds since 1970
    :param seconds: its length
    :param candidate: ``None`` where the source counts nothing
    :param stable: over the same time; ``None`` where there is nothing to compare with
    :param value: of a metric that is a number and not a count; ``None`` is no data
    :param error: why nothing could be measured; the rest is then empty
    :param paired: candidate and stable answered the same requests, so both have as many
    :param both: where paired, the requests that went wrong at both
    :param candidate_bins: of a distance, how many of the candidate's predictions fell into each of a row of
        bins, from low to high (or into each class); the same bins in every sample, chosen beforehand
    :param stable_bins: the stable version's, in the same bins
    """

    metric: str
    at: float
    seconds: float
    candidate: Counts | None = None
    stable: Counts | None = None
    value: float | None = None
    error: str | None = None
    paired: bool = False
    both: int = 0
    candidate_bins: tuple[int, ...] = ()
    stable_bins: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tally:
    """All samples of one metric during one share of traffic, added up.

    :param share: the candidate's share of the requests, 0 to 1; within one tally it does not change
    :param paired: candidate and stable answered the same requests
    :param both: where paired, the requests that went wrong at both
    :param ratios: the evidence that the candidate is worse, from each interval's own split of the requests:
        what :func:`~nighttrain.providers.serving.analysis.sequences.log_ratios` gives, added up
    :param stakes: the evidence that it is tolerable: what
        :func:`~nighttrain.providers.serving.analysis.sequences.log_stakes` gives, added up
    :param values: of a metric that is a number, the newest last; at most :data:`KEPT_VALUES`
    :param candidate_bins: of a distance, how many predictions fell into each bin
    :param stable_bins: the stable version's, in the same bins
    :param errors: failed measurements in a row, up to now
    :param last_error: what the last of them said
    """

    share: float
    candidate: Counts = field(default_factory=Counts)
    stable: Counts | None = None
    paired: bool = False
    both: int = 0
    ratios: tuple[float, ...] = ()
    stakes: tuple[float, ...] = ()
    values: tuple[float | None, ...] = ()
    candidate_bins: tuple[int, ...] = ()
    stable_bins: tuple[int, ...] = ()
    errors: int = 0
    last_error: str = ""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Tally:
        """A tally from plain values, as ``dataclasses.asdict`` and JSON leave them."""
        stable = given.get("stable")
        lists = ("ratios", "stakes", "values", "candidate_bins", "stable_bins")
        read = {
            "candidate": Counts(**given["candidate"]),
            "stable": None if stable is None else Counts(**stable),
            **{name: tuple(given.get(name, ())) for name in lists},
        }
        return cls(**{**given, **read})


KEPT_VALUES = 50
"""More than any limit on numbers looks back, and small enough for the state of a rollout."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict and why.

    :param sentence: for people, with the numbers that decided
    :param evidence: effect, interval, n and limit, as plain values
    """

    metric: str
    verdict: Verdict
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)
