"""The figures of a comparison, readable in grey and by the colour-blind.

Colours of Okabe and Ito; whatever a colour says, a marker or a line style says too.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_selmix.comparison import intervals
from ssl_selmix.comparison.grouping import Cell, Group, Row
from ssl_selmix.comparison.readout import values

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")  # 7 and 10 share no divisor
LINES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "ssl-selmix",  # the same figure has the same bytes
    "pdf.fonttype": 42,
}
PANEL = (2.1, 1.5)  # inches
WIDE = 4.4  # of a figure, so that its words can be read on a phone
SPAN = 4.0  # percent that an axis shows at least


@dataclass(frozen=True)
class Picture:
    """A figure with its file name, and the sentence below it."""

    slug: str
    caption: str
    figure: Figure


@dataclass
class Pictures:
    """The figures of a group, and why others are missing."""

    made: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def of_group(group: Group, part: str = "test") -> Pictures:
    """All figures for which the runs hold data."""
    from ssl_selmix.comparison import logs, plane  # which draw with what is defined here

    makers: list[Callable[[Group, str], list[Picture]]] = [plane.plane, recalls, reliability]
    makers += [logs.curves, logs.pairs, logs.priors]
    found = Pictures()
    with drawing():
        for make in makers:
            made = make(group, part)
            for picture in made:  # laid out once, not once per file
                picture.figure.draw_without_rendering()
                picture.figure.set_layout_engine("none")
            found.made += made
            if not made:
                found.notes.append(f"no figure {make.__name__}: {MISSING[make.__name__]}")
    return found


MISSING = {
    "plane": "there is no row",
    "recalls": "no run has a second stage",
    "reliability": "the results hold no reliability data",
    "curves": "no run folder with metrics.jsonl is among the runs",
    "pairs": "no metrics.jsonl with gains and P is among the runs",
    "priors": "no metrics.jsonl with an estimated class distribution is among the runs",
}


@contextmanager
def drawing() -> Iterator[None]:
    """The style; characters that the font lacks become boxes, without a word."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def save(pictures: Pictures, folder: Path) -> None:
    """Write every figure as PNG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        for picture in pictures.made:
            FigureCanvasAgg(picture.figure)
            path = folder / picture.slug
            picture.figure.savefig(path.with_suffix(".png"), dpi=200, metadata={"Software": None})
            picture.figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def svg(picture: Picture) -> bytes:
    """The figure as a file of its own kind that any browser shows."""
    file = io.BytesIO()
    with drawing():
        picture.figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def panels(count: int, columns: int = 2, size: tuple[float, float] = PANEL) -> tuple[Figure, Any]:
    """A figure with that many panels, row by row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def short(title: str) -> str:
    """A title that fits above a panel."""
    return textwrap.fill(title, 28)


def styles(group: Group) -> dict[str, dict[str, Any]]:
    """Colour and marker of every method, by its first stage; hollow: the first stage alone."""
    firsts = list(dict.fromkeys(row.steps[0] for row in group.rows))
    seconds = list(dict.fromkeys(row.steps[1:] for row in group.rows))
    found = {}
    for row in group.rows:
        i, j = firsts.index(row.steps[0]), seconds.index(row.steps[1:])
        colour = COLOURS[i % len(COLOURS)]
        marker = MARKERS[(i + (j - 1 if j > 1 else 0)) % len(MARKERS)]
        fill = colour if len(row.steps) > 1 else "white"
        line = LINES[j % len(LINES)]
        found[row.name] = {
            **{"color": colour, "marker": marker, "linestyle": line},
            **{"markerfacecolor": fill, "markeredgecolor": colour, "markersize": 5},
        }
    return found


def estimate(row: Row, figure: str, part: str) -> intervals.Estimate | None:
    """A method's mean of a figure, if it is recorded."""
    found = values(row.cells, figure, part)
    return intervals.mean(found) if found else None


def below_plot(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend with a line for every method, in one column if names are long."""
    shown = [shown_label(label) for label in labels]
    words = [textwrap.fill(text, 64) for text in shown]
    columns = _columns(labels)
    figure.legend(handles, words, loc="outside lower center", ncols=columns, fontsize=7)


def _columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels)) <= 32 else 1


def legend_height(labels: Sequence[str]) -> float:
    """Inches that `below_plot` takes."""
    lines = sum(len(textwrap.wrap(label, 64)) for label in labels)
    return 0.16 * -(-lines // _columns(labels))


def shown_label(name: str) -> str:
    """A name that matplotlib does not hide, as it does those with an underscore at the front."""
    return f" {name}" if name.startswith("_") else name


def slug(kind: str, group: Group) -> str:
    """A figure's file name."""
    return f"{kind}-{group.slug}"


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


def class_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Names of up to 20 classes, numbers of more."""
    if len(names) <= 20:
        turned = 90 if max(map(len, names)) > 2 else 0
        axis.set_xticks(range(len(names)), names, rotation=turned, fontsize=7)
    else:
        axis.set_xlabel("class")


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
