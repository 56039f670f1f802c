"""Matrices over pairs of classes as pictures for TensorBoard, with axes, class names and a scale.

Shapes: K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 20  # classes; of more every so many is named
LONGEST = 14  # characters of a name
SIDE, MARGIN = 4.0, 1.6  # inches: of the matrix, and of names and scale
AXES = {"confusion": ("true class", "predicted class"), "": ("class of the row", "partner's class")}


def figure(matrix: Tensor, title: str, class_names: Sequence[str]) -> Figure:
    """The K×K matrix: row 0 on top, dark low, bright high, the scale beside it."""
    from matplotlib.figure import Figure  # not pyplot, which would choose a window system

    drawn = Figure(figsize=(SIDE + MARGIN, SIDE + MARGIN / 2), dpi=100, layout="compressed")
    axis = drawn.add_subplot()
    image = axis.imshow(matrix.detach().double().cpu().numpy(), cmap="cividis")
    drawn.colorbar(image, ax=axis)
    axis.set_title(title, parse_math=False)
    rows, columns = AXES.get(title, AXES[""])
    axis.set_ylabel(rows)
    axis.set_xlabel(columns)
    places = range(0, len(class_names), -(-len(class_names) // NAMED))
    names = [_short(class_names[place]) for place in places]
    turned = 90 if max(map(len, names)) > 2 else 0
    axis.set_xticks(places, names, rotation=turned, fontsize=8, parse_math=False)
    axis.set_yticks(places, names, fontsize=8, parse_math=False)
    return drawn


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def pixels(drawn: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure as H×W×3 uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(drawn)
    with warnings.catch_warnings():
        # A class may be called by signs that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
