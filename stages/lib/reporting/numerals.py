"""Writes numbers for people: a true minus sign, an interval beside each value, no negative zero."""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["score", "share", "perplexity", "nats", "count", "relative", "points", "rating"]
"""What a number is, and so how many digits of it are worth printing; shares become per cent,
their differences percentage points."""

DIGITS: dict[str, int] = {
    "score": 3,
    "share": 1,
    "perplexity": 1,
    "nats": 2,
    "count": 1,
    "relative": 1,
    "points": 1,
    "rating": 0,
}
BOUND = "\u00a0"
"""No line breaks within an interval or before a unit."""
PERCENT = ("share", "relative", "points")


def number(value: float, kind: Kind, *, sign: bool = False) -> str:
    """Write one number without its unit: -0.213 as relative is "−21.3"."""
    digits = DIGITS[kind]
    scaled = round(100 * value if kind in PERCENT else value, digits)
    text = f"{abs(scaled):,.{digits}f}"
    if scaled < 0:
        return f"−{text}"
    return f"+{text}" if sign and scaled > 0 else text


def unit(kind: Kind) -> str:
    """Return the unit with the space before it, or nothing."""
    if kind == "points":
        return f"{BOUND}points"
    return f"{BOUND}%" if kind in PERCENT else ""


def value(given: float, kind: Kind, *, sign: bool = False) -> str:
    """Write one number with its unit: "−21.3 %"."""
    return number(given, kind, sign=sign) + unit(kind)


def interval(estimate: Mapping[str, float], kind: Kind, *, sign: bool = False) -> str:
    """Write a value with its 95 % interval: "−0.213 [−0.260, −0.166]", "−21.3 [−26.0, −16.6] %"."""
    low, high = (number(estimate[end], kind, sign=sign) for end in ("low", "high"))
    return f"{number(estimate['value'], kind, sign=sign)} [{low},{BOUND}{high}]{unit(kind)}"


def breakable(text: str) -> str:
    """Return a text with plain spaces, for files that are searched rather than typeset."""
    return text.replace(BOUND, " ")


def probability(p: float) -> str:
    """Write a p-value with its sign of relation: "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
