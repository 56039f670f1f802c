"""What the cells of a comparison say: figures of runs, by part, and who leads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ssl_selmix.comparison.grouping import Cell, Group, Row
from ssl_selmix.comparison.intervals import DIGITS, Measured
from ssl_selmix.comparison.logged import validations
from ssl_selmix.comparison.reading import LABELED, Unit
from ssl_selmix.plugins import unknown
from ssl_selmix.report import FIGURES

TITLES = {
    **FIGURES,
    "min_ht_recall": "worse of head, tail",
    "ece": "ECE",
    "classwise_ece": "class-wise ECE",
}
SHOWN = ("mean_recall", "min_recall", "g_mean", "h_mean", "min_coverage", "ece")
COMPARED = ("mean_recall", "min_recall")
SMALLER_IS_BETTER = ("ece", "classwise_ece")
LAST = 20  # evaluations whose median is taken (FixMatch's way of reporting)


@dataclass(frozen=True)
class Choice:
    """What the user wants to see."""

    part: str = "test"
    metrics: tuple[str, ...] = ()  # empty: SHOWN in the first table, COMPARED in the others
    against: str | None = None  # None: what is best on validation

    @property
    def shown(self) -> tuple[str, ...]:
        """Columns of the first table."""
        return tuple(dict.fromkeys(self.metrics)) or SHOWN

    @property
    def compared(self) -> tuple[str, ...]:
        """Figures of the paired tables."""
        return tuple(dict.fromkeys(self.metrics)) or COMPARED

    def __post_init__(self) -> None:
        """Refuse figures that do not exist."""
        for name in self.metrics:
            if name not in TITLES:
                raise ValueError(f"{unknown('figure', name, TITLES)} (--metrics)")


def percent(value: float, *, signed: bool = False) -> str:
    """A fraction in percent."""
    return f"{100 * value:{'+' if signed else ''}.1f}"


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± standard deviation in percent; one value stands alone.

    >>> spread([0.5, 0.6]), spread([0.5])
    ('55.0 ± 7.1', '50.0')
    """
    if not values:
        return "–"
    scaled = [100 * v for v in values]
    mean = f"{statistics.mean(scaled):{'+' if signed else ''}.1f}"
    return f"{mean} ± {statistics.stdev(scaled):.1f}" if len(values) > 1 else mean


def measured(cell: Cell, figure: str, part: str, *, start: bool = False) -> Measured | None:
    """A figure of a cell, or of the stage it started from; None if it was not recorded."""
    figures = (cell.start if start else cell.stage).measured[part]
    counts = cell.run.counts or {}
    value = figures.get(figure)
    if value is None:
        return None
    known = (counts.get(part), cell.run.unit, counts.get(LABELED))
    return Measured(float(value), figure, figures, *known)


def values(cells: Mapping[Unit, Cell], figure: str, part: str) -> list[Measured]:
    """A figure of every cell that has it, in the order of seeds."""
    found = [measured(cells[unit], figure, part) for unit in sorted(cells)]
    return [m for m in found if m is not None]


def leaders(group: Group, figure: str) -> list[Row]:
    """The best rows on validation among those with the most seeds: one, unless they tie.

    Of equal ones those with the best mean recall lead.
    """
    most = max(len(row.cells) for row in group.rows)
    found = [row for row in group.rows if _on_validation(row, figure, most) is not None]
    for name in (figure, "mean_recall"):
        told = {row.name: _on_validation(row, name, most) or 0.0 for row in found}
        choose: Callable[..., float] = min if name in SMALLER_IS_BETTER else max
        found = [row for row in found if told[row.name] == choose(told.values())]
    return found


def _on_validation(row: Row, figure: str, most: int) -> float | None:
    kept = values(row.cells, figure, "validation")
    return round(statistics.fmean(m.value for m in kept), DIGITS) if len(kept) == most else None


def paired(one: Row, other: Row, figure: str, part: str) -> tuple[list[Measured], list[Measured]]:
    """A figure of two rows over the units that both have."""
    first, second = [], []
    for unit in sorted(one.cells.keys() & other.cells.keys()):
        a, b = (measured(row.cells[unit], figure, part) for row in (one, other))
        if a is not None and b is not None:
            first.append(a)
            second.append(b)
    return first, second


def last_values(cells: Sequence[Cell], figure: str, part: str) -> list[float]:
    """A figure by the weights of the last step, of every cell of which it is known."""
    found = []
    for cell in cells:
        stage = cell.stage
        if stage.last is not None:
            found.append(stage.last[part].get(figure))
        elif part == "validation" and (rows := validations(stage)):
            found.append(rows[-1].get(figure))  # training ends with an evaluation
    return [float(value) for value in found if value is not None]


def median_of_last(cell: Cell, figure: str) -> tuple[float, int] | None:
    """Median of a figure over the last evaluations of a stage, and their number."""
    # Step 0 is what the stage was given.
    rows = [row for row in validations(cell.stage) if row["step"] > 0]
    found = [row[figure] for row in rows if row.get(figure) is not None]
    return (statistics.median(found[-LAST:]), len(found[-LAST:])) if found else None
