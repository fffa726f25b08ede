"""Kubernetes quantities as numbers."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_SUFFIXES: dict[str, int | Decimal] = {
    "": 1,
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}
_QUANTITY = re.compile(r"([+-]?)([0-9.]+)(?:[eE]([+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
# As in the API, no quantity is larger than this, whatever was written.
_LARGEST = Decimal(2**63 - 1)
# Powers of ten beyond these are as good as the largest quantity, or as nothing.
_MOST_ZEROS = 100


def quantity(text: str | float) -> Decimal:
    """A Kubernetes quantity as a number. Raises :class:`ValueError`."""
    match = _QUANTITY.fullmatch(str(text))
    try:
        if match is None:
            raise InvalidOperation
        sign, number, exponent, suffix = match.groups()
        zeros = max(-_MOST_ZEROS, min(_MOST_ZEROS, int(exponent or "0")))
        digits = min(Decimal(number), _LARGEST)
        amount = min(digits * Decimal(10) ** zeros * Decimal(_SUFFIXES[suffix or ""]), _LARGEST)
    except (InvalidOperation, ValueError) as error:
        raise ValueError(f"{text!r} is not a quantity") from error
    return -amount if sign == "-" else amount
