"""The figures of a comparison: the plane of two figures, recalls by class, reliability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_selmix.compare import intervals
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.pareto import pareto
from ssl_selmix.compare.style import (
    COLOURS,
    SPAN,
    WIDE,
    Picture,
    Pictures,
    below_plot,
    class_ticks,
    drawing,
    estimate,
    legend_height,
    panels,
    short,
    slug,
    styles,
)


def of_group(group: Group, part: str = "test") -> Pictures:
    """All figures for which the runs hold data."""
    from ssl_selmix.compare import curves

    makers: list[Callable[[Group, str], list[Picture]]] = [plane, pareto, recalls, reliability]
    makers += [curves.curves, curves.pairs, curves.priors]
    found = Pictures()
    with drawing():
        for make in makers:
            made = make(group, part)
            for picture in made:  # laid out once, not once per file
                picture.figure.draw_without_rendering()
                picture.figure.set_layout_engine("none")
            found.made += made
            if not made and (why := MISSING.get(make.__name__)):
                found.notes.append(f"no figure {make.__name__}: {why}")
    return found


MISSING = {  # not of the Pareto picture, which is for tables of SelMix and its controls
    "plane": "there is no row",
    "recalls": "no run has a second stage",
    "reliability": "the results hold no reliability data",
    "curves": "no run folder with metrics.jsonl is among the runs",
    "pairs": "no metrics.jsonl with gains and P is among the runs",
    "priors": "no metrics.jsonl with an estimated class distribution is among the runs",
}


def recalls(group: Group, part: str) -> list[Picture]:
    """Recall per class before and after the last stage."""
    rows = [row for row in group.rows if len(row.steps) > 1]
    if not rows:
        return []
    figure, axes = panels(len(rows))
    for row, axis in zip(rows, axes, strict=True):
        cells = [row.cells[unit] for unit in sorted(row.cells)]
        _recall_panel(axis, cells, part)
        axis.set_title(short(f"{row.name} (n={len(cells)})"))
    for axis in axes[:: min(2, len(axes))]:
        axis.set_ylabel("recall, percent")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    caption = (
        f"Recall per class on {part} before and after the last stage: means over seeds, bars from "
        "the lowest to the highest seed."
    )
    return [Picture(f"recalls-{group.slug}", caption, figure)]


def _recall_panel(axis: Axes, cells: Sequence[Cell], part: str) -> None:
    names = cells[0].run.class_names
    place = np.arange(len(names))
    looks = (
        ("before", "o", "--", COLOURS[2], "white", [c.start for c in cells], -0.12),
        ("after", "s", "-", COLOURS[1], COLOURS[1], [c.stage for c in cells], 0.12),
    )
    few = len(names) <= 20
    for label, marker, line, colour, fill, stages, shift in looks:
        told = [stage.measured[part]["per_class_recall"] for stage in stages]
        # None becomes NaN: a class counts over the seeds that have it, and is not drawn without.
        found = np.ma.masked_invalid(100 * np.array(told, dtype=float))
        mean, low, high = (x.filled(np.nan) for x in (found.mean(0), found.min(0), found.max(0)))
        # The mean of equal recalls may differ from them by a rounding, and a bar not be negative.
        bars = np.clip([mean - low, high - mean], 0, None) if len(cells) > 1 and few else None
        size = 3.5 if few else 2
        look: dict[str, Any] = {"marker": marker, "linestyle": line, "color": colour}
        look |= {"markerfacecolor": fill, "markersize": size, "linewidth": 1, "elinewidth": 0.7}
        axis.errorbar(place + shift, mean, bars, label=label, **look)
    axis.set_ylim(-3, 103)
    class_ticks(axis, names)


def reliability(group: Group, part: str) -> list[Picture]:
    """Accuracy against confidence, all seeds of a method together."""
    found = {row.name: _bins(row, part) for row in group.rows}
    shown = {name: bins for name, bins in found.items() if bins is not None}
    if not shown:
        return []
    figure, axes = panels(len(shown), size=(2.1, 1.9))
    for (name, (confidence, accuracy, share)), axis in zip(shown.items(), axes, strict=True):
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=":")
        axis.bar(confidence, share, width=0.03, color="0.8", label="share of images")
        axis.plot(
            confidence, accuracy, color=COLOURS[1], marker="o", markersize=3, label="accuracy"
        )
        ece = estimate(next(r for r in group.rows if r.name == name), "ece", part)
        axis.set_title(short(f"{name}: ECE {100 * ece.mean:.1f}" if ece else name))
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        axis.set_xlabel("confidence")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        f"Reliability on {part}: accuracy of the images whose largest probability falls into a "
        "bin, all seeds together; on the dotted line confidence is what it says. Bars: the share "
        "of images in the bin. ECE in percent, mean over seeds."
    )
    return [Picture(f"reliability-{group.slug}", caption, figure)]


def _bins(row: Row, part: str) -> Any:
    """Confidence, accuracy and share of images per bin that has some, over all seeds."""
    told = [cell.stage.measured[part].get("reliability") for cell in row.cells.values()]
    given = [bins for bins in told if bins]
    if not given:
        return None
    for cell, bins in zip(row.cells.values(), told, strict=True):
        if bins and len(bins["count"]) != len(given[0]["count"]):
            raise ValueError(
                f"{cell.run.name} has {len(bins['count'])} bins of reliability and other seeds of "
                f"{row.name} have {len(given[0]['count'])}; leave it out"
            )
    count = np.array([bins["count"] for bins in given], dtype=float)
    totals = count.sum(0)
    used = totals > 0
    sums = [
        np.nansum(np.array([bins[key] for bins in given], dtype=float) * count, 0)
        for key in ("confidence", "accuracy")
    ]
    confidence, accuracy = (total[used] / totals[used] for total in sums)
    return confidence, accuracy, totals[used] / totals.sum()


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
