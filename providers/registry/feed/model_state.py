"""What one poll saw of a registered model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nighttrain.providers.registry.feed.authors import authored_at, known_author

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.versions import ModelVersion

WATCHED_STAGES = ("Staging", "Production", "Archived")
"""Not ``None``: every new version starts there, which the change "version" already says."""

TagFilter = tuple[str, str]
"""A tag's key and value."""


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What the feed keeps of a version: little, because there are many. Times are milliseconds since 1970.

    :param author: who promoted it last, as nighttrain's own tags say
    :param authored: when that was
    """

    stage: str
    updated: int
    created: int
    ready: bool = True
    author: str | None = None
    authored: int | None = None

    @classmethod
    def of(cls, version: ModelVersion) -> KnownVersion:
        """Read a version as MLflow reports it."""
        return cls(
            stage=version.stage,
            updated=version.last_updated,
            created=version.created,
            ready=version.status in ("", "READY"),
            author=known_author(version),
            authored=authored_at(version),
        )


@dataclass(frozen=True)
class ModelState:
    """One model at one poll. A model that is not there holds nothing.

    :param created: MLflow's time of the model, in ms: tells a model that was deleted and made again
    :param updated: MLflow's time of its last update, in ms; it moves with versions and stages, not with
        aliases
    :param aliases: alias -> version
    :param versions: every version by its number; ``None`` where nobody asked for versions or stages
    :param tagged: the versions that carry a tag, for each filter that somebody asked for
    :param latest: versions as they came with the model, by number: of each stage the highest
    """

    name: str
    created: int = 0
    updated: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, KnownVersion] | None = None
    tagged: Mapping[TagFilter, tuple[str, ...]] = field(default_factory=dict)
    latest: Mapping[str, KnownVersion] = field(default_factory=dict)

    def holders(self, stage: str) -> tuple[str, ...]:
        """The versions in a stage, the one that was updated last first, which a transition does."""
        known = self.versions or {}
        held = [number for number, version in known.items() if version.stage == stage]
        return tuple(sorted(held, key=lambda number: (-known[number].updated, -int(number))))

    @property
    def numbers(self) -> list[int]:
        """Every version's number, the lowest first."""
        return sorted(int(number) for number in self.versions or {})

    def known(self, number: str) -> KnownVersion | None:
        """What is known of a version: at best what came with this very poll."""
        return self.latest.get(number) or (self.versions or {}).get(number)

    def is_ready(self, number: str) -> bool:
        """Tell whether a version can be used. MLflow's own stores make no other."""
        known = self.known(number)
        return known is None or known.ready


def holders_by_stage(versions: Mapping[str, KnownVersion]) -> dict[str, list[str]]:
    """The watched stages' holders, the one that was updated last first."""
    held: dict[str, list[str]] = {}
    for number, version in versions.items():
        if version.stage in WATCHED_STAGES:
            held.setdefault(version.stage, []).append(number)
    for numbers in held.values():
        numbers.sort(key=lambda number: (-versions[number].updated, -int(number)))
    return held
