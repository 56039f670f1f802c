"""What a comparison says of single classes: their recalls, and whom they are taken for.

The figures of a run hold recalls and no confusions, so that these are measured anew: by the model
that the run kept, on its own images, where both are at hand.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssl_selmix.common.figures import fixed
from ssl_selmix.common.page import Text, picture
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.reading import Run
from ssl_selmix.compare.tables import Sheet, leaders, titled, values
from ssl_selmix.runs.folder import MANIFEST, RunFolder

COLUMNS = 6  # rows of the tables that a table of classes has
PAIRS, EXAMPLES = 9, 5  # of a model: confusions, and images of each


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another, the most certain first."""

    true: str
    predicted: str
    count: int
    images: int  # of the true class
    examples: Sequence[str] = ()  # data URIs

    @property
    def percent(self) -> str:
        """The share of the class."""
        return fixed(100 * self.count / self.images)


@dataclass(frozen=True)
class Confused:
    """The worst confusions of one model."""

    row: str
    run: str
    pairs: Sequence[Pair] = ()
    note: str = ""


@dataclass
class Confusions:
    """Those of a group, and what there is to say of them."""

    found: list[Confused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def best(group: Group, num: int) -> list[Row]:
    """Rows by their mean recall on validation, the best first; those with most seeds lead."""
    first = leaders(group, "mean_recall")

    def rank(row: Row) -> tuple[bool, int, float]:
        found = [m.value for m in values(row.cells, "mean_recall", "validation")]
        return row not in first[:1], -len(row.cells), -statistics.fmean(found or [0.0])

    return sorted(group.rows, key=rank)[:num]


def sheet(group: Group, part: str) -> Sheet:
    """Recall of each class by the best rows: the mean over seeds, in percent."""
    rows = best(group, COLUMNS)
    run = rows[0].cells[min(rows[0].cells)].run
    counts = _labeled(run)
    tail = set(run.recorded.tail or ())
    lines = []
    for k, name in enumerate(run.class_names):
        marked = f"{name} (tail)" if k in tail else name
        labeled = [Text(str(counts[k]))] if counts else []
        lines.append([Text(marked), *labeled, *(_recall(row, k, part) for row in rows)])
    left = len(group.rows) - len(rows)
    notes = ["tail: the rarest tenth of the classes; the values of single seeds show on hovering"]
    notes += [f"the {len(rows)} rows of the best mean recall on validation"] if left else []
    head = ["class", *(["labeled images"] if counts else []), *(row.name for row in rows)]
    return Sheet(
        "classes", f"{titled(group, part)}, percent: recall by class", head, lines, 1, notes
    )


def _labeled(run: Run) -> Sequence[int] | None:
    """Labeled images of each class, as the run's manifest has them; None where it is not there."""
    folder = RunFolder(run.path.parent)
    if run.file != run.path or not folder.has(MANIFEST):
        return None
    try:
        counts = folder.manifest["counts"]["labeled"]
    except (ValueError, KeyError, TypeError):
        return None
    return counts if len(counts) == len(run.class_names) else None


def _recall(row: Row, k: int, part: str) -> Text:
    told = []
    for unit in sorted(row.cells):
        cell = row.cells[unit]
        recalls = cell.stage.measured[part]["per_class_recall"]
        if k < len(recalls) and recalls[k] is not None:
            told.append((unit[0], recalls[k], _before(cell, k, part)))
    if not told:
        return Text("–")
    hint = "; ".join(f"seed {s}: {fixed(100 * value)}{more}" for s, value, more in told)
    return Text(fixed(100 * statistics.fmean(value for _, value, _ in told)), hint=hint)


def _before(cell: Cell, k: int, part: str) -> str:
    """What the last stage began with."""
    if not cell.position:
        return ""
    recalls = cell.start.measured[part]["per_class_recall"]
    if k >= len(recalls) or recalls[k] is None:
        return ""
    return f" (from {fixed(100 * recalls[k])})"


def confusions(group: Group, part: str, num: int) -> Confusions:
    """Of the first seed of the best rows, where run and images are at hand.

    Args:
        group: of the comparison.
        part: test or validation.
        num: of rows.
    """
    made = Confusions()
    if not num:
        made.notes.append("not measured, for --examples is 0")
        return made
    made.notes.append(
        f"the most frequent ones on {part}, as a share of the class, of the {num} best rows on "
        "validation; the images are those that the model is most certain of"
    )
    for row in best(group, num):
        cell = row.cells[min(row.cells)]
        run = cell.run.path.parent
        if cell.run.file != cell.run.path:
            made.found.append(Confused(row.name, cell.run.name, note="no images: it is archived"))
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):  # notes on images are no part of a table
                pairs = of_run(run, part)
            none = "" if pairs else f"every image of {part} is right"
            made.found.append(Confused(row.name, cell.run.name, pairs, none))
        except (ValueError, OSError, KeyError) as error:
            told = " ".join(str(error).split())
            made.found.append(Confused(row.name, cell.run.name, note=f"no images: {told}"))
    return made


def of_run(run: Path, part: str) -> list[Pair]:
    """The worst confusions of the model that a run kept, with images.

    Raises:
        ValueError: the folder is no finished run, or its images are not there.
    """
    from ssl_selmix.algorithm import Algorithm
    from ssl_selmix.models.execution import Execution
    from ssl_selmix.runs.inputs import reload
    from ssl_selmix.runs.load import load
    from ssl_selmix.runs.plan import reopen
    from ssl_selmix.training import engine

    plan = reopen(run)
    inputs = reload(plan)
    data = inputs.data
    net = inputs.of_inputs(load(run).net).prepared(Execution(plan.run.precision), data.device)
    model = Algorithm(net, data.task, Algorithm.Config())
    if part == "test":
        labels, pool, index = data.test_labels.cpu(), data.test_pool, data.test
        batches = data.test_batches(None)
        logits = engine.predict(model, batches, len(labels), keep_features=False)[1]
    else:
        labels, pool, index = data.validation_labels.cpu(), data.pool, data.validation
        logits = engine.evaluate(model, data).logits
    found = worst(logits.float().softmax(1).cpu(), labels, data.class_names)
    return [
        Pair(true, taken, count, size, _images(pool.take(index[rows]).cpu()))
        for true, taken, count, size, rows in found
    ]


def worst(
    probabilities: Tensor, labels: Tensor, names: Sequence[str]
) -> list[tuple[str, str, int, int, Tensor]]:
    """Pairs of classes by the share of the first that is taken for the second.

    Shape: probabilities N×K, labels (N,); of each pair: true, predicted, how many, of how many, and
    the positions of its most certain images.
    """
    num = probabilities.shape[1]
    certain, predicted = probabilities.max(1)
    counts = torch.bincount(labels * num + predicted, minlength=num * num).view(num, num)
    sizes = counts.sum(1)
    shares = (counts / sizes.clamp(min=1).unsqueeze(1)).fill_diagonal_(0)
    order = shares.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    found = []
    for place in order:
        i, j = divmod(place, num)
        if not counts[i, j] or i == j:
            continue
        rows = ((labels == i) & (predicted == j)).nonzero().flatten()
        chosen = rows[certain[rows].argsort(descending=True, stable=True)][:EXAMPLES]
        found.append((names[i], names[j], int(counts[i, j]), int(sizes[i]), chosen))
    return found


def _images(images: Tensor) -> list[str]:
    """Pictures of uint8 images n×C×H×W; none of what is no image."""
    from PIL import Image

    if images.ndim != 4 or images.dtype != torch.uint8:
        return []
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    return [picture(Image.fromarray(one[..., 0] if one.shape[2] == 1 else one)) for one in pixels]
