"""Conditions on the registry, as plain values that travel as a trigger's arguments."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, ModelNotFoundError, ModelVersionNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.registry.feed.changes import Interest
    from nighttrain.providers.registry.feed.model_state import ModelState
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion


class Awaited(StrEnum):
    """The kinds of condition: a stage is held, an alias is held, a version is there, a version has a tag."""

    STAGE = "stage"
    ALIAS = "alias"
    VERSION = "version"
    TAG = "tag"


@dataclass(frozen=True, kw_only=True)
class RegistryCondition:
    """A model version in a stage, behind an alias, with a tag, or simply there.

    :param model_name: the registered model
    :param awaited: which of the four
    :param key: the stage, the alias or the tag's key; empty for ``VERSION``
    :param value: the tag's value
    :param version: the version it has to be, or None for any
    :param newer_than: only versions with a higher number count
    """

    model_name: str
    awaited: Awaited
    key: str = ""
    version: str | None = None
    newer_than: str | None = None
    value: str | None = None

    def __post_init__(self) -> None:
        for field in ("version", "newer_than"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"[1-9][0-9]{0,9}", str(value)):
                raise ConfigurationError(field, value, "must be a version number such as 3")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {**asdict(self), "awaited": self.awaited.value}
        if self.value is None:  # as it was before there were tags
            del values["value"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RegistryCondition:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**values, "awaited": Awaited(values["awaited"])})

    def __str__(self) -> str:
        wanted = f"version {self.version}" if self.version else "a version"
        newer = f" newer than {self.newer_than}" if self.newer_than else ""
        where = {
            Awaited.STAGE: f" in stage {self.key}",
            Awaited.ALIAS: f" behind alias {self.key}",
            Awaited.VERSION: "",
            Awaited.TAG: f" with tag {self.key} = {self.value}",
        }[self.awaited]
        return f"{wanted}{newer} of {self.model_name}{where}"

    async def holder(self, registry: ModelRegistry) -> ModelVersion | None:
        """The version that fulfils the condition now, or None."""
        try:
            found = await self._look(registry)
        except (ModelNotFoundError, ModelVersionNotFoundError):
            return None
        if found is None or found.status != "READY" or not self._counts(found.version):
            return None
        return found

    @property
    def interest(self) -> Interest:
        """What the poll has to look at."""
        from nighttrain.providers.registry.feed.changes import LATEST, ChangeKind, Interest

        return Interest(self.model_name, ChangeKind(self.awaited.value), self.key or LATEST, self.value)

    def fulfilled_by(self, state: ModelState) -> str | None:
        """The version that fulfils the condition at a poll, or None: as :meth:`holder`, of what is known."""
        return next((each for each in self._candidates(state) if self._counts(each)), None)

    def _candidates(self, state: ModelState) -> list[str]:
        """The version that is judged; of versions and tags any that is READY, the highest first."""
        match self.awaited:
            case Awaited.STAGE:
                found: Iterable[str] = state.holders(self.interest.checked().key)[:1]
            case Awaited.ALIAS:
                found = [each for each in (state.aliases.get(self.key),) if each is not None]
            case Awaited.TAG:
                found = sorted(state.tagged.get((self.key, self.value or ""), ()), key=int, reverse=True)
            case Awaited.VERSION:
                found = [str(number) for number in reversed(state.numbers)]
        return [each for each in found if state.is_ready(each)]

    async def _look(self, registry: ModelRegistry) -> ModelVersion | None:
        if self.awaited is Awaited.STAGE:
            return await registry.version_in_stage(self.model_name, self.key)
        if self.awaited is Awaited.ALIAS:
            return await registry.version_by_alias(self.model_name, self.key)
        if self.version is not None and self.awaited is Awaited.VERSION:
            return await registry.get_version(self.model_name, self.version)
        tags = {self.key: self.value or ""} if self.awaited is Awaited.TAG else None
        versions = [v for v in await registry.versions(self.model_name, tags=tags) if v.status == "READY"]
        return max(
            (v for v in versions if self._counts(v.version)), key=lambda v: int(v.version), default=None
        )

    def _counts(self, found: str) -> bool:
        if self.version is not None and found != str(self.version):
            return False
        return self.newer_than is None or int(found) > int(self.newer_than)
