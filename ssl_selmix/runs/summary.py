"""The final tables: what each stage reached, and what the last one changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssl_selmix.common.figures import percent

FIGURES = {
    "mean_recall": "mean recall",
    "min_recall": "worst class",
    "g_mean": "G-mean",
    "h_mean": "H-mean",
    "min_coverage": "min coverage",
    "accuracy": "accuracy",
}

FEW = 10  # validation images of a class, below which its recall is said to be uncertain


def weights(found: Mapping[str, Any]) -> str:
    """The weights of somebody else that a run started from, in a line."""
    licence = found.get("licence") or "not told by the library, look it up"
    return (
        f"weights: {found['name']} from {found['source']}, SHA-256 {found['sha256'][:12]}, licence "
        f"{licence}; {found['input']}"
    )


def show(results: Mapping[str, Any], class_names: Sequence[str], out: Console) -> None:
    """Print a table per part (validation, test) and recall per class, in percent."""
    stages = [results["start"]] if "start" in results else []
    stages += results["stages"]
    for part in ("validation", "test"):
        out.print(_summary(stages, part))
    out.print(_per_class(stages, class_names))
    if results.get("pretrained"):
        out.print(weights(results["pretrained"]), highlight=False, markup=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else percent(after - before, signed=True)


def _summary(stages: Sequence[Mapping[str, Any]], part: str) -> Table:
    table = Table(title=f"{part}, percent", title_justify="left")
    table.add_column("stage")
    for title in FIGURES.values():
        table.add_column(title, justify="right")
    for stage in stages:
        table.add_row(stage["algorithm"], *(_percent(stage[part][key]) for key in FIGURES))
    if len(stages) > 1:
        first, last = stages[-2][part], stages[-1][part]
        changes = (_change(first[key], last[key]) for key in FIGURES)
        table.add_row("change", *changes, style="bold")
    return table


def _per_class(stages: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    table = Table(title="test recall and coverage per class, percent", title_justify="left")
    table.add_column("class")
    for stage in stages:
        table.add_column(f"{stage['algorithm']} recall", justify="right")
    if len(stages) > 1:
        table.add_column("change", justify="right", style="bold")
    for stage in stages:
        table.add_column(f"{stage['algorithm']} coverage", justify="right")
    shown = range(len(class_names)) if len(class_names) <= 20 else _worst(stages[-1], 20)
    for k in shown:
        recalls = [stage["test"]["per_class_recall"][k] for stage in stages]
        coverage = [stage["test"]["per_class_coverage"][k] for stage in stages]
        change = [_change(recalls[-2], recalls[-1])] if len(stages) > 1 else []
        name = escape(class_names[k])  # [old] is a class, no style
        table.add_row(name, *map(_percent, recalls), *change, *map(_percent, coverage))
    if len(class_names) > 20:
        table.caption = f"the 20 worst of {len(class_names)} classes; results.json has all"
    return table


def _worst(stage: Mapping[str, Any], count: int) -> list[int]:
    recalls = stage["test"]["per_class_recall"]
    present = [k for k, value in enumerate(recalls) if value is not None]
    return sorted(present, key=lambda k: float(recalls[k]))[:count]


def tell_small_classes(counts: Sequence[int], names: Sequence[str], out: Console) -> None:
    """Say of which classes a recall is a rough figure, for it is measured on few images.

    Args:
        counts: validation images of each class.
        names: of the classes.
        out: where to say so.
    """
    small = sorted((n, names[k]) for k, n in enumerate(counts) if n < FEW)
    if not small:
        return
    shown = ", ".join(f"{name} ({n}: ± {100 * _half_width(n):.0f} points)" for n, name in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    text = f"  validation: a recall is uncertain (95 %) where a class has few images: {shown}{more}"
    out.print(text, style="yellow", highlight=False, markup=False)


def _half_width(n: int) -> float:
    """Half of Wilson's 95 % interval of a recall of one half, measured on n images."""
    z = 1.96
    return z / (1 + z * z / n) * math.sqrt(0.25 / n + z * z / (4 * n * n)) if n else 0.5
