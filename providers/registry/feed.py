"""The change feed of a registered model: the state it holds, and the changes since the last look.

MLflow sends no event for a stage transition, so stages are polled. The comparison is level-triggered: it
compares what is held now with what was held at the last look, and the first look reports everything held. A
change that was undone between two looks is not seen; a change that still stands is never missed, whatever
was down in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.models import ModelRegistry

WATCHED_STAGES = ("Staging", "Production", "Archived")
"""Not ``None``: every new version starts there, which the change "version" already says."""


@dataclass(frozen=True)
class RegistryState:
    """Aliases, stages and versions of a model. Plain and JSON-able, because it is a trigger's cursor.

    :param aliases: alias -> version
    :param stages: stage -> the version of it that was updated last
    :param holders: stage -> every version in it
    :param latest_version: the highest version number, ``None`` while there is no version
    :param updated: MLflow's own timestamp of the model, in ms; it moves with every transition and new version
    """

    aliases: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    holders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    latest_version: str | None = None
    updated: int = 0
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "aliases": dict(self.aliases),
            "stages": dict(self.stages),
            "holders": {stage: list(versions) for stage, versions in self.holders.items()},
            "latest_version": self.latest_version,
            "updated": self.updated,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RegistryState:
        """Read what :meth:`to_dict` wrote, older forms too: what is absent is empty."""
        stages = {str(stage): str(version) for stage, version in (values.get("stages") or {}).items()}
        holders = {str(s): tuple(str(v) for v in vs) for s, vs in (values.get("holders") or {}).items()}
        latest = values.get("latest_version")
        return cls(
            aliases={str(alias): str(version) for alias, version in (values.get("aliases") or {}).items()},
            stages=stages,
            holders=holders or {stage: (version,) for stage, version in stages.items()},
            latest_version=None if latest is None else str(latest),
            updated=int(values.get("updated") or 0),
            name=str(values.get("name") or ""),
        )


@dataclass(frozen=True)
class Change:
    """One change of what a model holds.

    :param kind: ``alias``, ``stage`` or ``version``
    :param key: the alias, the stage, or ``latest``
    :param version: the version held now; ``None`` when nothing is held any more
    :param previous: the version held before; ``None`` when nothing was
    """

    kind: str
    name: str
    key: str
    version: str | None
    previous: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "key": self.key,
            "version": self.version,
            "previous": self.previous,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Change:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            values["kind"], values["name"], values["key"], values.get("version"), values.get("previous")
        )


async def read_state(
    registry: ModelRegistry, name: str, previous: RegistryState | None = None
) -> RegistryState:
    """Read the model's present state. A model that does not exist (yet) holds nothing.

    One call while nothing moved since ``previous`` but aliases, which MLflow does not count as an update;
    otherwise one more for every 200 versions.

    :raises TrackingError: MLflow cannot be asked
    """
    try:
        model = await registry.get_model(name)
    except ModelNotFoundError:
        return RegistryState(name=name)
    latest = max((version.version for version in model.latest_versions), key=int, default=None)
    same = (
        previous is not None
        and previous.name == name
        and previous.updated == model.last_updated
        and previous.latest_version == latest
    )
    holders: dict[str, list[str]] = {}
    if same and previous is not None:
        holders = {stage: list(versions) for stage, versions in previous.holders.items()}
    elif any(version.stage in WATCHED_STAGES for version in model.latest_versions):
        async for version in registry.iterate(name):
            if version.stage in WATCHED_STAGES:
                holders.setdefault(version.stage, []).append(version.version)
    return RegistryState(
        name=name,
        aliases=dict(model.aliases),
        stages={stage: versions[0] for stage, versions in holders.items()},
        holders={stage: tuple(versions) for stage, versions in holders.items()},
        latest_version=latest,
        updated=model.last_updated,
    )


def diff(old: RegistryState | None, new: RegistryState) -> list[Change]:
    """List the changes from ``old`` to ``new``; without ``old``, everything that is held now.

    Of several versions in one stage only one that came in counts: a new description moves MLflow's
    timestamp of a version too, and must not look like a transition.
    """
    before = old or RegistryState(name=new.name)
    changes = []
    for alias in sorted(before.aliases.keys() | new.aliases.keys()):
        version, previous = new.aliases.get(alias), before.aliases.get(alias)
        if version != previous:
            changes.append(Change("alias", new.name, alias, version, previous))
    for stage in sorted(before.holders.keys() | new.holders.keys()):
        held, now = before.holders.get(stage, ()), new.holders.get(stage, ())
        entered = [version for version in now if version not in held]
        previous = before.stages.get(stage)
        if entered:
            changes.append(Change("stage", new.name, stage, entered[0], previous))
        elif previous is not None and previous not in now:
            changes.append(Change("stage", new.name, stage, now[0] if now else None, previous))
    if new.latest_version != before.latest_version:
        changes.append(Change("version", new.name, "latest", new.latest_version, before.latest_version))
    return changes
