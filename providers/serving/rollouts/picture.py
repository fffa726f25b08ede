"""A rollout as a picture (SVG): the share and each metric over time, with the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.serving.analysis.values import Verdict

if TYPE_CHECKING:
    from nighttrain.providers.serving.rollouts.state import Point, State

# Wide enough for an hour of points every half minute, and for a page of MLflow without scrolling sideways.
WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 860, 110, 70, 20, 56, 34

CANDIDATE, STABLE, SHARE = "#d55e00", "#0072b2", "#999999"
COLOURS = {
    Verdict.SUCCESSFUL: "#009e73",
    Verdict.FAILED: "#cc0000",
    Verdict.INCONCLUSIVE: "#bbbbbb",
    Verdict.ERROR: "#e69f00",
}

Pair = tuple[float, float | None]


def draw(state: State) -> str:
    """The picture as SVG text. Every text in it is escaped: names are other people's."""
    points = state.points
    metrics = sorted({name for point in points for name in point.values})
    height = TOP + (PANEL + GAP) * (len(metrics) + 1) + 20
    x = _scale([state.begun_at, state.since, *(point.at for point in points)], LEFT, WIDTH - RIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 18, _title(state), size=14),
        _text(LEFT, 36, clip(state.reason, 140), colour="#cc0000") if state.reason else "",
        *_share_panel(points, x, TOP),
    ]
    for number, name in enumerate(metrics, start=1):
        parts += _metric_panel(name, points, x, TOP + number * (PANEL + GAP))
    return "\n".join(part for part in [*parts, "</svg>"] if part)


def _title(state: State) -> str:
    target = state.target
    beside = f" beside version {target.stable}" if target.stable else ""
    return f"{target.endpoint}: version {target.candidate}{beside} - {state.phase}"


def _share_panel(points: Sequence[Point], x: Callable[[float], float], top: float) -> list[str]:
    y = _scale([0.0, 100.0], top + PANEL, top)
    parts = [*_frame("share of the requests, percent", top, "100", "0")]
    parts.append(_line([(point.at, point.percent) for point in points], x, y, SHARE))
    for point in points:
        colour = COLOURS.get(Verdict(point.verdict), SHARE)
        parts.append(
            f'<circle cx="{x(point.at):.1f}" cy="{y(point.percent):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(point.verdict)}</title></circle>"
        )
    legend = zip(COLOURS, range(4), strict=True)
    parts += [
        _text(WIDTH - RIGHT - 330 + 85 * place, top - 6, verdict.value, colour=COLOURS[verdict])
        for verdict, place in legend
    ]
    return parts


def _metric_panel(name: str, points: Sequence[Point], x: Callable[[float], float], top: float) -> list[str]:
    series = {
        colour: [(point.at, point.values.get(name, (None, None))[place]) for point in points]
        for place, colour in enumerate((CANDIDATE, STABLE))
    }
    known = [value for each in series.values() for _, value in each if value is not None]
    highest = max([*known, 0.0]) or 1.0
    lowest = min([*known, 0.0])
    y = _scale([lowest, highest], top + PANEL, top)
    return [
        *_frame(name, top, f"{highest:.3g}", f"{lowest:.3g}"),
        *(_line(each, x, y, colour) for colour, each in series.items()),
        _text(WIDTH - RIGHT - 130, top - 6, "candidate", colour=CANDIDATE),
        _text(WIDTH - RIGHT - 50, top - 6, "stable", colour=STABLE),
    ]


def _frame(title: str, top: float, highest: str, lowest: str) -> list[str]:
    return [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL}" fill="none" '
        'stroke="#dddddd"/>',
        _text(LEFT, top - 6, title),
        _text(8, top + 10, highest),
        _text(8, top + PANEL, lowest),
    ]


def _line(
    values: Sequence[Pair], x: Callable[[float], float], y: Callable[[float], float], colour: str
) -> str:
    """Straight pieces between neighbours; where nothing was measured there is a gap."""
    pieces = [
        f"M{x(before):.1f} {y(old):.1f}L{x(now):.1f} {y(new):.1f}"
        for (before, old), (now, new) in pairwise(values)
        if old is not None and new is not None
    ]
    return f'<path d="{"".join(pieces)}" fill="none" stroke="{colour}" stroke-width="1.5"/>' if pieces else ""


def _text(x: float, y: float, text: str, *, size: int = 11, colour: str = "#333333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    lowest, highest = min(values), max(values)
    length = (highest - lowest) or 1.0
    return lambda value: start + (value - lowest) / length * (end - start)
