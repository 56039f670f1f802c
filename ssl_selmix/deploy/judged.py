"""How right predictions are whose labels are known: figures, recall by class, and confusions.

Shapes: n images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ssl_selmix import metrics
from ssl_selmix.common.figures import percent
from ssl_selmix.runs.summary import FIGURES

SHOWN = 30  # classes in the table, those with the lowest recall


class Judged:
    """Counts of (label, prediction), from one batch after the other."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names
        self.counts = torch.zeros(len(class_names), len(class_names), dtype=torch.long)
        self.without = 0  # images that have no label

    def add(self, labels: Sequence[int], probs: Tensor) -> None:
        """A batch: its labels, -1 where there is none, and its probabilities n×K."""
        known = torch.tensor(labels, dtype=torch.long)
        self.without += int((known < 0).sum())
        if len(known):
            pairs = (known, probs.argmax(1))
            cells = torch.stack(pairs)[:, known >= 0]
            self.counts.index_put_(tuple(cells), torch.ones(1, dtype=torch.long), accumulate=True)

    def show(self, out: Console) -> None:
        """Print the figures, and of every class its recall and what it is taken for most."""
        if not int(self.counts.sum()):
            out.print("no image with a label could be read, so that nothing is judged")
            return
        if self.without:
            out.print(f"{self.without} images have no label and are not judged")
        found = metrics.from_confusion(self.counts)
        figures = Table(title="figures, percent", title_justify="left")
        for title in FIGURES.values():
            figures.add_column(title, justify="right")
        figures.add_row(*(percent(float(found[key])) for key in FIGURES))  # type: ignore[arg-type]
        out.print(figures)
        out.print(self._classes(found["per_class_recall"]))  # type: ignore[arg-type]

    def _classes(self, recall: Sequence[float | None]) -> Table:
        table = Table(title="recall of each class, percent", title_justify="left")
        for title in ("class", "images", "recall", "taken for (images)"):
            table.add_column(title, justify="right" if title in ("images", "recall") else "left")
        shown = list(range(len(self._names)))
        if len(shown) > SHOWN:
            worst = sorted(shown, key=lambda k: 2.0 if recall[k] is None else float(recall[k] or 0))
            shown = sorted(worst[:SHOWN])
            table.caption = f"the {SHOWN} lowest of {len(self._names)}; the rows have all"
        for k in shown:
            value = recall[k]
            told = "-" if value is None else percent(value)
            table.add_row(escape(self._names[k]), str(int(self.counts[k].sum())), told, self._of(k))
        return table

    def _of(self, k: int) -> str:
        """The classes that images of a class are most often taken for, wrongly."""
        row = self.counts[k].clone()
        row[k] = 0
        order = row.sort(descending=True, stable=True).indices[:3].tolist()
        return escape(", ".join(f"{self._names[j]} ({int(row[j])})" for j in order if row[j]))
