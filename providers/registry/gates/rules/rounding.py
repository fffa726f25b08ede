"""What binary fractions make of decimal ones: 0.3 - 0.1 is 0.19999999999999998, and 0.2 is not above it."""

from __future__ import annotations

ROUNDING = 1e-12
"""A share of the largest number in a comparison. A few operations with doubles are wrong by some 2.2e-16 of
it, a mean over a million rows by some 1e-13; no measurement tells differences that small apart."""


def rounding(*numbers: float) -> float:
    """How far two numbers that were made of these may be apart and still count as equal.

    Of what is subtracted, not of the small rest, which has all of the error.
    """
    return ROUNDING * max(map(abs, numbers))
