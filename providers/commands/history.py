"""``nighttrain history``, ``status`` and ``rollback``: what serves, why, and the way back."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.commands.environment import add_mlflow_uri, person, required_tracking
from nighttrain.providers.errors import (
    ConfigurationError,
    RegistryError,
    TrackingError,
    TrackingRequestError,
    clip,
)
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import INTENTIONS, NOTES, Kind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, Change, roll_back
from nighttrain.providers.registry.status import Held, ModelStatus, read_status
from nighttrain.providers.texts import columns, one_line
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from nighttrain.providers.registry.history.entries import Entry
    from nighttrain.providers.registry.history.ledger import Ledger

WIDEST = 60
"""Characters of a reason in a table; ``--json`` has all of it."""


def add_to(commands: Any) -> None:
    """Make them three of the commands."""
    history = commands.add_parser(
        "history",
        help="who gave which version an alias or a stage, why, and what was there before",
        description="Show the history of a model, the last entry first.",
    )
    history.add_argument("model", metavar="MODEL")
    history.add_argument("--json", action="store_true", help="every entry whole, the first one first")
    add_mlflow_uri(history)
    history.set_defaults(run=_history)
    status = commands.add_parser(
        "status",
        help="what each alias and stage holds, what serves where, the last verdicts, what is waiting",
        description="Show how a model stands, or all of them. Nothing is changed.",
    )
    status.add_argument("model", metavar="MODEL", nargs="?")
    status.add_argument("--json", action="store_true")
    add_mlflow_uri(status)
    status.set_defaults(run=_status)
    rollback = commands.add_parser(
        "rollback",
        help="undo the last promotion of a model",
        description="Undo the last promotion that is in effect, and move back exactly what it had moved. "
        "Endpoints follow where something deploys what an alias or a stage holds.",
    )
    rollback.add_argument("model", metavar="MODEL")
    what = rollback.add_mutually_exclusive_group()
    what.add_argument("--to", metavar="VERSION", help="undo every promotion since this version was in place")
    what.add_argument(
        "--undo",
        metavar="ENTRY",
        type=int,
        help="undo this entry of the history and no other: to repeat it never goes back twice",
    )
    rollback.add_argument(
        "--alias", help="of which the last promotion is undone; the last of all, if left out"
    )
    rollback.add_argument("--stage", help="the same for promotions that moved no alias")
    rollback.add_argument("--reason", default="", help="why, for the history")
    add_mlflow_uri(rollback)
    rollback.set_defaults(run=_rollback)


def _history(options: argparse.Namespace) -> bool:
    ledger = asyncio.run(_read_history(options))
    if options.json:
        entries = [entry.to_dict() for entry in ledger.entries]
        print(json.dumps({"model": ledger.model, "entries": entries, "faults": list(ledger.faults)}))
    else:
        print(history_table(ledger))
    return not ledger.faults


async def _read_history(options: argparse.Namespace) -> Ledger:
    async with MLflowClient(required_tracking(options.mlflow_uri)) as client:
        return await Changes(ModelRegistry(client), options.model).read()


def history_table(ledger: Ledger) -> str:
    """The history for a person: one line for each change, the last one first."""
    rows = [("ENTRY", "WHEN", "WHAT", "VERSION", "BEFORE", "MOVED", "STATE", "BY", "APPROVED BY", "WHY")]
    for entry in reversed(ledger.entries):
        if entry.kind in (*INTENTIONS, *NOTES, Kind.OUTSIDE, Kind.CARRIED_OVER):
            undoes = f" of {', '.join(map(str, entry.undoes))}" if entry.undoes else ""
            rows.append(
                (
                    str(entry.number),
                    entry.at,
                    entry.kind.value + undoes,
                    entry.version or "-",
                    entry.previous_version or "-",
                    ", ".join(map(str, entry.moves)) or "-",
                    _state(ledger, entry),
                    _cell(entry.actor),
                    _cell(entry.approver),
                    _cell(entry.reason),
                )
            )
    text = columns(rows) if ledger.entries else one_line(f"{ledger.model} has no history yet.")
    if ledger.earlier:
        text += (
            f"\n{ledger.earlier} entries before these are about a model of this name that was deleted: "
            f"see the experiment 'nighttrain history of {one_line(ledger.model)}'"
        )
    return "\n".join([text, *(f"FAULT: {fault}" for fault in ledger.faults)])


def _state(ledger: Ledger, entry: Entry) -> str:
    if entry.kind in NOTES:
        return "-"
    if entry.kind not in INTENTIONS:
        return "noticed"
    closing = ledger.closing(entry.number)
    return closing.kind.value if closing else "unfinished"


def _cell(text: str) -> str:
    return clip(one_line(text), WIDEST) or "-"


def _status(options: argparse.Namespace) -> bool:
    found = asyncio.run(_read_status(options))
    if options.json:
        shown = [each.to_dict() for each in found]
        print(json.dumps(shown[0] if options.model else shown))
    else:
        print("\n\n".join(map(status_text, found)) if found else "MLflow has no registered models.")
    return not any(each.faults for each in found)


async def _read_status(options: argparse.Namespace) -> list[ModelStatus]:
    async with MLflowClient(required_tracking(options.mlflow_uri)) as client:
        registry = ModelRegistry(client)
        if options.model:
            return [await read_status(registry, options.model)]
        return [await _status_or_fault(registry, name) for name in await registry.model_names()]


async def _status_or_fault(registry: ModelRegistry, name: str) -> ModelStatus:
    """How one of many stands: what is wrong with it does not hide the others."""
    try:
        return await read_status(registry, name)
    except (ConfigurationError, RegistryError, TrackingRequestError) as error:
        return ModelStatus(model=name, faults=(str(error),))


def status_text(status: ModelStatus) -> str:
    """How a model stands, for a person."""
    rows: list[tuple[str, ...]] = [("HELD", "VERSION", "SINCE", "BY", "APPROVED BY", "ENTRY")]
    rows += _held_rows("alias", status.aliases)
    rows += _held_rows("stage", status.stages)
    rows += _held_rows("serves at", status.serving)
    lines = [one_line(status.model), columns(rows) if len(rows) > 1 else "holds no alias and no stage"]
    lines += [f"verdict: version {v} {_cell(kind)}: {_cell(summary)}" for v, kind, summary in status.verdicts]
    lines += [f"waiting: {one_line(sentence)}" for sentence in status.waiting]
    lines += [f"FAULT: {one_line(fault)}" for fault in status.faults]
    return "\n".join(lines)


def _held_rows(kind: str, held: Iterable[Held]) -> list[tuple[str, ...]]:
    return [
        (
            one_line(f"{kind} {each.what}"),
            each.version,
            each.since or "-",
            _cell(each.by),
            _cell(each.approver),
            str(each.entry or "-"),
        )
        for each in held
    ]


def _rollback(options: argparse.Namespace) -> bool:
    try:
        change = asyncio.run(_roll_back(options))
    except TrackingError as error:
        raise TrackingError(f"{error}\n{_after_an_error(options, error)}") from error
    where = change.alias or change.stage or "the stage"
    if change.changed:
        text = (
            f"{change.name}: {where} is on {_version(change.version)} again; it was on "
            f"{_version(change.previous_version)} (entry {change.number})"
        )
    else:
        text = f"{change.name}: {where} is on {_version(change.version)} already"
    print(one_line(text))
    return True


def _after_an_error(options: argparse.Namespace, error: TrackingError) -> str:
    """What to do where nobody knows whether the rollback was made."""
    if options.to or options.undo:
        return "The rollback may be begun or done already: repeat the command, it does not go back twice"
    return "\n".join(getattr(error, "__notes__", ())) or "Nothing was begun: repeat the command"


async def _roll_back(options: argparse.Namespace) -> Change:
    async with MLflowClient(required_tracking(options.mlflow_uri)) as client:
        return await roll_back(
            ModelRegistry(client),
            options.model,
            alias=options.alias,
            stage=options.stage,
            to=options.to,
            undo=options.undo,
            author=Author(actor=person(), reason=options.reason or "rolled back by hand"),
        )


def _version(version: str | None) -> str:
    return f"version {version}" if version else "no version"
