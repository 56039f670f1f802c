"""The figures of a comparison, readable in grey and by the colour-blind.

Colours of Okabe and Ito; whatever a colour says, a marker or a line style says too.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.compare import intervals
from ssl_selmix.compare.methods import Group, Row
from ssl_selmix.compare.tables import values

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
LONGEST = 18  # characters of a class on an axis, which would leave a panel no room
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


@contextmanager
def drawing() -> Iterator[None]:
    """The style; characters that the font lacks become boxes, without a word."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


# Without what would make the same figure another file.
_KINDS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 200, "metadata": {"Software": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}


def save(pictures: Pictures, folder: Path) -> None:
    """Write every figure as PNG and PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        for picture in pictures.made:
            FigureCanvasAgg(picture.figure)
            for kind, options in _KINDS.items():
                content = io.BytesIO()
                picture.figure.savefig(content, format=kind, **options)
                write_atomically(folder / f"{picture.slug}.{kind}", content.getvalue())


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


def class_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Names of up to 20 classes, numbers of more."""
    if len(names) <= 20:
        turned = 90 if max(map(len, names)) > 2 else 0
        cut = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        axis.set_xticks(range(len(names)), cut, rotation=turned, fontsize=7)
    else:
        axis.set_xlabel("class")
