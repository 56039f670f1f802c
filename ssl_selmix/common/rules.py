"""Rules for the values of settings, checked by the dataclass that has the fields."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

Rules = Mapping[str, str | tuple[str, ...]]  # field -> choices, bound or interval; see `check`
NUMBERS: dict[str, tuple[type, str]] = {
    "int": (numbers.Integral, "a whole number"),
    "float": (numbers.Real, "a number"),
}


def check_types(config: Any) -> None:
    """Raise ValueError for the first field that is to be a number and is none.

    >>> from dataclasses import make_dataclass
    >>> check_types(make_dataclass("Config", [("steps", int)])(steps=2.5))
    Traceback (most recent call last):
    ValueError: steps must be a whole number, not 2.5
    """
    for field in fields(config):
        value = getattr(config, field.name)
        named = str(getattr(field.type, "__name__", field.type))  # postponed: a string
        kind, what = NUMBERS.get(named, (object, ""))
        if not isinstance(value, kind) or (what and isinstance(value, bool)):
            raise ValueError(f"{field.name} must be {what}, not {value!r}")


def check(config: object, rules: Rules) -> None:
    """Raise ValueError for the first field that breaks its rule.

    A rule is a tuple of choices, a bound (`> 0`, `>= 1`) or an interval (`[0, 1)`).

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(lr=0.03, keep="last", ema=0.0)
    >>> check(config, {"lr": "> 0", "keep": ("best", "last"), "ema": "[0, 1)"})
    >>> check(config, {"lr": "> 1"})
    Traceback (most recent call last):
    ValueError: lr must be > 1, not 0.03
    """
    for name, rule in rules.items():
        value = getattr(config, name)
        if isinstance(rule, tuple):
            if value not in rule:
                raise ValueError(f"{name} must be one of {', '.join(rule)}, not {value!r}")
        elif not _within(value, rule):
            raise ValueError(
                f"{name} must be {'in ' if rule[0] in '[(' else ''}{rule}, not {value!r}"
            )


def _within(value: float, rule: str) -> bool:
    if not math.isfinite(value):
        return False
    if rule[0] == ">":
        bound = float(rule.lstrip("> ="))
        return value >= bound if rule[1] == "=" else value > bound
    low, high = (float(part) for part in rule[1:-1].split(","))
    above = value >= low if rule[0] == "[" else value > low
    return above and (value <= high if rule[-1] == "]" else value < high)
