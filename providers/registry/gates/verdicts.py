"""The verdict of a gate, with the evidence of every rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any

from nighttrain.providers.measured import Measured, NoNumber, plain, read
from nighttrain.providers.registry.markdown import cell, row


class VerdictKind(Enum):
    """The answer of a gate, or of one rule of it."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Evidence:
    """One rule's finding. ``limit`` is what the candidate had to meet.

    Where there was no number stands ``None`` (nothing was measured) or a word such as "NaN" or "Infinity".

    :param reference: the group that the candidate was compared with, where it is not the champion
    :param reference_value: its measurement
    :param note: a few words for the table, where the numbers do not say it
    :param details: numbers of the rule's own: effect and interval of a statistical one
    """

    rule: str
    candidate: float | str | None
    champion: float | str | None
    limit: float | None
    verdict: VerdictKind
    sentence: str
    reference: str | None = None
    reference_value: float | str | None = None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def compared_with(self, group: str) -> Evidence:
        """The same finding, where what stands for the champion is another group's."""
        return replace(self, champion=None, reference=group, reference_value=self.champion)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "details": plain(dict(self.details)), "verdict": self.verdict.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """Read what :meth:`to_dict` wrote, now or before; fields that this version does not know are left
        out."""
        known = {item.name for item in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        return cls(**{**kept, "verdict": VerdictKind(values["verdict"])})

    def _cells(self) -> tuple[str, ...]:
        other = _cell(self.champion)
        if self.reference is not None:
            other = f"{_cell(self.reference_value)} ({self.reference})"
        return (self.rule, _cell(self.candidate), other, _cell(self.limit), self.verdict.value)


@dataclass(frozen=True)
class Verdict:
    """The gate's answer, with the evidence of every rule. Plain values when stored: see :meth:`to_dict`."""

    kind: VerdictKind
    evidence: tuple[Evidence, ...] = ()

    @property
    def accepted(self) -> bool:
        """True if the candidate may be promoted."""
        return self.kind is VerdictKind.ACCEPTED

    def let_through(self, reason: str) -> Verdict:
        """The verdict of a gate that was told to let the candidate pass; what its rules found stays in it."""
        if self.accepted:
            return self
        told = Evidence(
            rule="let through",
            candidate=None,
            champion=None,
            limit=None,
            verdict=VerdictKind.ACCEPTED,
            sentence=f"it was {self.kind.value}, and the gate was told to let it through: {reason}",
            note=f"was {self.kind.value}: {reason}",
        )
        return Verdict(VerdictKind.ACCEPTED, (*self.evidence, told))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": self.kind.value, "evidence": [item.to_dict() for item in self.evidence]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` wrote."""
        evidence = tuple(Evidence.from_dict(item) for item in values.get("evidence", ()))
        return cls(VerdictKind(values["kind"]), evidence)

    def summary(self) -> str:
        """One line: the verdict and the sentences that decided it."""
        deciding = [item.sentence for item in self.evidence if item.verdict is self.kind]
        return f"{self.kind.value}: {'; '.join(deciding)}"

    def table(self) -> str:
        """A text table, one line for each rule. "why" is a column where a rule notes something."""
        rows = self._rows([item.note for item in self.evidence])
        rows = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(line.rstrip() for line in lines)

    def markdown_table(self) -> str:
        """The table for a page, with every rule's sentence as its last column.

        Whatever stands in a cell stays in it: nothing becomes a link, a picture or HTML.
        """
        header, *rows = self._rows([item.sentence for item in self.evidence])
        ruler = "|" + "---|" * len(header)
        return "\n".join((row(*header), ruler, *(row(*map(cell, cells)) for cells in rows)))

    def _rows(self, last: list[str]) -> list[tuple[str, ...]]:
        header = ("rule", "candidate", "champion", "limit", "verdict")
        cells = [item._cells() for item in self.evidence]
        if not any(last):
            return [header, *cells]
        return [(*header, "why"), *((*row, words) for row, words in zip(cells, last, strict=True))]


def show_number(value: float) -> str:
    """Two decimals for the numbers people read most, four digits otherwise."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.2f}" if 10 <= abs(value) < 1e9 else f"{value:.4g}"


def stored(value: Measured | None) -> float | str | None:
    """A measurement as JSON keeps it: a number, a word such as "NaN", or ``None`` for none."""
    if isinstance(value, NoNumber):
        return None if value is NoNumber.MISSING else value.value
    return value


def _cell(value: float | str | None) -> str:
    measured = read(value)
    return measured.shown if isinstance(measured, NoNumber) else show_number(measured)
