"""Whatever was promoted, undone in whichever order: no withdrawn version comes back into a stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.history.ledger import Ledger
from nighttrain.providers.registry.history.state import State
from nighttrain.providers.registry.undoing import Scope, moves_back, scopes, to_undo
from nighttrain.providers.registry.versions import ACTIVE_STAGES, ModelVersion

VERSIONS = [str(number) for number in range(1, 5)]


def initial() -> State:
    return State({}, tuple(ModelVersion(name="m", version=each) for each in VERSIONS))


@dataclass
class Registry:
    """What MLflow would hold, and the history, without MLflow."""

    state: State = field(default_factory=initial)
    ledger: Ledger = field(default_factory=lambda: Ledger("m"))

    def make(self, entry: Entry) -> None:
        number = self.ledger.last_number + 1
        done = Entry(number=number + 1, kind=Kind.DONE, model="m", finishes=number)
        entries = (*self.ledger.entries, replace(entry, number=number), done)
        self.ledger = Ledger("m", entries, number + 1)
        for move in entry.moves:
            self._move(move)

    def _move(self, move: Move) -> None:
        held = self.state.holdings.after([move])
        before = self.state.versions
        versions = [replace(each, stage=held.stages.get(each.version, "None")) for each in before]
        changed = {each.version for each in versions if each not in before}
        # The last updated comes first; of one call that archives others the one that was moved.
        versions.sort(key=lambda each: (each.version not in changed, each.version != move.version))
        self.state = State(held.aliases, tuple(versions))

    def promote(self, version: str, alias: str | None, stage: str | None) -> None:
        target = self.state.version(version)
        assert target is not None
        moves, back = ((), ()) if stage is None else self.state.stage_moves(target, stage, archive=True)
        before = Scope(alias, stage).holder(self.state)
        if alias:
            moves, back = (Move(version, alias=alias), *moves), (*back, Move(before, alias=alias))
        holds = (not alias or before == version) and (stage is None or target.stage == stage)
        if moves and not holds:
            self.make(
                Entry(
                    number=0,
                    kind=Kind.PROMOTION,
                    model="m",
                    version=version,
                    moves=moves,
                    back=back,
                    previous_version=None if before == version else before,
                )
            )

    def undo(self, scope: Scope, target: str | None = None) -> None:
        _, undone = to_undo(self.ledger, self.state, scope, target)
        if undone:
            back = moves_back(self.ledger, self.state, undone)
            numbers = tuple(each.number for each in undone)
            self.make(Entry(number=0, kind=Kind.ROLLBACK, model="m", moves=back, undoes=numbers))


def held(registry: Registry) -> tuple[dict[str, str], dict[str, str]]:
    holdings = registry.state.holdings
    return holdings.aliases, {v: stage for v, stage in holdings.stages.items() if stage in ACTIVE_STAGES}


promotions = st.lists(
    st.tuples(
        st.sampled_from(VERSIONS),
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from([None, "Production", "Production", "Staging"]),
    ),
    max_size=7,
)


@settings(max_examples=400, deadline=None, database=None)
@given(promotions, st.data())
def test_what_is_left_is_as_if_what_was_undone_had_never_been(
    made: list[tuple[str, str | None, str | None]], data: st.DataObject
) -> None:
    registry = Registry()
    for each in made:
        registry.promote(*each)
        if data.draw(st.booleans(), "goes back in between") and (
            found := scopes(registry.ledger, registry.state)
        ):
            registry.undo(data.draw(st.sampled_from(found)))
    while found := scopes(registry.ledger, registry.state):
        to = data.draw(st.sampled_from([None, *VERSIONS]), "back to")
        scope = data.draw(st.sampled_from(found), "of")
        registry.undo(scope, to)
        if to is not None:
            registry.undo(scope)
        only = Registry()
        for entry in registry.ledger.in_effect():
            only.promote(str(entry.version), entry.alias, entry.stage)
        assert held(registry) == held(only)
    assert registry.state.aliases == {}
