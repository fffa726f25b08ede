"""Measured values: a number, or the name of what stands where one should be. No data is never a number.

SQL stores of MLflow keep an infinity as the greatest float there is, NaN as a flag; the REST API answers bare
words or text. JSON knows none of them. Whatever was measured is read here, and written here.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from numbers import Real
from typing import Any

_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_WORDS = re.compile(r"(?P<sign>[+-]?)(?:(?P<nan>nan)|inf(?:inity)?)", re.IGNORECASE)


SYSTEM_METRICS = "system/"
"""MLflow's own measurements of the machine begin with it."""


class NoNumber(StrEnum):
    """A name for what stands where a number should be; its value is written into JSON."""

    MISSING = "missing"
    NAN = "NaN"
    INFINITE = "Infinity"
    """Also what is greater than any float, and the greatest float itself: see above."""
    MINUS_INFINITE = "-Infinity"
    UNREADABLE = "no number"

    @property
    def shown(self) -> str:
        """For tables and lines."""
        return {"missing": "-", "Infinity": "infinite", "-Infinity": "-infinite"}.get(self.value, self.value)

    @property
    def sentence(self) -> str:
        """Words to follow "it is"."""
        words = {"NaN": "not a number (NaN)", "Infinity": "infinite", "-Infinity": "minus infinity"}
        return words.get(self.value, self.value)


Measured = float | NoNumber


def read(value: object) -> Measured:
    """A finite number, or the name of what is there instead.

    A number may be written as text, as templates and MLflow do; a flag (``True``) is none.
    """
    if value is None:
        return NoNumber.MISSING
    if isinstance(value, str):
        return _read_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return NoNumber.UNREADABLE
    try:
        return _named(float(value))
    except OverflowError:
        return NoNumber.INFINITE if value > 0 else NoNumber.MINUS_INFINITE  # type: ignore[operator]
    except (TypeError, ValueError):
        return NoNumber.UNREADABLE


def to_float(value: object) -> float | None:
    """As a Python float, with its own NaN and infinities; ``None`` where there is no value."""
    measured = read(value)
    if isinstance(measured, float):
        return measured
    others = {NoNumber.INFINITE: math.inf, NoNumber.MINUS_INFINITE: -math.inf, NoNumber.MISSING: None}
    return others.get(measured, math.nan)


def to_json(value: object) -> float | str:
    """A number, or one of :class:`NoNumber`'s words, which :func:`read` understands."""
    measured = read(value)
    return measured if isinstance(measured, float) else measured.value


def plain(value: Any) -> Any:
    """``value`` with every float in it that JSON has no form for replaced by its word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else to_json(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def final_metrics(metrics: Mapping[str, object]) -> dict[str, float | str]:
    """A run's metrics as JSON keeps them, without MLflow's own measurements of the machine.

    They may be an XCom: what is no number is a word, see :func:`to_json`.
    """
    return {name: to_json(value) for name, value in metrics.items() if not name.startswith(SYSTEM_METRICS)}


def _named(number: float) -> Measured:
    if math.isnan(number):
        return NoNumber.NAN
    if abs(number) >= sys.float_info.max:
        return NoNumber.INFINITE if number > 0 else NoNumber.MINUS_INFINITE
    return number


def _read_text(text: str) -> Measured:
    if _NUMERAL.fullmatch(text):
        return _named(float(text))
    if not text or text == NoNumber.MISSING:
        return NoNumber.MISSING
    word = _WORDS.fullmatch(text)
    if word is None:
        return NoNumber.UNREADABLE
    if word["nan"]:
        return NoNumber.NAN
    return NoNumber.MINUS_INFINITE if word["sign"] == "-" else NoNumber.INFINITE
