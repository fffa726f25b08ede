"""What one poll saw of a registered model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.versions import ModelVersion

WATCHED_STAGES = ("Staging", "Production", "Archived")
"""Not ``None``: every new version starts there, which the change "version" already says."""

TagFilter = tuple[str, str]
"""A tag's key and value."""


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What the feed keeps of a version: little, because there are many. Times are milliseconds since 1970."""

    stage: str
    updated: int
    created: int
    ready: bool = True

    @classmethod
    def of(cls, version: ModelVersion) -> KnownVersion:
        """Read a version as MLflow reports it."""
        return cls(
            stage=version.stage,
            updated=version.last_updated,
            created=version.created,
            ready=version.status in ("", "READY"),
        )


class Versions(dict[str, KnownVersion]):
    """Every version of a model by its number. Made anew when one changes, so that what follows is found out
    once for all who ask.
    """

    @cached_property
    def by_stage(self) -> Mapping[str, tuple[str, ...]]:
        """The watched stages' holders, the one that was updated last first."""
        held: dict[str, list[str]] = {}
        for number, version in self.items():
            if version.stage in WATCHED_STAGES:
                held.setdefault(version.stage, []).append(number)
        return {
            stage: tuple(sorted(numbers, key=lambda number: (-self[number].updated, -int(number))))
            for stage, numbers in held.items()
        }

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers, the lowest first."""
        return sorted(int(number) for number in self)

    @cached_property
    def newest(self) -> int:
        """MLflow's time of the last update of any, in ms since 1970."""
        return max((version.updated for version in self.values()), default=0)

    @cached_property
    def are_ready(self) -> bool:
        """Tell whether all can be used."""
        return all(version.ready for version in self.values())


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
    versions: Versions | None = None
    tagged: Mapping[TagFilter, tuple[str, ...]] = field(default_factory=dict)
    latest: Mapping[str, KnownVersion] = field(default_factory=dict)

    def holders(self, stage: str) -> tuple[str, ...]:
        """The versions in a stage, the one that was updated last first, which a transition does."""
        return self.versions.by_stage.get(stage, ()) if self.versions else ()

    @property
    def numbers(self) -> list[int]:
        """Every version's number, the lowest first."""
        return self.versions.numbers if self.versions else []

    def known(self, number: str) -> KnownVersion | None:
        """What is known of a version: at best what came with this very poll."""
        return self.latest.get(number) or (self.versions or Versions()).get(number)

    def is_ready(self, number: str) -> bool:
        """Tell whether a version can be used. MLflow's own stores make no other."""
        known = self.known(number)
        return known is None or known.ready
