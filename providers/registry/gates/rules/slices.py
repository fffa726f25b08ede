"""A rule that has to hold in every slice of a dimension that is large enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.measured import NoNumber, read
from nighttrain.providers.registry.gates.recorded import CANDIDATE, Recorded, Source
from nighttrain.providers.registry.gates.rules.base import (
    MetricRule,
    NoChampion,
    Rule,
    check_count,
    not_measured,
)
from nighttrain.providers.registry.gates.rules.comparisons import BetterThan, NotWorseThan
from nighttrain.providers.registry.gates.rules.limits import AtLeast, AtMost
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind

COUNTED = "rows"
_SHOWN = 5

SliceableRule = AtMost | AtLeast | NotWorseThan | BetterThan


@dataclass(frozen=True)
class EverySlice(Rule):
    """``each`` holds in every slice with at least ``minimum_rows`` rows; its metric is ``mae[carrier=*]``."""

    each: SliceableRule
    minimum_rows: int = 1
    kind: ClassVar[str] = "every_slice"

    def __post_init__(self) -> None:
        if not isinstance(self.each, AtMost | AtLeast | NotWorseThan | BetterThan):
            raise ConfigurationError("each", self.each, "give a limit or a comparison")
        if not self.each.metric.endswith("=*]"):
            raise ConfigurationError("each", self.each.metric, "name the dimension: mae[carrier=*]")
        check_count("minimum_rows", self.minimum_rows)

    @property
    def metric(self) -> str:  # type: ignore[override]
        """With the star in it."""
        return self.each.metric

    @property
    def against(self) -> str | None:  # type: ignore[override]
        """As of the rule for each slice."""
        return self.each.against

    def text(self) -> str:
        shown = self.each.text()
        return shown if self.minimum_rows == 1 else f"{shown} (rows >= {self.minimum_rows})"

    def to_dict(self) -> dict[str, Any]:
        return {"rule": self.kind, "each": self.each.to_dict(), "minimum_rows": self.minimum_rows}

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.SLICES})

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        if self.needs_champion and not recorded.has_champion:
            return self.without_champion(no_champion)
        reference = recorded.of(self.against) if self.against else {}
        if reference is None:
            return self.inconclusive(not_measured(str(self.against), recorded))
        candidate = recorded.of(CANDIDATE) or {}
        name, dimension = self._address()
        large, small, unknown = self._by_size((candidate, reference), dimension)
        if unknown:
            return self.inconclusive(f"slices without a number of {COUNTED}: {_listed(unknown)}")
        if not large:
            why = recorded.why_missing(Source.SLICES)
            found = f"{len(small)} smaller ones" if small else "none at all"
            return self.inconclusive(
                f"no slice by {dimension} has {self.minimum_rows:,} {COUNTED} (found: {found}){why}"
            )
        found_in = {
            value: replace(self.each, metric=f"{name}[{dimension}={value}]").judge(recorded, no_champion)
            for value in large
        }
        return self._together(found_in, len(small), dimension)

    def _address(self) -> tuple[str, str]:
        name, _, place = self.metric.partition("[")
        return name, place.partition("=")[0]

    def _by_size(
        self, groups: Iterable[Mapping[str, Any]], dimension: str
    ) -> tuple[list[str], list[str], list[str]]:
        """The slices that are large enough, too small, and of unknown size. The smaller number counts."""
        sizes: dict[str, list[float | NoNumber]] = {}
        start = f"[{dimension}="
        for measured in groups:
            values = {key.partition(start)[2][:-1] for key in measured if start in key and key[-1] == "]"}
            for value in values:
                sizes.setdefault(value, []).append(read(measured.get(f"{COUNTED}{start}{value}]")))
        unknown = sorted(v for v, found in sizes.items() if any(isinstance(n, NoNumber) for n in found))
        known = {
            value: min(size for size in found if not isinstance(size, NoNumber))
            for value, found in sizes.items()
            if value not in unknown
        }
        large = sorted(v for v, rows in known.items() if rows >= self.minimum_rows)
        return large, sorted(set(known) - set(large)), unknown

    def _together(self, found: Mapping[str, Evidence], small: int, dimension: str) -> Evidence:
        left_out = f"; {small} with fewer rows left out" if small else ""
        for kind in (VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE):
            deciding = [each for each in found.values() if each.verdict is kind]
            if deciding:
                sentences = "; ".join(each.sentence for each in deciding[:_SHOWN])
                more = f"; and {len(deciding) - _SHOWN} more" if len(deciding) > _SHOWN else ""
                worst = deciding[0]
                note = f"{len(deciding)} of {len(found)} slices by {dimension}"
                return replace(
                    worst, rule=self.text(), sentence=f"{clip(sentences, 1_500)}{more}{left_out}", note=note
                )
        sentence = f"{self.each.text()} holds in {len(found)} slices by {dimension}{left_out}"
        return Evidence(
            self.text(), None, None, None, VerdictKind.ACCEPTED, sentence, note=f"{len(found)} slices"
        )


def is_every_slice(rule: MetricRule) -> bool:
    """True if a rule's metric has the star of every slice."""
    return rule.metric.endswith("=*]")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
