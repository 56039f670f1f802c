"""The figure of all methods: mean recall against the recall of the worst class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_selmix.comparison import intervals
from ssl_selmix.comparison.figures import (
    SPAN,
    WIDE,
    Picture,
    below_plot,
    estimate,
    legend_height,
    slug,
    styles,
)
from ssl_selmix.comparison.grouping import Group

NUMBERED = 10  # methods: more of them are told apart by numbers
WITH_BARS = 12  # methods: of more, intervals would hide the points
Points = Mapping[str, tuple[float, float]]
Looks = Mapping[str, Mapping[str, Any]]


def plane(group: Group, part: str) -> list[Picture]:
    """Mean recall against the worst class of every method (SelMix, figure 1, as a plane)."""
    style = styles(group)
    found = {
        row.name: (x, y)
        for row in group.rows
        if (x := estimate(row, "mean_recall", part)) and (y := estimate(row, "min_recall", part))
    }
    if not found:
        return []
    points = {name: (100 * x.mean, 100 * y.mean) for name, (x, y) in found.items()}
    numbered, with_bars = len(found) > NUMBERED, len(found) <= WITH_BARS
    labels = [f"{i} {n}" if numbered else n for i, n in enumerate(found, 1)]
    figure = Figure(figsize=(WIDE, 3.2 + legend_height(labels)), layout="constrained")
    axis = figure.subplots()
    bars = {name: {"xerr": _bars(x), "yerr": _bars(y)} for name, (x, y) in found.items()}
    if with_bars:
        _draw_bars(axis, points, bars, style)
    handles = [_draw(axis, *point, style[name]) for name, point in points.items()]
    _arrows(axis, group, points, style)
    if numbered:
        _numbers(axis, list(points.values()))
    axis.set(xlabel=f"mean recall, percent ({part})", ylabel=f"worst class, percent ({part})")
    _centre(axis, list(points.values()), list(bars.values()) if with_bars else [])
    below_plot(figure, handles, labels)
    return [Picture(slug("plane", group), _caption(with_bars), figure)]


def _caption(with_bars: bool) -> str:
    told = (
        "with 95 % intervals (they may leave the picture)"
        if with_bars
        else f"without intervals, which of more than {WITH_BARS} methods would hide the points"
    )
    return (
        f"Mean recall against the recall of the worst class; means over seeds {told}. Hollow: "
        "first stage alone; arrows lead from a start to what the next stage made of it."
    )


def _draw(axis: Axes, x: float, y: float, style: Mapping[str, Any]) -> Any:
    """A point; a hollow marker above a full one leaves both to be seen."""
    hollow = style["markerfacecolor"] == "white"
    look = {**style, "linestyle": "none", **({"markerfacecolor": "none"} if hollow else {})}
    return axis.plot(x, y, **look, zorder=4 if hollow else 3)[0]


def _draw_bars(axis: Axes, points: Points, bars: Looks, style: Looks) -> None:
    for name, point in points.items():
        faint: dict[str, Any] = {"color": style[name]["color"], "fmt": "none", "elinewidth": 0.6}
        faint |= {"alpha": 0.4 if len(points) > 8 else 0.8, "capsize": 2}
        axis.errorbar(point[0], point[1], **bars[name], **faint)


def _arrows(axis: Axes, group: Group, points: Points, style: Looks) -> None:
    for row in group.rows:
        if row.name in points and row.parent in points:
            arrow = {"arrowstyle": "->", "color": style[row.name]["color"], "alpha": 0.6}
            axis.annotate("", points[row.name], points[row.parent], arrowprops=arrow)


def _numbers(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    """The number of every method beside its point; methods on one point share a line."""
    same: dict[tuple[float, float], list[int]] = {}
    for i, (x, y) in enumerate(points, 1):
        same.setdefault((round(x, 1), round(y, 1)), []).append(i)
    for (x, y), numbers in same.items():
        words = ",".join(map(str, numbers))
        axis.annotate(words, (x, y), (3, 3), textcoords="offset points", fontsize=6, zorder=5)


def _bars(found: intervals.Estimate) -> list[list[float]] | None:
    if found.interval is None:
        return None
    low, high = found.interval
    return [[100 * max(0, found.mean - low)], [100 * max(0, high - found.mean)]]


def _centre(
    axis: Axes, points: Sequence[tuple[float, float]], bars: Sequence[dict[str, Any]]
) -> None:
    """Limits by the points and a usual interval: that of two seeds can be as wide as the scale."""
    limits: list[tuple[str, Callable[..., Any]]] = [
        ("xerr", axis.set_xlim),
        ("yerr", axis.set_ylim),
    ]
    for i, (key, limit) in enumerate(limits):
        at = [point[i] for point in points]
        lengths = [max(*map(max, bar[key])) for bar in bars if bar[key] is not None]
        room = min(float(np.median(lengths or [0])), max(15.0, max(at) - min(at))) + 2
        low, high = max(-1, min(at) - room), min(101, max(at) + room)
        missing = max(0.0, SPAN - (high - low)) / 2
        limit(low - missing, high + missing)
