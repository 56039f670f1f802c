"""Rules for the values of settings: each stands at its field, one base class checks them all.

>>> @dataclass
... class Config(Checked):
...     lr: float = positive(0.03)
...     ema: float = within("[0, 1)", 0.999)
...     keep: str = one_of("best", "last")
>>> Config(keep="first")
Traceback (most recent call last):
ValueError: keep must be one of best, last, not 'first'
"""

from __future__ import annotations

import functools
import inspect
import io
import math
import numbers
import tokenize
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
Rule = str | tuple[str, ...]  # a bound (`> 0`, `>= 1`), an interval (`[0, 1)`), or choices
LONGEST = 80  # characters of a value in a message
Rules = Mapping[str, Rule]  # by field; as `RULES` in a Config of a released version
TYPES: dict[str, tuple[type, str]] = {
    "int": (numbers.Integral, "a whole number"),
    "float": (numbers.Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "text"),
    "None": (type(None), "None"),
}


def _ruled(rule: Rule, default: T) -> T:
    return field(default=default, metadata={"rule": rule})


def positive(default: T) -> T:
    """A field whose value is above 0."""
    return _ruled("> 0", default)


def at_least(bound: float, default: T) -> T:
    """A field whose value is not below the bound."""
    return _ruled(f">= {bound:g}", default)


def within(interval: str, default: T) -> T:
    """A field whose value lies in an interval such as `[0, 1)`, which has the 0 and not the 1."""
    return _ruled(interval, default)


def one_of(*choices: str, default: str = "") -> str:
    """A field whose value is one of these words; the first one unless another is the default."""
    return _ruled(choices, default or choices[0])


@dataclass
class Checked:
    """A configuration that refuses values of another type, or outside of the rules of its fields.

    A field that a subclass declares again keeps the rules of the base, and may have one of its own.
    A `__post_init__` of a subclass calls this one.
    """

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that breaks a rule."""
        rules = list(_rules(type(self)))
        check_types(self, {name for name, _ in rules})
        for name, rule in rules:
            check(name, getattr(self, name), rule)


def check_field(kind: type, name: str, value: object) -> None:
    """Raise ValueError if a value breaks a rule of this field of a configuration."""
    for field_name, rule in _rules(kind):
        if field_name == name:
            check(name, value, rule)


def _rules(kind: type) -> Iterator[tuple[str, Rule]]:
    """Fields and rules of a dataclass and of its bases, which come first."""
    live = {f.name for f in fields(kind)}  # without those that a subclass made constants
    for base in reversed(kind.__mro__):
        own = vars(base).get("__dataclass_fields__", {})
        for name in inspect.get_annotations(base):
            if name in live and name in own and "rule" in own[name].metadata:
                yield name, own[name].metadata["rule"]
        if "RULES" in vars(base):
            warnings.warn(
                f"{base.__qualname__}.RULES will not be read by the next release; write the rule "
                "at its field: lr: float = rules.positive(0.03), from ssl_selmix.common",
                DeprecationWarning,
                stacklevel=2,
            )
            yield from vars(base)["RULES"].items()


def check_types(config: Any, ruled: Collection[str] = ()) -> None:
    """Raise ValueError for the first field whose value is of none of its types.

    Types that are not in TYPES, such as lists, are not looked at, nor are unions in fields with a
    rule, which says more.

    >>> from dataclasses import make_dataclass
    >>> check_types(make_dataclass("Config", [("steps", int)])(steps=2.5))
    Traceback (most recent call last):
    ValueError: steps must be a whole number, not 2.5
    """
    for found in fields(config):
        value = getattr(config, found.name)
        # Postponed annotations are strings; a union has no __name__ in every Python.
        named = found.type.__name__ if isinstance(found.type, type) else str(found.type)
        members = named.split(" | ")
        if all(name in TYPES for name in members) and not (members[1:] and found.name in ruled):
            if not any(_is(value, name) for name in members):
                what = " or ".join(TYPES[name][1] for name in members)
                raise ValueError(f"{found.name} must be {what}, not {shown(value)}")


def _is(value: object, name: str) -> bool:
    return isinstance(value, TYPES[name][0]) and (name == "bool" or not isinstance(value, bool))


def shown(value: object) -> str:
    """A value in a message: Python writes out no integer of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def check(name: str, value: object, rule: Rule) -> None:
    """Raise ValueError if a value breaks its rule; None, where a type allows it, breaks none.

    >>> check("lr", 0.03, "> 0")
    >>> check("lr", 0.0, "> 0")
    Traceback (most recent call last):
    ValueError: lr must be > 0, not 0.0
    """
    if value is None:
        return
    if isinstance(rule, tuple):
        if value not in rule:
            raise ValueError(f"{name} must be one of {', '.join(rule)}, not {shown(value)}")
    elif isinstance(value, bool) or not (
        isinstance(value, numbers.Real) and _within(_float(value), rule)
    ):
        where = "in " if rule[0] in "[(" else ""
        raise ValueError(f"{name} must be {where}{rule}, not {shown(value)}")


def _float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _within(value: float, rule: str) -> bool:
    if not math.isfinite(value):
        return False
    if rule[0] == ">":
        bound = float(rule.lstrip("> ="))
        return value >= bound if rule[1] == "=" else value > bound
    low, high = (float(part) for part in rule[1:-1].split(","))
    above = value >= low if rule[0] == "[" else value > low
    return above and (value <= high if rule[-1] == "]" else value < high)


@dataclass(frozen=True)
class Setting:
    """A field of a configuration in words."""

    name: str
    type: str
    default: Any
    rules: tuple[Rule, ...]
    meaning: str  # the comment at the field, which gives the paper's symbol where it has one


def describe(kind: type[Any]) -> list[Setting]:
    """The settings of a configuration, those of its bases first.

    Meanings are read from the source: the comment on the field's line, or the comment lines right
    above it. A field that is declared again without a comment means what it meant. A class without
    its source may have `field(metadata={"meaning": ...})`.

    >>> from ssl_selmix.common.config import Run
    >>> describe(Run)[0]
    Setting(name='seed', type='int', default=0, rules=('>= 0',), meaning='seeds all generators')
    """
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= {k: v for k, v in comments(base).items() if v}
    rules: dict[str, list[Rule]] = {}
    for name, rule in _rules(kind):
        rules.setdefault(name, []).append(rule)
    return [
        Setting(
            f.name,
            str(getattr(f.type, "__name__", f.type)),
            f.default_factory() if f.default_factory is not MISSING else f.default,
            tuple(rules.get(f.name, ())),
            f.metadata.get("meaning") or meanings.get(f.name, ""),
        )
        for f in fields(kind)
    ]


@functools.cache  # reading source takes a while
def comments(kind: type) -> dict[str, str]:
    """The comment of every field that a class itself declares; none without its source."""
    names = inspect.get_annotations(kind)
    if not names:
        return {}
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    found: dict[str, str] = {}
    above: list[str] = []
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not line:
            above.append(token.string.lstrip("# "))
        elif token.type == tokenize.NEWLINE:
            if len(line) > 1 and line[1].string == ":" and line[0].string in names:
                own = [t.string.lstrip("# ") for t in line if t.type == tokenize.COMMENT]
                found.setdefault(line[0].string, " ".join([*above, *own]))
            above, line = [], []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            line.append(token)
    return found
