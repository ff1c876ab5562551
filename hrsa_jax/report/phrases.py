"""How numbers and counts are written, for the terminal and for the page: one function for each kind of number."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MOST_DIGITS = 6  # closer to the margin than this is equal to it


@dataclass(frozen=True)
class Paragraph:
    """A question, its answer, and the numbers behind the answer."""

    question: str
    answer: str
    numbers: tuple[str, ...] = ()


def points(value: float, margin: float = math.nan) -> str:
    """A signed number of points with two digits, or as many more as show which side of 0 and of the margin it is on.

    -0.9997 with a margin of 1 is `-0.9997` and not `-1.00`, which could lie inside as well as outside.
    """
    if math.isnan(value):
        return "n/a"
    bounds = [0.0] if math.isnan(margin) else [-margin, 0.0, margin]
    for digits in range(2, _MOST_DIGITS + 1):
        text = f"{value:+.{digits}f}"
        if all(_side(float(text), bound) == _side(value, bound) for bound in bounds):
            return text
    return f"{value:+.2f}"


def _side(value: float, bound: float) -> int:
    return (value > bound) - (value < bound)


def effect_text(estimate: float, low: float, high: float, margin: float = math.nan) -> str:
    """`+0.10 points (90% interval -0.20 to +0.40)`, or the value with "no interval"."""
    if math.isnan(low) or math.isnan(high):
        return f"{points(estimate, margin)} points (no interval)"
    return f"{points(estimate, margin)} points (90% interval {points(low, margin)} to {points(high, margin)})"


def bracketed(low: float, high: float, margin: float = math.nan) -> str:
    """`[-0.20, +0.40]` in points."""
    return f"[{points(low, margin)}, {points(high, margin)}]"


def estimate_text(value: float, low: float, high: float, digits: int = 3) -> str:
    """`0.912 [0.900, 0.921]`, or the value with "no interval"."""
    if math.isnan(value):
        return "not measured"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f} (no interval)"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
