"""What a gate's rules need beside the measurements, read from MLflow: only where a rule needs it.

A missing file, version or fact is no error: the rule that needs it is inconclusive and says why. An outage of
MLflow is one, and is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from nighttrain.providers.errors import (
    RegistryError,
    TrackingMisconfiguredError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnreachableError,
    clip,
)
from nighttrain.providers.registry.artifacts import read_run_file, read_version_file, version_bytes
from nighttrain.providers.registry.gates.recorded import (
    CANDIDATE,
    CHAMPION,
    NAMED_VERSION,
    Recorded,
    Source,
)
from nighttrain.providers.registry.gates.recorded_files import (
    CHECKS_FILE,
    MAX_BYTES,
    PAIRED_LOSSES_FILE,
    SLICES_FILE,
    UnreadableFileError,
    read_checks,
    read_paired_losses,
    read_slices,
)
from nighttrain.providers.registry.gates.signatures import (
    Signature,
    UnreadableSignatureError,
    read_signature,
)
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.registry.gates.rules.base import Rule
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

DATA_UNTIL = "data_until"
"""Parameter or tag of a training's run: the moment of its newest data, in ISO 8601 with a time zone."""

INTERVAL_END_TAG = f"{PREFIX}data_interval_end"

MAX_MLMODEL_BYTES = 2_000_000
"""Signatures of thousands of columns are some hundred kilobytes."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


async def gather(
    registry: ModelRegistry, rules: Sequence[Rule], evaluation: Mapping[str, Any], *, now: datetime
) -> Recorded:
    """Everything on record that the rules read.

    :param evaluation: what an evaluation returned: ``model_name``, ``version``, ``measurements``, and
        ``champion_version``, ``compared_versions``, ``run_id`` where they are known
    :param now: for the age of the data, with a time zone
    :raises TrackingUnreachableError: MLflow does not answer
    """
    return await _Gathering(registry, rules, evaluation, now).gather()


class _Gathering:
    def __init__(
        self, registry: ModelRegistry, rules: Sequence[Rule], evaluation: Mapping[str, Any], now: datetime
    ) -> None:
        self._registry, self._client = registry, registry.client
        self._evaluation, self._now = evaluation, now
        self._needed = {source: [r for r in rules if source in r.sources()] for source in Source}
        self._versions: dict[str, ModelVersion] = {}
        self._missing: dict[Source, str] = {}

    async def gather(self) -> Recorded:
        measurements: Mapping[str, Mapping[str, Any]] = self._evaluation["measurements"]
        # An evaluation written by hand may measure a champion without saying which version it is.
        champion = self._evaluation.get("champion_version", CHAMPION in measurements)
        recorded = Recorded(measurements, has_champion=bool(champion), missing=self._missing)
        if self._needed[Source.SLICES]:
            slices = await self._file(Source.SLICES, SLICES_FILE, read_slices)
            recorded = replace(recorded, groups=_merged(recorded.groups, slices or {}))
        if self._needed[Source.PAIRED_LOSSES]:
            losses = await self._file(Source.PAIRED_LOSSES, PAIRED_LOSSES_FILE, read_paired_losses)
            recorded = replace(recorded, paired=losses or {})
        if self._needed[Source.CHECKS]:
            checks = await self._file(Source.CHECKS, CHECKS_FILE, read_checks)
            recorded = replace(recorded, checks=checks or {})
        if self._needed[Source.ARTIFACT_BYTES]:
            recorded = replace(recorded, groups=_merged(recorded.groups, await self._sizes()))
        if self._needed[Source.DATA_AGE]:
            recorded = replace(recorded, groups=_merged(recorded.groups, await self._age()))
        if self._needed[Source.SIGNATURES]:
            recorded = replace(recorded, signatures=await self._signatures())
        if self._needed[Source.TAGS]:
            version = await self._try(Source.TAGS, lambda: self._version(CANDIDATE))
            recorded = replace(recorded, tags=version.tags if version else {})
        return recorded

    async def _file(self, source: Source, path: str, parse: Callable[[bytes], T]) -> T | None:
        run_id = self._evaluation.get("run_id")
        if not run_id:
            self._missing[source] = "the evaluation names no run"
            return None

        async def read() -> bytes | None:
            run = await RunTree(self._client).get(str(run_id))
            return await read_run_file(self._client, run, path, limit=MAX_BYTES)

        content = await self._try(source, read)
        if content is None:
            self._missing.setdefault(source, f"the evaluation's run has no file {path}")
            return None
        try:
            return parse(content)
        except UnreadableFileError as error:
            self._missing[source] = f"{path} {error}"
            return None

    async def _sizes(self) -> dict[str, dict[str, float]]:
        sizes = {}
        for group in self._groups(Source.ARTIFACT_BYTES):

            async def size(group: str = group) -> int:
                return await version_bytes(self._client, await self._version(group))

            found = await self._try(Source.ARTIFACT_BYTES, size)
            # What was measured by others is no statement about the files.
            sizes[group] = {"artifact_bytes": None if found is None else float(found)}
        return sizes  # type: ignore[return-value]

    async def _age(self) -> dict[str, dict[str, float | None]]:
        async def end() -> str | None:
            version = await self._version(CANDIDATE)
            if not version.run_id:
                return None
            run = await RunTree(self._client).get(version.run_id)
            written = run.params.get(DATA_UNTIL) or run.tags.get(DATA_UNTIL)
            return written or run.tags.get(INTERVAL_END_TAG)

        found = await self._try(Source.DATA_AGE, end)
        moment = _moment(found)
        if found is None:
            self._missing.setdefault(
                Source.DATA_AGE, f"its run has no parameter {DATA_UNTIL} and no data interval"
            )
        elif moment is None:
            self._missing[Source.DATA_AGE] = f"{clip(found, 60)!a} is no moment with a time zone"
        age = None if moment is None else (self._now - moment).total_seconds()
        return {CANDIDATE: {} if age is None else {"data_age": age}}

    async def _signatures(self) -> dict[str, Signature]:
        found = {}
        for group in self._groups(Source.SIGNATURES):

            async def read(group: str = group) -> bytes | None:
                version = await self._version(group)
                return await read_version_file(self._client, version, "MLmodel", limit=MAX_MLMODEL_BYTES)

            content = await self._try(Source.SIGNATURES, read)
            try:
                signature = None if content is None else read_signature(content)
            except UnreadableSignatureError as error:
                self._missing[Source.SIGNATURES] = str(error)
                continue
            if signature is not None:
                found[group] = signature
            elif content is not None:
                self._missing[Source.SIGNATURES] = f"the MLmodel file of {group} names none"
        return found

    def _groups(self, source: Source) -> list[str]:
        """The versions that rules need something of: the candidate, and whom they compare it with."""
        against = {rule.against for rule in self._needed[source] if rule.against}
        return [CANDIDATE, *sorted(group for group in against if self._number(group))]

    def _number(self, group: str) -> str | None:
        """The version of a group; ``None`` where the group is no version, or none that was looked up."""
        known = {
            CANDIDATE: self._evaluation["version"],
            CHAMPION: self._evaluation.get("champion_version"),
            **(self._evaluation.get("compared_versions") or {}),
        }
        if group.startswith(NAMED_VERSION):
            return group.removeprefix(NAMED_VERSION)
        number = known.get(group)
        return str(number) if number else None

    async def _version(self, group: str) -> ModelVersion:
        if group not in self._versions:
            self._versions[group] = await self._registry.get_version(
                self._evaluation["model_name"], str(self._number(group))
            )
        return self._versions[group]

    async def _try(self, source: Source, read: Callable[[], Awaitable[T]]) -> T | None:
        """What MLflow gives; a refusal becomes the reason why it is missing."""
        try:
            return await read()
        except (TrackingUnreachableError, TrackingMisconfiguredError):
            raise
        except (RegistryError, TrackingNotFoundError, TrackingRequestError) as error:
            _log.info("%s could not be read: %s", source.value, error)
            self._missing[source] = clip(" ".join(str(error).split()), 300)
            return None


def _merged(
    groups: Mapping[str, Mapping[str, Any]], added: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Groups with what was found added; what is not a mapping stays, for the judge to refuse."""
    merged = dict(groups)
    for group, values in added.items():
        before = merged.get(group, {})
        if isinstance(before, Mapping):
            merged[group] = {**before, **values}
    return merged


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
