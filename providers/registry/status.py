"""How a model stands: what holds what, what serves where, since when and by whom, and what is waiting."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nighttrain.providers.registry.gates.evaluation import SUMMARY_TAG, VERDICT_TAG
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.state import read_state
from nighttrain.providers.registry.version_page import endpoints_of
from nighttrain.providers.registry.versions import ACTIVE_STAGES

if TYPE_CHECKING:
    from nighttrain.providers.registry.history.entries import Entry
    from nighttrain.providers.registry.history.ledger import Ledger
    from nighttrain.providers.registry.history.state import State
    from nighttrain.providers.registry.models import ModelRegistry

LAST_VERDICTS = 3
"""The last nights, at a glance."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a version holds.

    :param what: an alias, a stage, or an endpoint's name
    :param since: ISO 8601 in UTC; empty where the history does not tell
    :param by: whose change it was; empty where the history does not tell
    :param entry: the entry of the history that says so
    """

    what: str
    version: str
    since: str = ""
    by: str = ""
    approver: str = ""
    entry: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """How a model stands.

    :param verdicts: version, verdict and its sentence, the last version first
    :param waiting: sentences about what somebody or something should do
    :param faults: what is wrong with the history
    """

    model: str
    aliases: tuple[Held, ...] = ()
    stages: tuple[Held, ...] = ()
    serving: tuple[Held, ...] = ()
    verdicts: tuple[tuple[str, str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    faults: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        named = ("version", "verdict", "summary")
        return {**asdict(self), "verdicts": [dict(zip(named, each, strict=True)) for each in self.verdicts]}


async def read_status(registry: ModelRegistry, model: str) -> ModelStatus:
    """Read how a model stands; nothing is changed.

    :raises ModelNotFoundError: no such model
    :raises TrackingError: MLflow does not answer, or refuses
    """
    ledger = await Changes(registry, model).read()
    state = await read_state(registry, model)
    return ModelStatus(
        model=model,
        aliases=tuple(
            _held(alias, version, ledger.moved_last(alias=alias))
            for alias, version in sorted(state.aliases.items())
        ),
        stages=tuple(
            _held(stage, version, ledger.moved_last(version=version))
            for stage in ACTIVE_STAGES[::-1]
            for version in state.holders(stage)
        ),
        serving=tuple(
            Held(what=endpoint.name, version=each.version, since=endpoint.since, by=endpoint.by)
            for each in state.versions
            for endpoint in endpoints_of(each.tags)
        ),
        verdicts=_verdicts(state),
        waiting=tuple(_waiting(ledger, state)),
        faults=ledger.faults,
    )


def _held(what: str, version: str, entry: Entry | None) -> Held:
    if entry is None or not any(move.version == version for move in entry.moves):
        return Held(what=what, version=version)
    return Held(
        what=what,
        version=version,
        since=entry.at,
        by=entry.actor or entry.reason,
        approver=entry.approver,
        entry=entry.number,
    )


def _verdicts(state: State) -> tuple[tuple[str, str, str], ...]:
    judged = [each for each in state.versions if VERDICT_TAG in each.tags]
    judged.sort(key=lambda each: int(each.version), reverse=True)
    return tuple(
        (each.version, each.tags[VERDICT_TAG], each.tags.get(SUMMARY_TAG, ""))
        for each in judged[:LAST_VERDICTS]
    )


def _waiting(ledger: Ledger, state: State) -> list[str]:
    found = []
    unfinished = ledger.unfinished
    if unfinished is not None:
        about = f" of version {unfinished.version}" if unfinished.version else ""
        found.append(
            f"{unfinished.kind.value}{about} (entry {unfinished.number}, begun "
            f"{unfinished.at} by {unfinished.actor or 'unknown'}) is not finished: the next promotion or "
            "rollback finishes it"
        )
    elif moved := ledger.holdings.towards(state.holdings, gone=state.gone(ledger.holdings)):
        moves = ", ".join(map(str, moved))
        if ledger.entries:
            found.append(f"moved without nighttrain, and not in the history yet: {moves}")
    holding = {*state.aliases.values(), *state.holdings.stages}
    newest = max(state.versions, key=lambda each: int(each.version), default=None)
    if newest is not None and newest.version not in holding:
        verdict = newest.tags.get(VERDICT_TAG)
        if verdict == "accepted":
            found.append(f"version {newest.version} was accepted and holds nothing: promote it")
        elif verdict == "inconclusive":
            found.append(f"version {newest.version} is inconclusive: somebody should look")
    return found
