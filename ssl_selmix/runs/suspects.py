"""The file that names the labeled images whose labels a stage doubts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.data import Data
from ssl_selmix.methods.label_filter import DOUBTED, Filters, judged
from ssl_selmix.training import engine

SUSPECTS = "suspects.csv"
COLUMNS = ("image", "label", "predicted", "loss", "probability")


def write(
    folder: Path, algorithm: Algorithm, data: Data, names: Sequence[str], *, first: bool = True
) -> str:
    """Write which labels the kept weights doubt, the largest loss first; a sentence about it.

    Args:
        folder: of the stage.
        algorithm: with the weights that it hands on.
        data: whose labeled images are judged.
        names: of all training images.
        first: whether this process, of several, writes.

    Returns:
        "" of a stage that judges no labels, for which nothing is written.
    """
    if not isinstance(algorithm, Filters) or algorithm.label_filter is None:
        return ""
    found = judged(algorithm, engine.evaluate(algorithm, data, features=("labeled",)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    order = found.losses.argsort(descending=True, stable=True)
    doubted = [int(i) for i in order if found.clean[i] < DOUBTED]
    for i in doubted:
        classes = (data.class_names[int(k)] for k in (data.labels[i], found.predicted[i]))
        figures = (f"{float(v[i]):.4g}" for v in (found.losses, found.clean))
        table.writerow([names[int(data.labeled[i])], *classes, *figures])
    if first:
        write_atomically(folder / SUSPECTS, text.getvalue().encode())
    return f"{len(doubted)} of {len(data.labeled)} labels are doubted, see {folder / SUSPECTS}"
