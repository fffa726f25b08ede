"""What is on record about a candidate and those it is compared with: all that rules read. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nighttrain.providers.registry.gates.recorded_files import CheckResult, PairedLosses
    from nighttrain.providers.registry.gates.signatures import Signature

CANDIDATE = "candidate"
CHAMPION = "champion"
NAMED_VERSION = "version:"
NAMED_ALIAS = "alias:"


class Source(StrEnum):
    """A place that only some rules read, so that a gate asks for it only where one of them is there."""

    SLICES = "slices.json"
    PAIRED_LOSSES = "paired_losses.json"
    CHECKS = "checks.json"
    SIGNATURES = "signatures"
    ARTIFACT_BYTES = "artifact_bytes"
    DATA_AGE = "data_age"
    TAGS = "tags"


@dataclass(frozen=True)
class Recorded:
    """The records that a gate judges.

    :param groups: measurements by group; a metric of one slice is named ``mae[carrier=AA]``
    :param has_champion: false when there is none yet, whatever was measured
    :param signatures: by group
    :param tags: of the candidate's version
    :param missing: why a source has nothing, in words to follow a colon
    """

    groups: Mapping[str, Mapping[str, Any]]
    has_champion: bool
    paired: Mapping[str, PairedLosses] = field(default_factory=dict)
    checks: Mapping[str, CheckResult] = field(default_factory=dict)
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[Source, str] = field(default_factory=dict)

    def of(self, group: str) -> Mapping[str, Any] | None:
        """The measurements of a group; ``None`` where it was not measured, or is no champion."""
        if group == CHAMPION and not self.has_champion:
            return None
        return self.groups.get(group)

    def why_missing(self, source: Source) -> str:
        """The reason, ready to be appended to a sentence; empty where none is known."""
        reason = self.missing.get(source)
        return f": {reason}" if reason else ""
