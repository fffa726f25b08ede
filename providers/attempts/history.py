"""The record of an attempt and of those before it, in the workload's annotations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.job.memory_growth import grown_memory, set_memory
from nighttrain.providers.kubernetes.outcome.outcome import (
    Outcome,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import (
    ATTEMPT_LABEL,
    CONSUMED_ANNOTATION,
    EPOCH_ANNOTATION,
    INFRASTRUCTURE_ANNOTATION,
    MEMORY_ANNOTATION,
    SPEC_HASH_ANNOTATION,
)
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, text

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.plain_json import Json


@dataclass(frozen=True)
class History:
    """The record that one attempt's object holds.

    :param attempt: its number; 0 for none
    :param epoch: the epoch it was submitted in; ``None`` if attempts are adopted whatever their epoch
    :param consumed: how it ended, once its result is stored; ``None`` before
    :param consumed_epoch: the epoch in which its result was stored
    :param consumed_infrastructure: the cluster ended it, not the training code
    :param infrastructure_failures: attempts right before it that the cluster ended, in its epoch
    :param memory: the memory it was given beyond what its spec says
    """

    attempt: int = 0
    epoch: str | None = None
    consumed: str | None = None
    consumed_epoch: str = ""
    consumed_infrastructure: bool = False
    infrastructure_failures: int = 0
    memory: str | None = None
    spec_hash: str = ""


def history_of(obj: Json | None) -> History:
    """Read an object; what is missing or unreadable counts as never written."""
    if obj is None:
        return History()
    annotations = mapping(metadata(obj).get("annotations"))
    note = _note(text(annotations.get(CONSUMED_ANNOTATION)))
    return History(
        attempt=_number(text(mapping(metadata(obj).get("labels")).get(ATTEMPT_LABEL))),
        epoch=annotations.get(EPOCH_ANNOTATION),
        consumed=str(note.get("kind", OutcomeKind.UNKNOWN.value)) if note else None,
        consumed_epoch=str(note.get("epoch", "")),
        consumed_infrastructure=note.get("infrastructure") is True,
        infrastructure_failures=_number(text(annotations.get(INFRASTRUCTURE_ANNOTATION))),
        memory=text(annotations.get(MEMORY_ANNOTATION)) or None,
        spec_hash=text(annotations.get(SPEC_HASH_ANNOTATION)),
    )


def write_history(
    obj: Json,
    before: History,
    spec: WorkloadSpec,
    epoch: str,
    *,
    kind: WorkloadKind,
    adopts_earlier_epochs: bool,
) -> None:
    """Add to the manifest of the next attempt what it follows from.

    :param before: the latest attempt's; that of no attempt if this is the first
    :raises ConfigurationError: ``oom_memory_factor`` without a memory limit to raise
    """
    annotations = obj["metadata"]["annotations"]
    if not adopts_earlier_epochs:
        annotations[EPOCH_ANNOTATION] = epoch
    annotations[INFRASTRUCTURE_ANNOTATION] = str(_infrastructure_failures(before, epoch))
    same_spec = before.spec_hash == annotations[SPEC_HASH_ANNOTATION]
    memory = before.memory if same_spec else None
    if same_spec and before.consumed == OutcomeKind.OUT_OF_MEMORY.value:
        memory = grown_memory(spec, memory) or memory
    if memory is not None:
        set_memory(kind.pod_template(obj), memory)
        annotations[MEMORY_ANNOTATION] = memory


def consumed_note(epoch: str, outcome: Outcome | None) -> str:
    """The annotation's value that says: this attempt's result is stored."""
    kind = outcome.kind if outcome else OutcomeKind.UNKNOWN
    note = {"epoch": epoch, "kind": kind.value, "infrastructure": bool(outcome and outcome.infrastructure)}
    return json.dumps(note)


def _infrastructure_failures(before: History, epoch: str) -> int:
    """The number of attempts in a row that the cluster ended, in this epoch."""
    if before.consumed is not None and before.consumed_epoch != epoch:
        return 0
    if before.epoch is not None and before.epoch != epoch:
        return 0
    return before.infrastructure_failures + (1 if before.consumed_infrastructure else 0)


def _note(written: str) -> Json:
    if not written:
        return {}
    try:
        note = json.loads(written)
    except ValueError:
        note = None
    # A note that nobody can read was still written: the result is stored.
    return note if isinstance(note, dict) and note else {"kind": OutcomeKind.UNKNOWN.value}


def _number(written: str) -> int:
    return int(written) if written.isascii() and written.isdigit() else 0
