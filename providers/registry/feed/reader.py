"""What a poll reads, and what is kept from one poll to the next so that the next one reads little.

Two searches a poll: the models, with their aliases; and the versions that were updated since, the last
updated first. A deleted version is in neither. It moves its model's time of update, though, so a model
whose time moved for no reason that the second search shows is read anew, all of its versions, in one more
search.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.registry.feed.model_state import KnownVersion, ModelState, Versions
from nighttrain.providers.registry.feed.searches import Searches
from nighttrain.providers.registry.versions import RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nighttrain.providers.registry.feed.changes import Interest
    from nighttrain.providers.registry.feed.model_state import TagFilter
    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.tracking.client import MLflowClient

OVERLAP_MS = 60_000
"""Read again below the newest update: MLflow's servers write their own clock's time, and commit in any
order."""

SETTLED_SECONDS = 60.0
"""Without an update for so long none from before it can still come: the overlap is not read any more."""

FIRST_PAGE, LARGEST_FIRST_PAGE = 20, 1_000
"""Versions that the search for updates asks for at first: 20 are 60 kB, and more than most minutes see."""

REREAD_SECONDS = 3_600.0
"""Everything is read anew this often, so that nothing that slipped through stays wrong for longer."""


@dataclass(frozen=True)
class Scope:
    """What a poll has to look at.

    :param models: every model
    :param with_versions: those of which somebody follows stages or versions
    :param tags: the models that somebody follows a tag on
    """

    models: frozenset[str] = frozenset()
    with_versions: frozenset[str] = frozenset()
    tags: Mapping[TagFilter, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, interests: Iterable[Interest]) -> Scope:
        """What all of these need."""
        models, versions, tags = set(), set(), defaultdict(set)
        for interest in interests:
            models.add(interest.name)
            if interest.needs_versions:
                versions.add(interest.name)
            if interest.tag is not None:
                tags[interest.tag].add(interest.name)
        return cls(
            frozenset(models), frozenset(versions), {tag: frozenset(names) for tag, names in tags.items()}
        )


@dataclass
class _Known:
    """The versions of one model, complete.

    :param explained: the model's time of update up to which they are known to be complete
    """

    created: int
    explained: int
    versions: Versions = field(default_factory=Versions)

    def has(self, version: ModelVersion) -> bool:
        """Tell whether the version is known as it is."""
        known = self.versions.get(version.version)
        return known is not None and (known.stage, known.updated) == (version.stage, version.last_updated)


class RegistryReader:
    """Reads one server's registry, poll by poll. A poll that fails changes nothing of what is kept.

    :param client: the server's client; the registry's own address is taken from its configuration
    :param clock: seconds, for how long ago something was
    """

    def __init__(self, client: MLflowClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._searches = Searches(client.for_registry())
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._watermark = 0
        self._moved = clock()
        self._first_page = FIRST_PAGE
        self._read_whole = clock()

    async def read(self, scope: Scope) -> dict[str, ModelState]:
        """What every model of the scope holds now; a model that is not there holds nothing.

        :raises TrackingError: MLflow does not answer, or refuses
        """
        if self._clock() - self._read_whole >= REREAD_SECONDS:
            self._known, self._read_whole = {}, self._clock()
        models = {each["name"]: each for each in await self._searches.models(scope.models)}
        followed = scope.with_versions & models.keys()
        known = await self._versions({name: models[name] for name in followed})
        tagged: dict[str, dict[TagFilter, tuple[str, ...]]] = defaultdict(dict)
        for tag, names in scope.tags.items():
            found: dict[str, list[str]] = {name: [] for name in names}
            for version in await self._searches.tagged(tag, names):
                found[version.name].append(version.version)
            for name, numbers in found.items():
                tagged[name][tag] = tuple(numbers)
        return {
            name: _state(name, models.get(name), known.get(name), name in scope.with_versions, tagged[name])
            for name in scope.models
        }

    async def _versions(self, models: Mapping[str, dict[str, Any]]) -> Mapping[str, _Known]:
        """The versions of the models, complete."""
        updates = _Updates(self._watermark)
        known = {
            name: self._known[name]
            for name, model in models.items()
            if name in self._known and self._known[name].created == _created(model)
        }
        if known:
            updates = await self._updates(known)
            known = _updated(known, updates.versions)
        doubtful = {name for name, model in models.items() if _is_doubtful(known.get(name), model)}
        if doubtful:
            anew = {name: _Known(_created(models[name]), _updated_at(models[name])) for name in doubtful}
            for version in await self._searches.versions(doubtful):
                anew[version.name].versions[version.version] = KnownVersion.of(version)
                updates.note(version)
            known |= anew
            floor = updates.newest - OVERLAP_MS
            updates.read += sum(v.updated >= floor for each in anew.values() for v in each.versions.values())
        for name, each in known.items():
            each.explained = max(each.explained, _updated_at(models[name]))
        # Only now, and all at once: a poll that failed on its way is as if it had not been.
        self._known, self._first_page = known, updates.next_page
        if updates.newest > self._watermark:
            self._watermark, self._moved = updates.newest, self._clock()
        return known

    async def _updates(self, known: Mapping[str, _Known]) -> _Updates:
        """The versions that were updated since the last poll, and some that were before."""
        settled = self._clock() - self._moved >= SETTLED_SECONDS
        floor = self._watermark - (0 if settled else OVERLAP_MS)
        updates = _Updates(self._watermark)

        def is_enough(version: ModelVersion) -> bool:
            updates.note(version)
            updates.read += 1
            if settled and version.last_updated == floor:
                return version.name not in known or known[version.name].has(version)
            return version.last_updated < floor

        first_page = FIRST_PAGE if settled else self._first_page
        updates.versions = await self._searches.updated(frozenset(known), is_enough, first_page)
        updates.read -= 1  # the one that was enough
        return updates


@dataclass
class _Updates:
    """What the search for updates brought.

    :param newest: MLflow's time of the newest update, of any model
    :param read: how many updates were recent, of any model
    """

    newest: int
    read: int = 0
    versions: list[ModelVersion] = field(default_factory=list)

    @property
    def next_page(self) -> int:
        """How many to ask for at the next poll, which reads these again as long as they are recent."""
        return min(max(FIRST_PAGE, self.read + FIRST_PAGE // 2), LARGEST_FIRST_PAGE)

    def note(self, version: ModelVersion) -> None:
        self.newest = max(self.newest, version.last_updated)


def _updated(known: Mapping[str, _Known], updates: Iterable[ModelVersion]) -> dict[str, _Known]:
    """What is known, with the updates; what was known stays as it is, for a poll that fails later."""
    new: dict[str, dict[str, KnownVersion]] = defaultdict(dict)
    for version in updates:
        told = KnownVersion.of(version)
        if version.name in known and known[version.name].versions.get(version.version) != told:
            new[version.name][version.version] = told
    return {
        name: replace(each, versions=Versions({**each.versions, **new[name]})) if name in new else each
        for name, each in known.items()
    }


def _is_doubtful(known: _Known | None, model: Mapping[str, Any]) -> bool:
    """Tell whether something may have happened to the model's versions that no update tells of."""
    if known is None or not known.versions.are_ready:
        return True
    if _updated_at(model) == known.explained:
        return False
    if known.versions.newest < _updated_at(model):
        return True
    # A deletion before the update hides behind it. It matters if the version had its stage to show.
    latest = {version.stage: version.version for version in RegisteredModel.from_api(model).latest_versions}
    return any(
        known.versions[holders[0]].updated <= known.explained and latest.get(stage) != holders[0]
        for stage, holders in known.versions.by_stage.items()
    )


_NO_VERSIONS = Versions()


def _state(
    name: str,
    model: Mapping[str, Any] | None,
    known: _Known | None,
    with_versions: bool,
    tagged: Mapping[TagFilter, tuple[str, ...]],
) -> ModelState:
    if model is None:
        return ModelState(name, versions=_NO_VERSIONS if with_versions else None, tagged=tagged)
    registered = RegisteredModel.from_api(model)
    return ModelState(
        name,
        created=_created(model),
        updated=registered.last_updated,
        aliases=registered.aliases,
        versions=known.versions if known is not None else None,
        tagged=tagged,
        latest={version.version: KnownVersion.of(version) for version in registered.latest_versions},
    )


def _created(model: Mapping[str, Any]) -> int:
    return int(model.get("creation_timestamp", 0))


def _updated_at(model: Mapping[str, Any]) -> int:
    return int(model.get("last_updated_timestamp", 0))
