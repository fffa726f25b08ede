from __future__ import annotations

import json

import pytest

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.feed.changes import (
    Change,
    ChangeKind,
    Clock,
    Interest,
    View,
    compare,
    followed,
)
from nighttrain.providers.registry.feed.model_state import KnownVersion, ModelState, Versions
from nighttrain.providers.registry.feed.outbox import Outbox, view_of_former_cursor
from nighttrain.providers.registry.versions import ModelVersion

NOW = 1_700_000_000_000
CHAMPION = Interest("m", ChangeKind.ALIAS, "champion")
PRODUCTION = Interest("m", ChangeKind.STAGE, "Production")
VERSIONS = Interest("m", ChangeKind.VERSION)
ACCEPTED = Interest("m", ChangeKind.TAG, "verdict", "accepted")


def production(*held: str) -> ModelState:
    """Production's holders, the newest first."""
    known = {version: KnownVersion("Production", 100 - place, 1) for place, version in enumerate(held)}
    return ModelState("m", created=1, versions=Versions(known))


def champion(version: str | None) -> ModelState:
    return ModelState("m", created=1, aliases={"champion": version} if version else {})


def numbers(*held: int, created: int = 1) -> ModelState:
    known = {str(number): KnownVersion("None", 1, number) for number in held}
    return ModelState("m", created=created if held else 0, versions=Versions(known))


def accepted(*held: str) -> ModelState:
    return ModelState("m", created=1, tagged={("verdict", "accepted"): held})


def moves(interest: Interest, *states: ModelState) -> list[list[tuple[str | None, str | None]]]:
    """The version and the one before, of each change of each look."""
    view: View | None = None
    told = []
    for state in states:
        view, changes = compare(interest, view, state, NOW)
        view = json.loads(json.dumps(view))
        told.append([(change.version, change.previous) for change in changes])
    return told


@pytest.mark.parametrize(
    ("interest", "states", "told"),
    [
        (CHAMPION, [champion("1"), champion("1"), champion("2")], [[("1", None)], [], [("2", "1")]]),
        (
            CHAMPION,
            [champion("1"), champion(None), champion("1")],
            [[("1", None)], [(None, "1")], [("1", None)]],
        ),
        (CHAMPION, [champion(None), champion("3")], [[], [("3", None)]]),
        (PRODUCTION, [production("1"), production("2", "1")], [[("1", None)], [("2", "1")]]),
        # An older version that comes back is a transition.
        (PRODUCTION, [production("2"), production("1")], [[("2", None)], [("1", "2")]]),
        # A new description moves version 1 to the front: nothing came in.
        (PRODUCTION, [production("2", "1"), production("1", "2")], [[("2", None)], []]),
        # The newest holder leaves, an older one is left.
        (PRODUCTION, [production("2", "1"), production("1")], [[("2", None)], [("1", "2")]]),
        (
            PRODUCTION,
            [production("1"), production(), production("1")],
            [[("1", None)], [(None, "1")], [("1", None)]],
        ),
        (VERSIONS, [numbers(1, 2), numbers(1, 2, 3, 5)], [[("2", None)], [("3", "2"), ("5", "3")]]),
        # A deleted version comes not back, and is not told again.
        (VERSIONS, [numbers(1, 2), numbers(1), numbers(1, 3)], [[("2", None)], [], [("3", "2")]]),
        (VERSIONS, [numbers(), numbers(1, 2)], [[], [("1", None), ("2", "1")]]),
        (VERSIONS, [numbers(3), numbers(), numbers(1, created=9)], [[("3", None)], [], [("1", None)]]),
        (
            ACCEPTED,
            [accepted("1", "2"), accepted("1", "2", "10", "9")],
            [[("2", None)], [("9", None), ("10", None)]],
        ),
        (ACCEPTED, [accepted("1"), accepted(), accepted("1")], [[("1", None)], [(None, "1")], [("1", None)]]),
    ],
)
def test_what_is_told(
    interest: Interest, states: list[ModelState], told: list[list[tuple[str | None, str | None]]]
) -> None:
    assert moves(interest, *states) == told


def test_a_change_is_written_as_it_was() -> None:
    values = {"kind": "stage", "name": "m", "key": "Production", "version": "2", "previous": "1"}
    change = Change.from_dict(values)
    assert change == Change(ChangeKind.STAGE, "m", "Production", "2", "1")
    assert json.loads(json.dumps(change.to_dict())) == values
    dated = Change(ChangeKind.ALIAS, "m", "champion", "2", "1", "anna", NOW, Clock.NOTICED)
    assert Change.from_dict(json.loads(json.dumps(dated.to_dict()))) == dated


def test_when_a_stage_moved_is_mlflows_time() -> None:
    version = ModelVersion("m", "2", stage="Production", last_updated=NOW)
    state = ModelState("m", created=1, versions=Versions({"2": KnownVersion.of(version)}))
    _, (change,) = compare(PRODUCTION, None, state, NOW + 5)
    assert (change.author, change.at, change.clock) == (None, NOW, Clock.MLFLOW)


def test_when_an_alias_moved_is_when_it_was_noticed() -> None:
    _, (change,) = compare(CHAMPION, None, champion("2"), NOW)
    assert (change.author, change.at, change.clock) == (None, NOW, Clock.NOTICED)


def test_told_again_it_says_the_same() -> None:
    """A consumer dies after it has handed over, and before that was kept."""
    outbox = Outbox().seen(CHAMPION, champion("1"), NOW)
    again = Outbox.from_dict(json.loads(json.dumps(outbox.to_dict())))
    assert again == outbox
    assert [(told.sequence, told.change.version) for told in again.to_tell()] == [(1, "1")]
    after = again.arrived().seen(CHAMPION, champion("3"), NOW)
    assert [(told.sequence, told.change.version) for told in after.to_tell()] == [(2, "3")]
    assert after.arrived().to_tell() == []


def test_a_cursor_of_the_form_before_is_read() -> None:
    former = {"aliases": {"champion": 1}, "stages": {"Production": 2}, "holders": {"Production": ["2", "1"]}}
    assert view_of_former_cursor(CHAMPION, former) == {"version": "1"}
    assert view_of_former_cursor(PRODUCTION, former) == {"version": "2", "holders": ["1", "2"]}
    assert view_of_former_cursor(PRODUCTION, {"stages": {"Production": 2}}) == {
        "version": "2",
        "holders": ["2"],
    }
    assert view_of_former_cursor(CHAMPION, {}) == {"version": None}


@pytest.mark.parametrize(
    "interest",
    [
        Interest("m/n", ChangeKind.ALIAS, "champion"),
        Interest("m", ChangeKind.ALIAS, "latest"),
        Interest("m", ChangeKind.STAGE, "None"),
        Interest("m", ChangeKind.TAG, "k`", "v"),
        Interest("m", ChangeKind.TAG, "k", "'\""),
        Interest("m'\"", ChangeKind.VERSION),
    ],
)
def test_names_that_no_filter_takes_are_refused(interest: Interest) -> None:
    with pytest.raises(ConfigurationError):
        interest.checked()


def test_one_thing_is_followed() -> None:
    with pytest.raises(ConfigurationError, match="exactly one"):
        followed("m")
    with pytest.raises(ConfigurationError, match="exactly one"):
        followed("m", stage="Production", versions=True)
    with pytest.raises(ConfigurationError, match="value"):
        followed("m", tag="k")
    assert followed("m", stage="production").checked() == PRODUCTION
