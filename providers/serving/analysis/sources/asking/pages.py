"""Counters on servers' pages of metrics, in Prometheus' text format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from nighttrain.providers.serving.analysis.sources.asking.sending import (
    Answer,
    CannotTell,
    Json,
    beside,
    send,
)

# A large server's page has about one megabyte; a line of it is never as long as this.
MAX_PAGE, MAX_LINE = 16 << 20, 10_000

_SERIES = re.compile(
    r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[^"}]|"(?:\\.|[^"\\])*")*)\})?\s+(\S+)(?:\s+-?\d+)?\s*'
)
_LABEL = re.compile(r'([a-zA-Z_]\w*)\s*=\s*"((?:\\.|[^"\\])*)"')


def scrape(task: Json) -> list[Answer]:
    """Read the page of every pod, at once."""
    pages: list[Answer] = [Answer(0, b"", 0.0, "not read in time", True, "")] * len(task["pods"])

    def read(number: int, url: str) -> None:
        pages[number] = send(
            url,
            timeout=float(task["timeout"]),
            headers={"accept": "text/plain;version=0.0.4"},
            limit=MAX_PAGE,
        )

    calls = [lambda number=number, url=url: read(number, url) for number, url in enumerate(task["pods"])]
    beside(*calls, seconds=float(task["timeout"]) + 1)
    return pages


def series_of(page: Answer, names: set[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """The named series of a page in Prometheus' text format.

    :raises CannotTell: there is no page, or a number that no counter can have
    """
    if page.why:
        raise CannotTell(page.why)
    beginnings = tuple(names)
    for line in page.body.decode("utf-8", "replace").split("\n"):
        named = line.startswith(beginnings) and len(line) <= MAX_LINE
        match = _SERIES.fullmatch(line) if named else None
        if match is None or match[1] not in names:
            continue
        try:
            value = float(match[3])
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise CannotTell(f"{match[1]} is said to be {match[3][:40]}")
        labels = {name: _plain(text) for name, text in _LABEL.findall(match[2] or "")}
        yield match[1], labels, value


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], text)


def matches(labels: dict[str, str], matchers: Sequence[Sequence[str]]) -> bool:
    """True if labels are as Prometheus' matchers ask: ``[["code", "=~", "5.."], ...]``."""
    for name, operator, wanted in matchers:
        held = labels.get(name, "")
        same = re.fullmatch(wanted, held) is not None if "~" in operator else held == wanted
        if same == operator.startswith("!"):
            return False
    return True


def added(page: Answer, wanted: Sequence[Json], *, required: bool) -> float:
    """The sum of some series of one page; 0 for series that come with their first value."""
    found = [
        value
        for name, labels, value in series_of(page, {each["name"] for each in wanted})
        if any(each["name"] == name and matches(labels, each["matchers"]) for each in wanted)
    ]
    if required and not found:
        raise CannotTell(f"there is no {wanted[0]['name']}")
    return sum(found)


def count_requests(pages: list[Answer], want: Json) -> Json:
    """Requests, errors and requests in flight of each pod."""

    def read(page: Answer) -> list[int]:
        required = bool(want["required"])
        return [
            round(added(page, want[name], required=required)) if want[name] else 0
            for name in ("requests", "errors", "in_flight")
        ]

    return each_page(pages, read)


def each_page(pages: list[Answer], read: Callable[[Answer], list[int]]) -> Json:
    """What was read of each pod, ``None`` where nothing could be, and the first reason."""
    rows: list[list[int] | None] = []
    why = ""
    for page in pages:
        try:
            rows.append(read(page))
        except CannotTell as error:
            rows.append(None)
            why = why or str(error)[:200]
    return {"pods": rows, "why": why}


def count_over(pages: list[Answer], want: Json) -> Json:
    """Requests of each pod, and those above its limit; without a limit the stable pods' buckets give it."""
    histograms = [_histogram_or_none(page, want) for page in pages]
    tau, bound = want["tau"], want["bound"]
    if tau is None:
        stable = [found for found, of in zip(histograms, want["stable"], strict=True) if found and of]
        tau, bound = limits_of(stable, want)
    rows = []
    for found, of_stable in zip(histograms, want["stable"], strict=True):
        limit = tau if of_stable else bound
        if found is None or limit is None:
            rows.append(None if found is None else [round(found[math.inf]), 0])
        else:
            within = max((count for le, count in found.items() if le <= limit), default=0.0)
            rows.append([round(found[math.inf]), round(found[math.inf] - within)])
    why = "" if all(histograms) else each_page(pages, lambda page: [len(histogram(page, want))])["why"]
    return {"pods": rows, "why": why, "tau": tau, "bound": bound}


def _histogram_or_none(page: Answer, want: Json) -> dict[float, float] | None:
    try:
        return histogram(page, want)
    except CannotTell:
        return None


def histogram(page: Answer, want: Json) -> dict[float, float]:
    """Upper bound in seconds -> requests up to it.

    :raises CannotTell: there is none, or it contradicts itself
    """
    series, found = want["series"], dict[float, float]()
    for _, labels, value in series_of(page, {f"{series['name']}_bucket"}):
        if matches(labels, series["matchers"]):
            try:
                bound = float(labels.get("le", "")) * float(series["unit"])
            except ValueError as error:
                raise CannotTell(f"a bucket of {series['name']} has no bound") from error
            found[bound] = found.get(bound, 0.0) + value
    ordered = [found[bound] for bound in sorted(found)]
    if math.inf not in found and (found or want["required"]):
        raise CannotTell(f"there is no whole histogram {series['name']}")
    if ordered != sorted(ordered):
        raise CannotTell(f"the buckets of {series['name']} contradict one another")
    return found or {math.inf: 0.0}


def limits_of(stable: Sequence[dict[float, float]], want: Json) -> tuple[float | None, float | None]:
    """The bucket's bound that holds the stable version's quantile, and the candidate's.

    :raises CannotTell: no bucket is wide enough
    """
    total = sum(found[math.inf] for found in stable)
    if total * (1 - want["quantile"]) < 1 - 1e-9:
        return None, None
    bounds = sorted(set.intersection(*(set(found) for found in stable)) - {math.inf})
    within = {bound: sum(found[bound] for found in stable) for bound in bounds}
    tau = next((bound for bound in bounds if within[bound] >= want["quantile"] * total - 1e-9), None)
    least = math.inf if tau is None else tau * (1 + want["increase"]) - 1e-12
    bound = next((bound for bound in bounds if bound >= least), None)
    if bound is None:
        raise CannotTell("the stable version is slower than the largest bucket of its histogram allows")
    return tau, bound
