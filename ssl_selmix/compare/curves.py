"""Figures of how training went, from the metrics.jsonl of run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.reading import Rows, Unit, validations
from ssl_selmix.compare.style import (
    COLOURS,
    SPAN,
    WIDE,
    Picture,
    below_plot,
    class_ticks,
    legend_height,
    panels,
    short,
    shown_label,
    styles,
)

COMPARED = {"mean_recall": "mean recall", "min_recall": "worst class"}
MATRICES = {"gain_matrix": "gain", "pair_distribution": "P"}


def _logged(row: Row) -> dict[Unit, tuple[Cell, Rows]]:
    """Cell and validation rows by seed and images, for those whose log is there."""
    found = {}
    for unit in sorted(row.cells):
        if rows := validations(row.cells[unit].stage):
            found[unit] = (row.cells[unit], rows)
    return found


def curves(group: Group, part: str) -> list[Picture]:
    """Validation figures by step: a row of panels per stage; lines are medians over seeds."""
    logged = {row.name: [rows for _, rows in _logged(row).values()] for row in group.rows}
    depths = sorted({len(row.steps) for row in group.rows if logged[row.name]})
    if not depths:
        return []
    style = styles(group)
    figure, axes = panels(2 * len(depths), size=(2.2, 2.0))
    for i, depth in enumerate(depths):
        for row in (r for r in group.rows if len(r.steps) == depth and logged[r.name]):
            for axis, name in zip(axes[2 * i : 2 * i + 2], COMPARED, strict=True):
                _curve(
                    axis,
                    logged[row.name],
                    name,
                    {**style[row.name], "label": shown_label(row.name)},
                )
        for axis, title in zip(axes[2 * i : 2 * i + 2], COMPARED.values(), strict=True):
            axis.set_title(f"stage {depth}: {title}")
            axis.set_xlabel("step")
            low, high = axis.get_ylim()  # of a constant figure, rounding would fill the panel
            missing = max(0.0, SPAN - (high - low)) / 2
            axis.set_ylim(low - missing, high + missing)
        axes[2 * i].set_ylabel("validation, percent")
    found = [axis.get_legend_handles_labels() for axis in axes[::2]]
    handles, labels = ([x for pair in found for x in pair[k]] for k in (0, 1))
    if labels:
        _grow(figure, legend_height(labels))
        below_plot(figure, handles, labels)
    caption = (
        "Learning curves on validation: medians over seeds, bands from the lowest to the highest "
        "seed; between its evaluations a seed keeps its last value. A stage starts at step 0 with "
        "what it was given."
    )
    return [Picture(f"curves-{group.slug}", caption, figure)]


def _grow(figure: Figure, inches: float) -> None:
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + inches)


def _curve(axis: Axes, runs: Sequence[Rows], name: str, look: Mapping[str, Any]) -> None:
    series = [
        {row["step"]: row[name] for row in rows if row.get(name) is not None} for rows in runs
    ]
    series = [one for one in series if one]
    # SelMix chooses when to evaluate, so that seeds share few steps: each keeps its last value.
    steps = sorted(set().union(*series))
    steps = [s for s in steps if all(min(one) <= s <= max(one) for one in series)]
    if not steps:
        return
    found = 100 * np.array([[one[max(k for k in one if k <= s)] for s in steps] for one in series])
    axis.plot(
        steps, np.median(found, axis=0), linewidth=1, markevery=max(1, len(steps) // 6), **look
    )
    if len(series) > 1:
        axis.fill_between(steps, found.min(0), found.max(0), color=look["color"], alpha=0.12, lw=0)


def pairs(group: Group, part: str) -> list[Picture]:
    """Gain matrix and P at the first, a middle and the last estimate, of one seed per method."""
    made = []
    for row in group.rows:
        for (seed, _), (cell, rows) in _logged(row).items():
            found = [r for r in rows if all(key in r for key in MATRICES)]
            if found:
                made.append(_pairs_of(group, row, seed, cell, found))
                break
    return made


def _pairs_of(group: Group, row: Row, seed: int, cell: Cell, found: Rows) -> Picture:
    picked = sorted({0, len(found) // 2, len(found) - 1})
    # Side by side they would be too small on a phone.
    figure = Figure(figsize=(WIDE, 2.6 * len(picked)), layout="constrained")
    axes = figure.subplots(len(picked), len(MATRICES), squeeze=False)
    for line, index in enumerate(picked):
        for column, (key, title) in enumerate(MATRICES.items()):
            axis = axes[line, column]
            image = axis.imshow(np.array(found[index][key]), cmap="cividis")
            bar = figure.colorbar(image, ax=axis, shrink=0.8, location="bottom", pad=0.02)
            bar.locator = MaxNLocator(3)
            bar.update_ticks()
            bar.ax.tick_params(labelsize=6)
            axis.set_title(f"{title} at step {found[index]['step']}")
            _matrix_ticks(axis, cell.run.class_names, column == 0)
    told = f"{row.name}, seed {seed}"
    caption = (
        f"{told}: the gain of mixing a labeled image of the row's class with a partner of the "
        "column's class, and the distribution P from which pairs are drawn, at the first, a middle "
        f"and the last of {len(found)} estimates. Every panel has its own scale."
    )
    place = [r.name for r in group.rows].index(row.name) + 1
    return Picture(f"pairs-{place}-{group.slug}", caption, figure)


def _matrix_ticks(axis: Axes, names: Sequence[str], labeled: bool) -> None:
    class_ticks(axis, names)
    axis.set_xlabel("partner's class")
    if len(names) <= 20:
        axis.set_yticks(range(len(names)), names if labeled else [""] * len(names), fontsize=7)
    if labeled:
        axis.set_ylabel("labeled class")


def priors(group: Group, part: str) -> list[Picture]:
    """The pool's class distribution: estimated, and true where the data set knows it."""
    found = []
    for row in group.rows:
        for (seed, _), (cell, rows) in _logged(row).items():
            if estimates := [r for r in rows if "estimated_prior" in r]:
                found.append((f"{row.name}, seed {seed}", cell, estimates))
                break
    if not found:
        return []
    figure, axes = panels(2 * len(found), size=(WIDE / 2, 1.9))
    for i, (title, cell, estimates) in enumerate(found):
        _last_prior(axes[2 * i], cell, estimates[-1])
        axes[2 * i].set_title(short(title))
        _prior_errors(axes[2 * i + 1], estimates)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "Left: the class distribution of the unlabeled pool as estimated last, with its interval, "
        "and the true one, which training never sees. Right: L1 distance between the two at every "
        "estimate."
    )
    return [Picture(f"priors-{group.slug}", caption, figure)]


def _last_prior(axis: Axes, cell: Cell, row: Mapping[str, Any]) -> None:
    estimate = 100 * np.array(row["estimated_prior"], dtype=float)
    place = np.arange(len(estimate))
    bars = None
    if {"estimated_prior_low", "estimated_prior_high"} <= row.keys():
        low, high = (100 * np.array(row[f"estimated_prior_{k}"]) for k in ("low", "high"))
        bars = np.clip([estimate - low, high - estimate], 0, None)
    look: dict[str, Any] = {"marker": "o", "linestyle": "-", "color": COLOURS[1], "markersize": 3}
    axis.errorbar(place, estimate, bars, **look, linewidth=1, elinewidth=0.7, label="estimated")
    if "true_prior" in row:
        truth = 100 * np.array(row["true_prior"], dtype=float)
        axis.plot(place, truth, "x--", color=COLOURS[0], markersize=4, linewidth=0.8, label="true")
    axis.set_ylabel("share, percent")
    axis.set_ylim(bottom=0)
    class_ticks(axis, cell.run.class_names)


def _prior_errors(axis: Axes, estimates: Rows) -> None:
    known = [r for r in estimates if "true_prior" in r]
    pairs_ = [(np.array(r["estimated_prior"]), np.array(r["true_prior"])) for r in known]
    errors = [float(np.abs(a - b).sum()) for a, b in pairs_]
    if known:
        axis.plot([r["step"] for r in known], errors, "o-", color=COLOURS[1], markersize=3)
        axis.set_ylim(bottom=0)
    else:
        axis.text(0.5, 0.5, "true distribution unknown", ha="center", transform=axis.transAxes)
    axis.set(xlabel="step", title="L1 error")
