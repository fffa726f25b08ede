"""Conditions on the registry, as plain values that travel as a trigger's arguments."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, ModelNotFoundError, ModelVersionNotFoundError

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion


class Awaited(StrEnum):
    """The kinds of condition: a stage is held, an alias is held, a version is there."""

    STAGE = "stage"
    ALIAS = "alias"
    VERSION = "version"


@dataclass(frozen=True, kw_only=True)
class RegistryCondition:
    """A model version in a stage, behind an alias, or simply there.

    :param model_name: the registered model
    :param awaited: which of the three
    :param key: the stage or the alias; empty for ``VERSION``
    :param version: the version it has to be, or None for any
    :param newer_than: only versions with a higher number count
    """

    model_name: str
    awaited: Awaited
    key: str = ""
    version: str | None = None
    newer_than: str | None = None

    def __post_init__(self) -> None:
        for field in ("version", "newer_than"):
            value = getattr(self, field)
            if value is not None and not re.fullmatch(r"[1-9]\d*", str(value)):
                raise ConfigurationError(field, value, "must be a version number such as 3")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "awaited": self.awaited.value}

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
        }[self.awaited]
        return f"{wanted}{newer} of {self.model_name}{where}"

    async def holder(self, registry: ModelRegistry) -> ModelVersion | None:
        """The version that fulfils the condition now, or None."""
        try:
            found = await self._look(registry)
        except (ModelNotFoundError, ModelVersionNotFoundError):
            return None
        if found is None or not self._counts(found):
            return None
        return found

    async def _look(self, registry: ModelRegistry) -> ModelVersion | None:
        if self.awaited is Awaited.STAGE:
            return await registry.version_in_stage(self.model_name, self.key)
        if self.awaited is Awaited.ALIAS:
            return await registry.version_by_alias(self.model_name, self.key)
        if self.version is not None:
            return await registry.get_version(self.model_name, self.version)
        versions = [v for v in await registry.versions(self.model_name) if v.status == "READY"]
        return max(versions, key=lambda v: int(v.version), default=None)

    def _counts(self, found: ModelVersion) -> bool:
        if self.version is not None and found.version != str(self.version):
            return False
        if self.newer_than is not None and int(found.version) <= int(self.newer_than):
            return False
        return found.status == "READY"
