"""Settings that methods have under one name with different values: they confound a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ssl_selmix.common.figures import plain

MANY = 3  # methods are named, more are "the others"

Unlike = dict[str, dict[str, list[str]]]  # key -> value -> the methods that have it


def unlike(told: Iterable[tuple[str, Mapping[str, Any]]]) -> Unlike:
    """The keys that two methods have with different values; values in the order of their methods.

    Args:
        told: methods, each perhaps more than once, with their settings by dotted key. A key that
            only one of them has, or that differs only within one, is left out; so is None, by
            which a method says that something else decides.

    >>> unlike([("a", {"lr": 0.1, "mu": 2}), ("b", {"lr": 0.3, "mu": 2}), ("c", {"lr": 0.3})])
    {'lr': {'0.1': ['a'], '0.3': ['b', 'c']}}
    """
    found: Unlike = {}
    for method, settings in told:
        for key, value in ((k, v) for k, v in settings.items() if v is not None):
            methods = found.setdefault(key, {}).setdefault(plain(value), [])
            if method not in methods:
                methods.append(method)
    return {key: values for key, values in sorted(found.items()) if _between_methods(values)}


def _between_methods(values: Mapping[str, list[str]]) -> bool:
    return len(values) > 1 and len({tuple(methods) for methods in values.values()}) > 1


def sentence(found: Unlike) -> str:
    """Keys, values and methods in one line; the most methods of a key, if many, are the others.

    >>> sentence({"lr": {"0.1": ["a"], "0.3": ["b", "c", "d", "e"]}})
    'lr 0.1 (a), 0.3 (the others)'
    """
    return "; ".join(f"{key} {_values(values)}" for key, values in found.items())


def _values(values: Mapping[str, list[str]]) -> str:
    most = max(values, key=lambda value: len(values[value]))
    apart = [who for value, methods in values.items() if value != most for who in methods]
    told = {value: ", ".join(who) for value, who in values.items()}
    if len(values[most]) > MANY and not set(apart) & set(values[most]):
        told[most] = "the others"
    return ", ".join(f"{value} ({who})" for value, who in told.items())
