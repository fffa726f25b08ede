"""A model and its versions as the registry reports them, and the names that MLflow takes: plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.tracking.names import check_text
from nighttrain.providers.tracking.tags import PREFIX, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGEST_TAG = f"{PREFIX}artifact.sha256"
FILES_TAG = f"{PREFIX}artifact.files"
"""How many files there were, on versions that earlier releases registered."""

STAGES = ("None", "Staging", "Production", "Archived")
ACTIVE_STAGES = ("Staging", "Production")
"""The only stages whose holders MLflow can archive when another version comes in."""

MAX_NAME = 256
"""MLflow's column."""

_MAX_DIGITS = 10
"""Of a version's number: MLflow's column is an integer of 32 bits."""

_ALIAS = re.compile(r"[A-Za-z0-9_\-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
_LOGGED_MODEL = re.compile(r"m-[A-Za-z0-9_\-]+")


@dataclass(frozen=True)
class ModelVersion:
    """A version as the registry reports it. Timestamps are milliseconds since 1970.

    ``last_updated`` moves on a stage transition, a new description and a rename, not on aliases and tags.
    """

    name: str
    version: str
    stage: str = "None"
    status: str = "READY"
    run_id: str | None = None
    model_id: str | None = None
    source: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    aliases: tuple[str, ...] = ()
    created: int = 0
    last_updated: int = 0

    @property
    def uri(self) -> str:
        """The address for ``mlflow.*.load_model`` and ``mlflow models serve``, pinned to this version."""
        return f"models:/{self.name}/{self.version}"

    @property
    def digest(self) -> str | None:
        """The recorded sha256 of the artifact's manifest."""
        return self.tags.get(DIGEST_TAG)

    @classmethod
    def from_api(cls, version: Mapping[str, Any]) -> ModelVersion:
        """Read MLflow's JSON."""
        source = version.get("source", "")
        return cls(
            name=version["name"],
            version=str(version["version"]),
            stage=version.get("current_stage") or "None",
            status=version.get("status", ""),
            run_id=version.get("run_id") or None,
            # SQL stores leave model_id empty; the source has it.
            model_id=version.get("model_id") or _model_id_of(source),
            source=source,
            tags={tag["key"]: tag.get("value", "") for tag in version.get("tags", ())},
            description=version.get("description", ""),
            aliases=tuple(sorted(version.get("aliases", ()))),
            created=int(version.get("creation_timestamp", 0)),
            last_updated=int(version.get("last_updated_timestamp", 0)),
        )


@dataclass(frozen=True)
class RegisteredModel:
    """A model: its aliases, and of each stage the version with the highest number (without aliases)."""

    name: str
    aliases: dict[str, str] = field(default_factory=dict)
    latest_versions: tuple[ModelVersion, ...] = ()
    created: int = 0
    """Milliseconds since 1970: tells it from one of the same name that was deleted. A new name keeps it."""
    last_updated: int = 0

    @classmethod
    def from_api(cls, model: Mapping[str, Any]) -> RegisteredModel:
        """Read MLflow's JSON."""
        return cls(
            name=model["name"],
            aliases={item["alias"]: str(item["version"]) for item in model.get("aliases", ())},
            latest_versions=tuple(ModelVersion.from_api(item) for item in model.get("latest_versions", ())),
            created=int(model.get("creation_timestamp", 0)),
            last_updated=int(model.get("last_updated_timestamp", 0)),
        )


def check_name(name: str) -> str:
    """A model's name, if MLflow and its filters take it. :raises ConfigurationError: they do not"""
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError("model", name, "give the registered model's name")
    if "/" in name or ":" in name:
        raise ConfigurationError("model", name, "a registered model's name has no '/' and no ':'")
    if len(name) > MAX_NAME or any(ord(character) < 32 for character in name):
        raise ConfigurationError("model", name, f"use at most {MAX_NAME} printable characters")
    check_text("model", name, MAX_NAME)
    if name == "." or name.startswith(".."):
        raise ConfigurationError("model", name, "MLflow takes it for a path: begin with a letter or digit")
    if "\\" in name:
        raise ConfigurationError("model", name, "use no backslash: MLflow's filters take it for an escape")
    if quoted(name) is None:
        raise ConfigurationError(
            "model", name, "use one sort of quote only: MLflow's filters have no escapes"
        )
    return name


def check_alias(alias: str) -> str:
    """An alias, if MLflow takes it. :raises ConfigurationError: it does not"""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise ConfigurationError("alias", alias, "use letters, digits, '_' and '-', at most 255")
    if _RESERVED_ALIAS.fullmatch(alias):
        raise ConfigurationError(
            "alias", alias, "MLflow reserves 'latest' and 'v<number>'; take e.g. 'champion'"
        )
    return alias


def check_stage(stage: str) -> str:
    """The stage in MLflow's spelling, whatever the case. :raises ConfigurationError: no such stage"""
    for known in STAGES:
        if isinstance(stage, str) and stage.strip().lower() == known.lower():
            return known
    raise ConfigurationError("stage", stage, f"MLflow's stages are {', '.join(STAGES)}")


def check_version(version: str | int) -> str:
    """A version's number as text. :raises ConfigurationError: it is no whole number from 1"""
    # Before it is made text: that of an integer of more than 4,300 digits is refused by Python.
    is_huge = isinstance(version, int) and abs(version) >= 10**_MAX_DIGITS
    text = "" if is_huge else str(version).strip()
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if isinstance(version, bool) or not is_number or int(text) == 0:
        raise ConfigurationError("version", version, "a version is a number from 1, for example '7'")
    return str(int(text))


def _model_id_of(source: str) -> str | None:
    parts = urlsplit(source)
    candidate = parts.path.strip("/")
    return candidate if parts.scheme == "models" and _LOGGED_MODEL.fullmatch(candidate) else None
