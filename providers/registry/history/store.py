"""Where the history is: one run of MLflow's for each entry, in an experiment of the model's own.

The next number is given to one process only, by an election that the entry's run wins or loses: whoever
appends says which entry it read last, and fails when somebody else was first. So appending is a
compare-and-swap, which MLflow has nowhere else. Each entry has the digest of the one before, so that an entry
that was changed or taken away afterwards is noticed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ConfigurationError,
    HistoryMovedError,
    TrackingNotFoundError,
    TrackingTrashError,
    TrackingUnreachableError,
)
from nighttrain.providers.registry.history.entries import Entry, digest_of
from nighttrain.providers.registry.history.ledger import Ledger
from nighttrain.providers.tracking.config import PAGE
from nighttrain.providers.tracking.election import Election
from nighttrain.providers.tracking.names import MAX_EXPERIMENT_NAME, fit
from nighttrain.providers.tracking.run_store import RunStore
from nighttrain.providers.tracking.runs import Run, RunKey, RunStatus
from nighttrain.providers.tracking.tags import HISTORY_ENTRY_TAG, PREFIX, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NUMBER_TAG = f"{PREFIX}history.number"
"""Beside the entry itself, its main parts are tags for people and for filters."""

MAX_GAP = 100
"""Entries that may be gone for good before one that is there: each costs a request at every reading."""


@dataclass(frozen=True)
class _Found:
    """What is found under one number."""

    number: int
    raw: str | None
    """The entry as it is written; ``None`` where its run is gone for good."""
    digest: str
    faults: tuple[str, ...] = ()


class History(RunStore):
    """Reads and appends the history of one model.

    :param store: runs of the tracking server
    :param model: the registered model
    """

    def __init__(self, store: RunStore, model: str) -> None:
        super().__init__(store.client, clock=store._clock)
        self.model = model
        self.experiment_name = fit(f"nighttrain history of {model}", MAX_EXPERIMENT_NAME)

    async def read(self) -> Ledger:
        """Every entry, in order, with sentences about what is wrong with them.

        :raises ConfigurationError: the experiment is in MLflow's trash
        :raises TrackingError: MLflow does not answer, or refuses
        """
        runs = await self._runs()
        found: list[_Found] = []
        last = _last_number(runs)
        while True:
            number = len(found) + 1
            each = await self._at(number, runs.get(number, []), is_last=number == last)
            if each is None and number > last:
                return _ledger(self.model, found)
            found.append(each or _Found(number, None, "", (f"entry {number} is gone",)))

    async def append(self, ledger: Ledger, entry: Entry) -> Entry:
        """Write the next entry, unless somebody else did since ``ledger`` was read.

        :param entry: its number, its time, the digest of the one before and the model's are filled in
        :returns: the entry as it is written
        :raises HistoryMovedError: somebody else did; nothing is left of this one
        """
        entry = replace(
            entry,
            number=ledger.last_number + 1,
            model=self.model,
            previous=ledger.last_digest,
            model_created=ledger.model_created,
            at=entry.at or datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="seconds"),
        ).fitted()
        if await self.has_moved_past(ledger.last_number):  # before a run is made in vain
            raise HistoryMovedError(_moved(entry))
        experiment = await self.ensure_experiment(self.experiment_name)
        run = await self._create(
            experiment, self._key(), name=_run_name(entry), tags=_tags(entry, entry.to_json())
        )
        mine = f"{run.run_id} {entry.digest}"
        won = await self._election(entry.number).stand(mine) == mine
        if not won or await self._was_finished_by_another(entry.number, run.run_id):
            await self.discard(run.run_id)
            raise HistoryMovedError(_moved(entry))
        with suppress(TrackingUnreachableError):  # whoever reads it next does so: it is elected
            await self.close(run.run_id, RunStatus.FINISHED)
        return entry

    async def has_moved_past(self, number: int) -> bool:
        """Tell whether there is an entry after that one, with a single request."""
        return await self._election(number + 1).elected() is not None

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    async def _runs(self) -> dict[int, list[Run]]:
        """The runs of the entries, those that lost and those in the trash too, by number."""
        by_number: dict[int, list[Run]] = defaultdict(list)
        try:
            answer = await self.client.get(
                "experiments/get-by-name", {"experiment_name": self.experiment_name}
            )
        except TrackingNotFoundError:
            return by_number
        experiment = answer["experiment"]
        if experiment.get("lifecycle_stage") == "deleted":
            raise ConfigurationError(
                "experiment",
                self.experiment_name,
                "the model's history is in MLflow's trash: mlflow experiments restore --experiment-id "
                f"{experiment['experiment_id']}",
            )
        asked = {
            "experiment_ids": [str(experiment["experiment_id"])],
            "run_view_type": "ALL",
            "max_results": PAGE,
        }
        for run in map(Run.from_api, await self.client.search("runs", asked)):
            number = run.tags.get(NUMBER_TAG, "")
            if HISTORY_ENTRY_TAG in run.tags and number.isascii() and number.isdigit() and len(number) < 10:
                by_number[int(number)].append(run)
        return by_number

    async def _at(self, number: int, runs: Sequence[Run], *, is_last: bool) -> _Found | None:
        finished = [run for run in runs if _is_finished(run)]
        # Of the last one only the election says what it was; of the others the one after it does.
        if len(finished) == 1 and not is_last:
            return _found(number, finished[0])
        elected = await self._election(number).elected()
        if elected is None and not finished:
            return None
        run_id, _, digest = (elected or "").partition(" ")
        of_two = (f"two runs say that they are entry {number}",) if len(finished) > 1 else ()
        chosen = next((run for run in runs if run.run_id == run_id), finished[0] if finished else None)
        if chosen is None and run_id:
            # Made after the runs were listed: who takes it for gone takes what it moves for nobody's.
            chosen = await self._get_or_none(run_id)
        if chosen is None or HISTORY_ENTRY_TAG not in chosen.tags:
            return _Found(number, None, digest, (f"entry {number} is gone",))
        if not _is_finished(chosen) and not chosen.deleted:
            with suppress(TrackingTrashError):
                await self.close(chosen.run_id, RunStatus.FINISHED)  # its writer died before it could
        found = _found(number, chosen)
        changed = (f"entry {number} was changed after it was written",) if digest != found.digest else ()
        if not elected:
            return replace(found, faults=(*found.faults, *of_two))
        # The next entry names what was elected, so that the change is told by whoever reads it later.
        return replace(found, digest=digest, faults=(*found.faults, *of_two, *changed))

    async def _was_finished_by_another(self, number: int, run_id: str) -> bool:
        """Tell whether that number was given once already: its election is gone with MLflow's trash."""
        answer = await self.client.get("experiments/get-by-name", {"experiment_name": self.experiment_name})
        filter_ = f"tags.`{NUMBER_TAG}` = {quoted(str(number))} and attributes.status = 'FINISHED'"
        found = await self._search(str(answer["experiment"]["experiment_id"]), filter_)
        return any(run.run_id != run_id for run in found)

    def _election(self, number: int) -> Election:
        return Election(self.client, "history", self.model, f"entry {number}")

    def _key(self) -> RunKey:
        return RunKey(orchestrator="nighttrain", dag_id="history", run_id=self.model)


def _last_number(runs: Mapping[int, Sequence[Run]]) -> int:
    """The last number whose run is there; runs far behind a gap are somebody's mistake."""
    last = 0
    for number in sorted(number for number, these in runs.items() if any(map(_is_finished, these))):
        if number > last + MAX_GAP:
            break
        last = number
    return last


def _ledger(model: str, found: Sequence[_Found]) -> Ledger:
    entries: list[Entry] = []
    faults: list[str] = []
    before = ""
    for each in found:
        faults += each.faults
        entry = None if each.raw is None else _entry(each.raw)
        if entry is None:
            faults += [] if each.faults else [f"entry {each.number} cannot be read"]
        else:
            if before and entry.previous != before:
                faults.append(f"entry {each.number - 1} is not what entry {each.number} says it was")
            entries.append(replace(entry, number=each.number, model=model))
        before = each.digest
    last = found[-1] if found else _Found(0, None, "")
    return Ledger(model, tuple(entries), last.number, last.digest, tuple(dict.fromkeys(faults)))


def _entry(raw: str) -> Entry | None:
    try:
        return Entry.from_dict(json.loads(raw))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _found(number: int, run: Run) -> _Found:
    raw = run.tags[HISTORY_ENTRY_TAG]
    trash = f"entry {number} is in MLflow's trash: mlflow runs restore --run-id {run.run_id}"
    return _Found(number, raw, digest_of(raw), (trash,) if run.deleted else ())


def _is_finished(run: Run) -> bool:
    return run.status == RunStatus.FINISHED.value


def _tags(entry: Entry, written: str) -> dict[str, object]:
    return {
        HISTORY_ENTRY_TAG: written,
        NUMBER_TAG: entry.number,
        **{f"{PREFIX}history.{name}": value for name, value in _parts_for_filters(entry) if value},
    }


def _parts_for_filters(entry: Entry) -> Iterable[tuple[str, str | None]]:
    yield "kind", entry.kind.value
    yield "model", entry.model
    yield "version", entry.version
    yield "alias", entry.alias
    yield "stage", entry.stage
    yield "actor", entry.actor
    yield "approver", entry.approver
    yield "reason", entry.reason
    yield "dag_run", entry.dag_run
    yield "undoes", " ".join(map(str, entry.undoes))


def _moved(entry: Entry) -> str:
    return f"somebody else wrote entry {entry.number} of the history of {entry.model!r}"


def _run_name(entry: Entry) -> str:
    about = f" of version {entry.version}" if entry.version else ""
    closes = f" of entry {entry.finishes}" if entry.finishes else ""
    where = f" ({entry.alias or entry.stage})" if entry.alias or entry.stage else ""
    return f"{entry.number} {entry.kind.value}{about}{where}{closes}"
