"""Whether what a file says can be so: numbers are numbers, lists are as long as they must be.

Every function takes the place of the value in its file, which the error names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ssl_selmix.runs.summary import FIGURES

NAMED = (*FIGURES, "min_ht_recall", "ece", "classwise_ece")
NEEDED = ("mean_recall", "min_recall")
PER_CLASS = ("per_class_recall", "per_class_coverage")
BINS = ("confidence", "accuracy", "count")
ROUNDING = 1e-9  # a sum of shares may be this much above 1
MOST = 2**53  # images that can be counted in floating point


def number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {_shown(value)}, no number")
    return float(value)


def share(value: Any, where: str) -> float:
    """A number in [0, 1]."""
    found = number(value, where)
    if not -ROUNDING <= found <= 1 + ROUNDING:
        raise ValueError(f"{where} is {_shown(value)}, outside 0..1")
    return min(1.0, max(0.0, found))


def whole(value: Any, where: str) -> int:
    """An integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} is {_shown(value)}, no integer of at least 0")
    return value


def text(value: Any, where: str) -> str:
    """A name, in one line."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {_shown(value)}, no name")
    return " ".join(value.split())


def needed(section: Mapping[str, Any], key: str, where: str) -> Any:
    """A value that must be there; the error says where."""
    if key not in section:
        raise KeyError(f"{where}.{key}" if where else key)
    return section[key]


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Values by name."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_shown(value)}, no section")
    return {str(key): item for key, item in value.items()}


def listing(value: Any, where: str, length: int | None = None) -> list[Any]:
    """A list, of this length if one is given."""
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_shown(value)}, no list")
    if length is not None and len(value) != length:
        raise ValueError(f"{where} has {len(value)} values instead of {length}")
    return value


def counts(value: Any, where: str, length: int | None) -> list[int]:
    """Images of each class, or of each bin."""
    found = [whole(n, where) for n in listing(value, where, length)]
    if found and max(found) > MOST:
        raise ValueError(f"{where} is {_shown(max(found))}, no number of images")
    return found


def figures(value: Any, where: str) -> dict[str, Any]:
    """What `metrics.evaluate` wrote; a class without images has recall None."""
    given = mapping(value, where)
    for name in (*NEEDED, *PER_CLASS):
        needed(given, name, where)
    found = dict(given)
    for name in (n for n in NAMED if n in given):
        found[name] = share(given[name], f"{where}.{name}")
    recalls = listing(given["per_class_recall"], f"{where}.per_class_recall")
    found["per_class_recall"] = _shares(recalls, f"{where}.per_class_recall")
    if all(recall is None for recall in recalls):
        raise ValueError(f"{where}.per_class_recall has no recall")
    coverage = listing(given["per_class_coverage"], f"{where}.per_class_coverage", len(recalls))
    found["per_class_coverage"] = [share(c, f"{where}.per_class_coverage") for c in coverage]
    if given.get("reliability") is not None:
        found["reliability"] = _reliability(given["reliability"], f"{where}.reliability")
    return found


def _shares(values: list[Any], where: str) -> list[float | None]:
    return [None if value is None else share(value, where) for value in values]


def _reliability(value: Any, where: str) -> dict[str, Any]:
    given = mapping(value, where)
    bins = {name: needed(given, name, where) for name in BINS}
    count = counts(bins["count"], f"{where}.count", None)
    found: dict[str, Any] = {"count": count}
    for name in BINS[:2]:
        place = f"{where}.{name}"
        found[name] = _shares(listing(bins[name], place, len(count)), place)
    return found


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
