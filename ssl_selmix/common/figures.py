"""Numbers as text: no figure is ever -0.0, and no interval is without width."""

from __future__ import annotations

from typing import Any

NO_WIDTH = "–"
NARROWEST = 1e-9  # of an interval that says something


def fixed(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number with so many decimals; what rounds to zero is no negative zero.

    >>> fixed(-0.04), fixed(-0.04, signed=True), fixed(-0.06)
    ('0.0', '+0.0', '-0.1')
    """
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    # Of Python's versions 3.10 has no z in format().
    return text if float(text) else text.replace("-", "+" if signed else "")


def percent(value: float, *, signed: bool = False) -> str:
    """A share in percent, a change of it in points."""
    return fixed(100 * value, signed=signed)


def plain(value: Any) -> str:
    """A value of any kind in one line."""
    if isinstance(value, float):
        return f"{value + 0.0:g}"  # 0 for -0
    return " ".join(str(value).split())


def limits(low: float, high: float, between: str = ", ", *, signed: bool = True) -> str:
    """Those of an interval, in percent; a dash for one without width, for nothing is that sure.

    >>> limits(-0.1, 0.2), limits(0.25, 0.25)
    ('-10.0, +20.0', '–')
    """
    if not high - low > NARROWEST:
        return NO_WIDTH
    return between.join(percent(value, signed=signed) for value in (low, high))
