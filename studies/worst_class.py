"""Draws what second stages do to the worst class, from the committed runs of a study.

    python -m studies.worst_class docs/results/controls/same docs/results/controls/worst-class.png

A bar is the mean over seeds, a line its standard deviation, a dot a seed. Bars differ in hatching
and length, so that the picture can be read without colours.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from studies.claims import arms, values

# Folders of the sweep, what a reader calls them, and how the bar is filled.
BARS = (
    ("fixmatch", "FixMatch with logit adjustment, the start", "white", ""),
    ("fixmatch+plain-fine-tuning", "400 steps of plain fine-tuning", "white", ""),
    ("fixmatch+uniform-pairs", "SelMix with uniform pairs", "0.85", ""),
    ("fixmatch+same-P-without-mixing", "SelMix's classes, without mixing", "0.85", ""),
    ("fixmatch+selmix", "SelMix", "0.7", "//"),
    ("fixmatch+posthoc", "offsets on the logits, one second", "0.35", ""),
    ("fixmatch+posthoc+selmix-after-posthoc", "offsets, then SelMix", "0.7", "xx"),
)


def drawn(folder: Path) -> Figure:
    """The picture of a split's folder.

    Raises:
        ValueError: a row has no runs there.
    """
    found = arms(folder)
    if missing := [name for name, *_ in BARS if name not in found]:
        raise ValueError(f"{folder} has no runs of {', '.join(missing)}")
    figure = Figure(figsize=(7.2, 3.0), dpi=160, layout="constrained")
    axes = figure.subplots()
    for place, (name, label, grey, hatch) in enumerate(BARS):
        figures = [100 * value for value in values(found[name], "min_recall")]
        mean, spread = statistics.mean(figures), statistics.stdev(figures)
        axes.barh(place, mean, 0.72, color=grey, edgecolor="black", hatch=hatch, linewidth=0.8)
        axes.plot(figures, [place] * len(figures), "o", color="black", mfc="white", ms=3, mew=0.7)
        axes.plot([mean - spread, mean + spread], [place, place], color="black", linewidth=1.6)
        axes.text(101, place, f"{mean:.1f} ± {spread:.1f}", va="center", fontsize=9)
        axes.text(-1, place, label, va="center", ha="right", fontsize=9)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.spines[["top", "right", "left"]].set_visible(False)
    num = len(found[BARS[0][0]])
    axes.set_xlabel(f"test recall of the worst class, percent ({num} seeds)", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of one split of a study")
    parser.add_argument("picture", type=Path, help="the file to write")
    args = parser.parse_args(argv)
    drawn(args.folder).savefig(args.picture)


if __name__ == "__main__":
    main()
