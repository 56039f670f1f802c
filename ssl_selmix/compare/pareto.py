"""The Pareto picture: an objective against mean recall, a point for all that follows a start.

Whatever a colour says, fill, marker and number say as well, so that it can be read in grey.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_selmix.compare import intervals, plain
from ssl_selmix.compare.intervals import Measured
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.style import (
    COLOURS,
    MARKERS,
    WIDE,
    Picture,
    below_plot,
    legend_height,
    slug,
)
from ssl_selmix.compare.tables import TITLES, measured, values

MEAN = "mean_recall"
# The recorded figure that tells how well an objective is met, if it is not one by name.
STANDS_FOR = {
    "mean_recall": "min_recall",
    "mean_recall_min_coverage": "min_coverage",
    "mean_recall_min_ht_coverage": "min_coverage",
    "h_mean_min_coverage": "h_mean",
    "h_mean_min_ht_coverage": "h_mean",
}
ROOM_OF = (270.0, 190.0)  # width and height of the axes, about, in points of the page
LETTER = 4.6  # width of a digit there
MOST = 3  # pictures: of starts beyond them the tables tell
ROOM = 3.0  # points beyond the outermost row, at least
Point = tuple[float, float]
Bars = tuple[tuple[float, float] | None, ...]  # of both figures: how far down and up


def pareto(group: Group, part: str) -> list[Picture]:
    """A picture for every start that SelMix and controls followed, of at most three starts."""
    families = plain.families(group)
    most = sorted(families, key=lambda start: -len(families[start]))[:MOST]
    places = [(i, start) for i, start in enumerate(families, 1) if start in most]
    return [
        _picture(
            *(group, slug(f"pareto-{i}" if len(families) > 1 else "pareto", group), start),
            *(families[start], part),
        )
        for i, start in places
    ]


def figure_of(rows: Sequence[Row]) -> str:
    """The recorded figure of the objective that most of the rows were tuned for."""
    aims = Counter(aim for row in rows if (aim := plain.aim(row)))
    name = aims.most_common(1)[0][0] if aims else "min_recall"
    name = STANDS_FOR.get(name, name)
    return name if name in TITLES else "min_recall"


def front(points: Mapping[str, Point]) -> list[str]:
    """The names of what nothing else dominates, by rising first figure.

    One point dominates another if it is at least as good in both figures and better in one.

    >>> front({"a": (1, 3), "b": (2, 2), "c": (1, 2), "d": (3, 1), "e": (2, 2)})
    ['a', 'b', 'e', 'd']
    """
    kept = [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]
    return sorted(kept, key=lambda name: (points[name][0], -points[name][1]))


def _picture(group: Group, name: str, start: str, rows: Sequence[Row], part: str) -> Picture:
    other = figure_of(rows)
    found = {row.name: _point(row, rows[0], other, part) for row in rows}
    points = {key: one[0] for key, one in found.items() if one is not None}
    words = plain.names(group)
    labels = [f"{i} {words[key]}" for i, key in enumerate(points, 1)]
    figure = Figure(figsize=(WIDE, 3.4 + legend_height(labels)), layout="constrained")
    axis = figure.subplots()
    best = front(points)
    handles = []
    for i, row in enumerate(row for row in rows if row.name in points):
        look = _look(row, i)
        one = found[row.name]
        assert one is not None
        _draw_bars(axis, *one, str(look["color"]))
        handles.append(axis.plot(*points[row.name], **look, zorder=4)[0])
    _limit(axis, list(points.values()))
    _join(axis, [points[key] for key in best])
    _number(axis, points, best)
    axis.set(xlabel=f"mean recall, percent ({part})", ylabel=f"{TITLES[other]}, percent ({part})")
    below_plot(figure, handles, labels)
    caption = (
        f"{TITLES[other]} against mean recall of what followed {start} on {part}: the mean of the "
        "start and the mean change over seeds. Bars: 95 % intervals of that change, paired by seed "
        "and images (they may leave the picture). Full: with SelMix; hollow: controls; star: the "
        "start. Dashed stairs join what no other row beats in both figures; its numbers are bold."
    )
    return Picture(name, caption[0].upper() + caption[1:], figure)


def _point(row: Row, start: Row, other: str, part: str) -> tuple[Point, Bars] | None:
    """Both figures in percent, and the paired intervals over the start.

    That is the start's mean over all its seeds and the mean change over those of the row, so that
    rows that lack a seed are where they would be with it.
    """
    place, bars = [], []
    for figure in (MEAN, other):
        pairs, begun = _pairs(row, figure, part), values(start.cells, figure, part)
        if not pairs or not begun:
            return None
        change = intervals.difference([a for a, _ in pairs], [b for _, b in pairs])
        place.append(100 * (float(np.mean([one.value for one in begun])) + change.mean))
        bars.append(_bar(change) if len(row.steps) > 1 else None)
    return (place[0], place[1]), tuple(bars)


def _pairs(row: Row, figure: str, part: str) -> list[tuple[Measured, Measured]]:
    """A figure of the start and of the row, run by run."""
    found = []
    for cell in (row.cells[unit] for unit in sorted(row.cells)):
        a, b = measured(Cell(cell.run, 0), figure, part), measured(cell, figure, part)
        if a and b:
            found.append((a, b))
    return found


def _bar(change: intervals.Estimate) -> tuple[float, float] | None:
    if change.interval is None:
        return None
    low, high = change.interval
    return 100 * max(0.0, change.mean - low), 100 * max(0.0, high - change.mean)


def _look(row: Row, index: int) -> dict[str, Any]:
    """Marker, fill and colour: what a row is can be told from the first two alone."""
    if len(row.steps) == 1:
        return {"marker": "*", "color": "0", "markersize": 11, "linestyle": "none"}
    colour = COLOURS[1] if plain.is_selmix(row) else COLOURS[0]
    fill = colour if plain.is_selmix(row) else "white"
    look = {"marker": MARKERS[index % len(MARKERS)], "color": colour, "markersize": 6}
    return {**look, "markerfacecolor": fill, "markeredgecolor": colour, "linestyle": "none"}


def _draw_bars(axis: Axes, point: Point, bars: Bars, colour: str) -> None:
    across, up = (None if bar is None else [[bar[0]], [bar[1]]] for bar in bars)
    faint: dict[str, Any] = {"color": colour, "fmt": "none", "elinewidth": 0.5, "capsize": 1.5}
    axis.errorbar(*point, xerr=across, yerr=up, alpha=0.4, zorder=1, **faint)


def _join(axis: Axes, best: Sequence[Point]) -> None:
    """Stairs through what nothing dominates: what lies below and left of them is dominated."""
    (left, _), (bottom, _) = axis.get_xlim(), axis.get_ylim()
    corners = [(left, best[0][1]), best[0]]
    for x, y in best[1:]:
        corners += [(corners[-1][0], y), (x, y)]
    corners.append((corners[-1][0], bottom))
    look: dict[str, Any] = {"color": "0.6", "linewidth": 1.6, "linestyle": "--", "zorder": 0}
    axis.plot(*zip(*corners, strict=True), scalex=False, scaley=False, **look)


Box = tuple[float, float, float, float]  # left, bottom, right, top; in points of the page


def _number(axis: Axes, points: Mapping[str, Point], best: Sequence[str]) -> None:
    """The number of every row beside its point, where there is room; rows on one point share it."""
    same: dict[Point, list[tuple[int, bool]]] = {}
    for i, (name, (x, y)) in enumerate(points.items(), 1):
        same.setdefault((round(x, 1), round(y, 1)), []).append((i, name in best))
    spans = (axis.get_xlim(), axis.get_ylim())
    at = {
        place: [ROOM_OF[k] * (place[k] - low) / (high - low) for k, (low, high) in enumerate(spans)]
        for place in same
    }
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in at.values()]
    for place, numbers in same.items():
        words = ",".join(str(i) for i, _ in numbers)
        wide = LETTER * len(words)
        corners = ((5, 4), (-5 - wide, 4), (5, -11), (-5 - wide, -11), (5, -3), (-wide / 2, 8))
        boxes = {(dx, dy): _box(at[place], dx, dy, wide) for dx, dy in corners}
        corner = min(boxes, key=lambda one: sum(_overlap(boxes[one], other) for other in taken))
        taken.append(boxes[corner])
        weight = "bold" if any(good for _, good in numbers) else "normal"
        look: dict[str, Any] = {"fontsize": 7, "fontweight": weight, "zorder": 5}
        axis.annotate(words, place, corner, textcoords="offset points", **look)


def _box(at: Sequence[float], dx: float, dy: float, wide: float) -> Box:
    return at[0] + dx, at[1] + dy, at[0] + dx + wide, at[1] + dy + 7


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)


def _limit(axis: Axes, points: Sequence[Point]) -> None:
    """Limits by the points, for the intervals of few seeds are wider than what there is to see."""
    limits: list[Callable[..., Any]] = [axis.set_xlim, axis.set_ylim]
    for i, limit in enumerate(limits):
        at = [point[i] for point in points]
        room = max(ROOM, 0.35 * (max(at) - min(at)))
        limit(max(-1.0, min(at) - room), min(101.0, max(at) + room))
