"""Every key of every Config with wrong inputs: refused by name in one line, or taken as typed.

    pytest -s tests/test_wrong_settings.py

prints how many there were. A word of another type is refused in every field. A number that is
negative, zero or huge is refused or is what the run records: nothing is changed in silence.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from ssl_selmix import algorithm
from ssl_selmix.common import config, plugins
from ssl_selmix.runs.plan import Plan, Request

WRONG_INT = ["x", "1.5", "1e3", "0x10", "1_000", "010", "", "nan", ".inf", "[1]", "{a: 1}", "true"]
WRONG_INT += ["12:30", "99999999999999999999", "${seed}", "٣"]
WRONG_FLOAT = ["x", "0x10", "1_0.5", "007", "", "nan", ".nan", "inf", ".inf", "-.inf", "1e999"]
WRONG_FLOAT += ["[0.1]", "{a: 1}", "true", "1:30", "0,5", "${lr}", "1e3 x"]
WRONG_BOOL = ["x", "on", "off", "yes", "no", "1", "0", "", "null", "nan", "[true]", "${seed}"]
WRONG_NUMBERS = ["x", "[x]", "[1, nan]", "[[1]]", "null", "[1", "{a: 1}", "[1, 1e999]", "1;2"]
WRONG_TEXTS = ["[[a]]", "[{a: 1}]", "[a", "null"]
EXTREME = ["-1", "0", "-0", "99999999999", "-99999999999"]
EXTREME_FLOAT = ["-1", "0", "-0.0", "1e300", "-1e300", "1e-320", "-1e-320"]
NONSENSE = ["", "nonsense", "None", "-1", "nan", "[]", "a\0b", "\x1b[31m", "é\udce9", "x" * 999]


class Key(NamedTuple):
    """A setting, the type of its field, and an algorithm and a data set that have it."""

    name: str
    kind: Any
    algorithm: str
    dataset: str


def keys() -> Iterator[Key]:
    """All keys; one that several algorithms inherit comes once."""
    seen: set[tuple[Any, ...]] = set()
    for name in plugins.available("algorithm"):
        yield from _fields(name, algorithm.load(name)[1].Config, name, "digits", seen)
    for name in plugins.available("dataset"):
        yield from _fields("data", plugins.dataset(name).Config, "fixmatch", name, seen)
    plan = Plan(Request(["fixmatch"], "digits", "none"))
    for section in ("", *(plan.config.keys() - {"", "data", "fixmatch"})):
        yield from _fields(section, type(plan.config[section]), "fixmatch", "digits", seen)


def _fields(
    section: str, kind: type[Any], name: str, dataset: str, seen: set[tuple[Any, ...]]
) -> Iterator[Key]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = f"{section}.{field.name}".lstrip(".")
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _fields(key, hint, name, dataset, seen)  # type: ignore[arg-type]
            continue
        owner = next(k for k in kind.__mro__ if field.name in vars(k).get("__annotations__", {}))
        if (owner, field.name, field.default) not in seen:
            seen.add((owner, field.name, field.default))
            yield Key(key, hint, name, dataset)


def wrong(kind: Any) -> list[str]:
    """Words that no field of the type may take."""
    members = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if str in members or kind is str:
        return []
    if type(None) in members:
        (inner,) = (member for member in members if member is not type(None))
        return [word for word in wrong(inner) if word not in ("", "null")]
    return {
        int: [*WRONG_INT, "null"],
        float: [*WRONG_FLOAT, "null"],
        bool: WRONG_BOOL,
        list[float]: WRONG_NUMBERS,
        list[str]: WRONG_TEXTS,
    }[kind]


def perhaps(kind: Any) -> list[str]:
    """Words that a field of the type may refuse or take as they are."""
    members = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if kind is str or str in members:
        return NONSENSE
    return EXTREME if kind is int or int in members else EXTREME_FLOAT if kind is not bool else []


def taken(key: Key, word: str) -> Any:
    """What the run records of the word.

    Raises:
        ValueError: it is refused.
    """
    settings = [f"{key.name}={word}"] + ["device=cpu"] * (key.name != "device")
    plan = Plan(Request([key.algorithm], key.dataset, "none", settings=settings))
    return config.flatten(plan.plain)[key.name]


def test_wrong_inputs_are_refused_by_name_and_nothing_is_changed_in_silence() -> None:
    count: Counter[str] = Counter()
    silent: list[str] = []
    for key in keys():
        last = key.name.rpartition(".")[2]
        for word in wrong(key.kind) + perhaps(key.kind):
            try:
                value = taken(key, word)
            except ValueError as error:
                message = str(error)
                if last not in message or "\n" in message:
                    silent.append(f"{key.name}={word!r}: {message!r}")
                count["refused"] += 1
            else:
                if word in wrong(key.kind) or not _is(value, word):
                    silent.append(f"{key.name}={word!r} is {value!r}")
                count["taken as typed"] += 1
    for misspelt in ("fixmatch.lrr", "fixmatchs.lr", "x", "data", "fixmatch.lr.x", "."):
        with pytest.raises(ValueError, match=misspelt.replace(".", r"\.")):
            Plan(Request(["fixmatch"], "digits", "none", settings=[f"{misspelt}=1"]))
        count["refused"] += 1
    print(dict(count), f"of {len(list(keys()))} keys")
    assert not silent
    assert count["refused"] > 300


def _is(value: Any, word: str) -> bool:
    if value is None:
        return word.lower() in ("", "none", "null")
    if isinstance(value, str):
        return value == word
    if isinstance(value, list):
        return value == ([] if word in ("", "[]") else [type(value[0])(word)])
    return bool(value == float(word)) and math.isfinite(value)
