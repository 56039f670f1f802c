"""What a typed word means for a field: its type decides, and what it does not allow is refused.

A text is taken as it was typed. A number is decimal. Only true and false are true and false. null
is nothing where the field may be nothing; so is an empty word.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import inspect
import math
import numbers
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_selmix.common import text
from ssl_selmix.common.text import Word

WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
MOST_DIGITS = 19  # of a whole number; more do not fit into 64 bits

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


class WrongType(ValueError):
    """A value that the field's type does not allow; says what it must be."""


class NoSetting(ValueError):
    """A field of a type that no word and no file can give."""


def shown(value: Any) -> str:
    """A value in a line of text, whatever it is."""
    return _SHOWN.repr(str(value) if isinstance(value, Word) else value)


def rule_of(kind: Any) -> str:
    """What a value of the type must be, in words."""
    if members := _members(kind):
        said = [rule_of(member) for member in members if member is not type(None)]
        return ", or ".join(said + ["null"] * (len(said) < len(members)))
    if element := _element(kind):
        return f"a list, such as [a, b], and each of it {rule_of(element)}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    return RULES.get(typing.get_origin(kind) or kind, "a value")


def value_of(given: Any, kind: Any) -> Any:
    """The value that a word, or a value from Python or a file, gives a field of the type.

    Raises:
        WrongType: none.
        NoSetting: fields of this type are no settings.
    """
    if members := _members(kind):
        return _of_union(given, members)
    if element := _element(kind):
        return [value_of(item, element) for item in _items(given, kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        found = given if isinstance(given, kind) else kind.__members__.get(str(given))
        return found if found is not None else _refuse(kind)
    read = READERS.get(typing.get_origin(kind) or kind)
    if read is None:
        raise NoSetting(f"{getattr(kind, '__name__', kind)} is no type of a setting")
    return read(given)


def plain(value: Any) -> Any:
    """The value as a file records it."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def types_of(kind: type[Any]) -> dict[str, Any]:
    """The types of a dataclass's fields that can be set, by name.

    Raises:
        NoSetting: a type is named that does not exist.
    """
    return _types_of(kind)  # type: ignore[arg-type]


@functools.cache  # resolving annotations takes longer than all else about a configuration
def _types_of(kind: type[Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise NoSetting(str(error)) from error
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def completed(kind: type[Any]) -> type[Any]:
    """A configuration that derives from a dataclass, with the defaults that it gives to fields.

    Without @dataclass, and where a default comes without a type, Python takes no note of it.

    Raises:
        NoSetting: a default without a type below @dataclass.
    """
    inherited = {field.name for base in kind.__mro__[1:] for field in _fields(base)}
    typed_here = inspect.get_annotations(kind)
    own = {n: v for n, v in vars(kind).items() if n in inherited and n not in typed_here}
    own = {n: v for n, v in own.items() if not callable(v) and not isinstance(v, property)}
    if "__dataclass_fields__" in vars(kind):
        for name, value in own.items():
            if value != next(f.default for f in dataclasses.fields(kind) if f.name == name):
                raise NoSetting(
                    f"{name} = {shown(value)} in {kind.__qualname__} has no type, so that "
                    f"@dataclass passes it over; write {name}: {_type_name(kind, name)} = ..."
                )
        return kind
    if not (inherited & vars(kind).keys() or typed_here):
        return kind
    hints = types_of(kind)
    kind.__annotations__ = {**typed_here, **{name: hints[name] for name in own}}
    for name in kind.__annotations__:
        value = vars(kind).get(name)
        if dataclasses.is_dataclass(value) or isinstance(value, list | dict):
            made = functools.partial(copy.deepcopy, value)
            setattr(kind, name, dataclasses.field(default_factory=made))
    _types_of.cache_clear()  # it has more fields now
    try:
        return dataclasses.dataclass(kind)
    except TypeError as error:  # such as a field without a default after one that has it
        raise NoSetting(f"{kind.__qualname__}: {error}; give it a default") from error


def _fields(kind: type[Any]) -> Sequence[dataclasses.Field[Any]]:
    return tuple(vars(kind).get("__dataclass_fields__", {}).values())


def _type_name(kind: type[Any], name: str) -> str:
    found = next(field.type for field in dataclasses.fields(kind) if field.name == name)
    return str(getattr(found, "__name__", found))


def typed(value: Any) -> str:
    """A value as a word or YAML from which every field reads it again."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_quoted(item) for item in value)}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(item: Any) -> str:
    if isinstance(item, list | tuple):
        return typed(item)
    word = typed(item)
    if not isinstance(item, str) or (isinstance(item, Word) and re.fullmatch(r"[\w.+/-]+", word)):
        return word
    dumped = yaml.dump(word, default_style='"', allow_unicode=True, width=10**9)
    return str(dumped).rstrip("\n")


def _members(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else ()


def _element(kind: Any) -> Any:
    """The type of a list's elements, if it is one."""
    origin = typing.get_origin(kind) or kind
    if origin not in (list, tuple, Sequence):
        return None
    args = [arg for arg in typing.get_args(kind) if arg is not ...]
    return args[0] if args else Any


def _of_union(given: Any, members: tuple[Any, ...]) -> Any:
    text_too = str in members
    if type(None) in members:
        named = isinstance(given, Word) and given.strip().lower() in ("", "null", "none")
        if given is None or named or (isinstance(given, Word) and given == "~" and not text_too):
            return None
    kinds = [member for member in members if member not in (str, type(None))]
    if text_too:
        kinds = [*kinds, str] if isinstance(given, Word) else [str, *kinds]
    for kind in kinds:
        try:
            return value_of(given, kind)
        except WrongType:
            continue
    raise WrongType(rule_of(typing.Union[members]))  # noqa: UP007 (members are not known here)


def _items(given: Any, kind: Any) -> Sequence[Any]:
    if isinstance(given, Word):
        if not given.strip().startswith("["):
            if given.is_null and given.strip():
                _refuse(kind)
            return [Word(item.strip()) for item in given.split(",")] if given.strip() else []
        try:
            given = text.words(given)
        except yaml.YAMLError:
            _refuse(kind)
    return given if isinstance(given, list | tuple) else _refuse(kind)


def _refuse(kind: Any) -> Any:
    raise WrongType(rule_of(kind))


def _whole(given: Any) -> int:
    if isinstance(given, str) and WHOLE.fullmatch(given.strip()):
        if len(given.strip().lstrip("+-")) > MOST_DIGITS:
            raise WrongType(f"a whole number of at most {MOST_DIGITS} digits")
        return int(given)
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        return int(given)
    return int(_refuse(int))


def _decimal(given: Any) -> float:
    if isinstance(given, str) and DECIMAL.fullmatch(given.strip()):
        found = float(given)
        if math.isinf(found):
            raise WrongType("a number of at most 1.7e308")
        return found
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        return float(given)
    return float(_refuse(float))


def _truth(given: Any) -> bool:
    if isinstance(given, str) and given.strip().lower() in ("true", "false"):
        return given.strip().lower() == "true"
    return given if isinstance(given, bool) else bool(_refuse(bool))


def _text(given: Any) -> str:
    if isinstance(given, str) and "\0" not in given:
        return str(given)
    return str(_refuse(str))


def _mapping(given: Any) -> dict[str, Any]:
    if isinstance(given, Word):
        given = _any(given)
    return dict(given) if isinstance(given, Mapping) else dict(_refuse(dict))


def _any(given: Any) -> Any:
    if not isinstance(given, Word):
        return given
    try:
        return text.value(given)
    except yaml.YAMLError:
        return str(given)


RULES: dict[Any, str] = {
    int: "a whole number in decimal digits, such as 100",
    float: "a decimal number, such as 0.03 or 1e-3",
    bool: "true or false",
    str: "a text",
    dict: "a mapping, such as {a: 1}",
}
READERS: dict[Any, Callable[[Any], Any]] = {
    **{int: _whole, float: _decimal, bool: _truth, str: _text, dict: _mapping},
    **{Any: _any, Path: lambda given: Path(_text(str(given)))},
}
