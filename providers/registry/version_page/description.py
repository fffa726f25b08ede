"""A version's description, for people: the verdict in a sentence, the numbers in a table, and where it leads.

Pure. What is written by nighttrain stands between two marks, which no renderer shows; a person's text around
them is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nighttrain.providers.measured import Measured, NoNumber, read
from nighttrain.providers.registry.gates.verdicts import VerdictKind, show_number
from nighttrain.providers.registry.markdown import link, row, text
from nighttrain.providers.tracking.names import MAX_DESCRIPTION

BEGIN, END = "<!-- nighttrain: written anew with each verdict -->", "<!-- /nighttrain -->"
"""Around what is ours."""

MAX_METRICS = 24
"""Rows of the table: more than a person compares, and what fits beside the rest."""

MAX_SENTENCE = 600
"""Of the verdict's reasons: the gate's table has all of them."""

COMPARED = ("candidate", "champion", "baseline")
"""The groups that come first, in this order; at most three more follow."""
_MORE_GROUPS = 3

_SHORTENED = "(The rest does not fit here.)"
_VERDICTS = {
    VerdictKind.ACCEPTED.value: "Accepted",
    VerdictKind.REJECTED.value: "Rejected",
    VerdictKind.INCONCLUSIVE.value: "Inconclusive",
}


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that serves the version: ``namespace/name``, its address, since when and by whom."""

    name: str
    url: str = ""
    since: str = ""
    by: str = ""


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """What is known of a version. All of it may be missing, and none of it is trusted.

    :param verdict: ``accepted``, ``rejected`` or ``inconclusive``; empty before the gate
    :param reasons: the sentences that decided it
    :param measurements: group (``candidate``, ``champion``, ``baseline``, ...) -> metric -> value
    :param night: an ISO date
    :param interval: begin and end of the data
    :param dag_run: the run of the orchestrator, and ``dag_run_url`` its page
    :param job: the workload that trained it, ``namespace/name``
    """

    name: str = ""
    version: str = ""
    verdict: str = ""
    reasons: str = ""
    measurements: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    champion_version: str = ""
    night: str = ""
    interval: tuple[str, str] = ("", "")
    dag_run: str = ""
    dag_run_url: str = ""
    job: str = ""
    serving: tuple[Endpoint, ...] = ()


def describe(facts: VersionFacts, *, limit: int = MAX_DESCRIPTION) -> str:
    """The description in Markdown, at most ``limit`` characters, cut after a whole line."""
    blocks = [
        [_verdict_line(facts), "", _serving_line(facts)],
        _table(facts),
        _origin(facts),
    ]
    lines: list[str] = []
    for block in blocks:
        if block:
            lines += ["", *block] if lines else block
    return _within(lines, limit)


def compose(existing: str, ours: str, *, limit: int = MAX_DESCRIPTION) -> str:
    """``existing`` with ``ours`` in it: in the place of what was ours, or else before a person's text.

    A person's text is never changed or cut. Where there is no room for ours, or where only one of the marks
    is left, ``existing`` stays as it is.
    """
    begin = existing.find(BEGIN)
    end = existing.find(END, begin + len(BEGIN)) if begin >= 0 else existing.find(END)
    if (begin >= 0) != (end >= 0):
        return existing
    if begin >= 0:
        before, after = existing[:begin], existing[end + len(END) :]
    else:
        before, after = "", f"\n\n{existing}" if existing.strip() else ""
    room = limit - len(before) - len(after) - len(BEGIN) - len(END) - 2
    fitted = _within(ours.splitlines(), room)
    if not fitted.strip():
        return existing
    return f"{before}{BEGIN}\n{fitted}\n{END}{after}"


def persons_part(description: str) -> str:
    """What is not ours of a description."""
    begin, end = description.find(BEGIN), description.find(END)
    if begin < 0 or end < begin:
        return description.strip()
    return f"{description[:begin]}{description[end + len(END) :]}".strip()


def _verdict_line(facts: VersionFacts) -> str:
    kind = _VERDICTS.get(facts.verdict)
    if kind is None:
        return f"**{text(facts.verdict)}**" if facts.verdict else "**Not judged yet.**"
    reasons = facts.reasons.removeprefix(f"{facts.verdict}:").strip()
    sentence = text(reasons, MAX_SENTENCE)
    return f"**{kind}**: {sentence}" if sentence else f"**{kind}.**"


def _serving_line(facts: VersionFacts) -> str:
    if not facts.serving:
        return "No endpoint of nighttrain's serves it."
    return f"**Serves** {', '.join(link(each.name, each.url) for each in facts.serving[:5])}"


def _table(facts: VersionFacts) -> list[str]:
    known = {who: values for who, values in facts.measurements.items() if values}
    groups = [who for who in COMPARED if who in known]
    groups += sorted(who for who in known if who not in COMPARED)[:_MORE_GROUPS]
    metrics = list(dict.fromkeys(name for who in groups for name in sorted(known[who])))
    if not metrics:
        return []
    heads = [_head(who, facts) for who in groups]
    lines = [row("", *heads), row(":--", *("--:" for _ in groups))]
    for name in metrics[:MAX_METRICS]:
        lines.append(row(text(name, 80), *(_cell(read(known[who].get(name))) for who in groups)))
    if len(metrics) > MAX_METRICS:
        lines.append(row(f"and {len(metrics) - MAX_METRICS} more", *("" for _ in groups)))
    return lines


def _head(who: str, facts: VersionFacts) -> str:
    versions = {"candidate": facts.version, "champion": facts.champion_version}
    number = versions.get(who)
    return f"{text(who, 40)} (version {text(number, 20)})" if number else text(who, 40)


def _cell(value: Measured) -> str:
    return value.shown if isinstance(value, NoNumber) else show_number(value)


def _origin(facts: VersionFacts) -> list[str]:
    start, end = (text(moment, 40) for moment in facts.interval)
    if start and end and start != end:
        data = f"data from {start} to {end}"
    else:
        data = f"data as of {end or start}" if end or start else ""
    when = ", ".join(part for part in (f"Night {text(facts.night, 40)}" if facts.night else "", data) if part)
    lines = [
        f"- {when[:1].upper()}{when[1:]}" if when else "",
        f"- DAG run {link(facts.dag_run, facts.dag_run_url)}" if facts.dag_run else "",
        f"- Job {text(facts.job)}" if facts.job else "",
    ]
    return [line for line in lines if line]


def _within(lines: list[str], limit: int) -> str:
    """As many whole lines as fit."""
    whole = "\n".join(lines)
    if len(whole) <= limit:
        return whole
    kept: list[str] = []
    used = len(_SHORTENED) + 2
    for line in lines:
        used += len(line) + 1
        if used > limit:
            break
        kept.append(line)
    return "\n".join([*kept, "", _SHORTENED]) if any(line.strip() for line in kept) else ""
