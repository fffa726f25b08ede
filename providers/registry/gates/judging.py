"""The verdict of all rules together. Pure: no I/O, no clock, no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates.parsing import parse_rules
from nighttrain.providers.registry.gates.recorded import CANDIDATE, CHAMPION, Recorded
from nighttrain.providers.registry.gates.rules.base import NO_CHAMPION, NoChampion, Rule
from nighttrain.providers.registry.gates.verdicts import Verdict, VerdictKind


def judge_recorded(
    rules: Sequence[str | Mapping[str, Any] | Rule], recorded: Recorded, *, no_champion: str = "accept"
) -> Verdict:
    """Judge what is on record.

    A rule that finds no data is *inconclusive*: it neither accepts nor rejects. The verdict is rejected when
    any rule rejects, else inconclusive when any is, else accepted.

    :param no_champion: what a rule against the champion says while there is none: ``accept``, ``reject`` or
        ``inconclusive``
    :raises ConfigurationError: no rules, a rule that cannot be read, an unknown ``no_champion``, a group that
        is no mapping
    """
    if no_champion not in NO_CHAMPION:
        raise ConfigurationError("no_champion", no_champion, f"one of {', '.join(NO_CHAMPION)}")
    for name, values in recorded.groups.items():
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"measurements.{name}", values, "give a mapping of metrics to numbers")
    without = NoChampion(no_champion)
    evidence = tuple(rule.judge(recorded, without) for rule in parse_rules(rules))
    kinds = {item.verdict for item in evidence}
    for kind in (VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE):
        if kind in kinds:
            return Verdict(kind, evidence)
    return Verdict(VerdictKind.ACCEPTED, evidence)


def judge(
    rules: Sequence[str | Mapping[str, Any] | Rule],
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    *,
    others: Mapping[str, Mapping[str, Any]] | None = None,
    no_champion: str = "accept",
) -> Verdict:
    """Judge measurements alone.

    :param champion: the champion's measurements on the same data; ``None`` when there is no champion yet
    :param others: of any other group: ``{"baseline": {...}}``; a champion among them counts where
        ``champion`` is ``None``
    :param no_champion: what a rule against the champion says then: ``accept``, ``reject`` or ``inconclusive``
    :raises ConfigurationError: as :func:`judge_recorded`
    """
    if others is not None and not isinstance(others, Mapping):
        raise ConfigurationError("others", others, "give a mapping of groups: {'baseline': {'mae': 18.0}}")
    groups: dict[str, Mapping[str, Any]] = {**(others or {}), CANDIDATE: candidate}
    if champion is not None:
        groups[CHAMPION] = champion
    elif groups.get(CHAMPION) is None:
        groups.pop(CHAMPION, None)
    return judge_recorded(rules, Recorded(groups, has_champion=CHAMPION in groups), no_champion=no_champion)
