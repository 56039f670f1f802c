"""Draws the rooms of the package on their floors, for docs/explain/architecture.md.

    PYTHONPATH=. python docs/figures/architecture.py docs/figures/architecture.png

Floors come from tests/test_layers.py, which holds them against the imports; modules from the files.
"""

import sys
import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tests.test_layers import FLOORS, MODULES

PLUGINS = {"algorithms", "datasets"}  # a file each, found by name
LEFT_OUT = {"__init__", "__main__", "forward"}


def modules(room: str) -> list[str]:
    """Names of the modules in a room, but its face."""
    return [name.partition(".")[2] for name in MODULES if name.startswith(f"{room}.")]


def main(path: str) -> None:
    """Draw one row a floor, one box a room."""
    floors = [sorted(rooms - LEFT_OUT) for rooms in FLOORS if rooms - LEFT_OUT]
    figure = Figure(figsize=(11, 0.85 * len(floors)))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, len(floors))
    axes.axis("off")
    for floor, rooms in enumerate(floors):
        shares = [max(6, len(" ".join(modules(room)))) ** 0.6 for room in rooms]
        width, left = 96 / sum(shares), 2.0
        for room, share in zip(rooms, shares, strict=True):
            box = FancyBboxPatch(
                (left + 0.3, floor + 0.06),
                share * width - 0.6,
                0.86,
                boxstyle="round,pad=0,rounding_size=0.5",
                mutation_aspect=0.06,
                facecolor="#e6e6e6" if room in PLUGINS else "white",
                edgecolor="black",
                linewidth=0.8,
            )
            axes.add_patch(box)
            middle = left + share * width / 2
            axes.text(middle, floor + 0.76, room, ha="center", va="center", size=10, weight="bold")
            held = modules(room)
            words = f"{len(held)} plug-ins" if room in PLUGINS else ", ".join(held)
            text = "\n".join(textwrap.wrap(words, max(10, int(share * width * 1.55))))
            axes.text(middle, floor + 0.6, text, ha="center", va="top", size=7.5)
            left += share * width
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1])
