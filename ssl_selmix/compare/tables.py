"""The tables of a comparison, as cells of text: what every writer prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ssl_selmix.common.figures import fixed, percent
from ssl_selmix.common.names import unknown
from ssl_selmix.common.page import Text
from ssl_selmix.compare import intervals, plain
from ssl_selmix.compare.intervals import DIGITS, Estimate, Measured
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.reading import Unit, validations
from ssl_selmix.runs.summary import FIGURES

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


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± standard deviation in percent; one value stands alone.

    >>> spread([0.5, 0.6]), spread([0.5])
    ('55.0 ± 7.1', '50.0')
    """
    if not values:
        return "–"
    scaled = [100 * v for v in values]
    mean = fixed(statistics.mean(scaled), signed=signed)
    return f"{mean} ± {fixed(statistics.stdev(scaled))}" if len(values) > 1 else mean


def measured(cell: Cell, figure: str, part: str, *, start: bool = False) -> Measured | None:
    """A figure of a cell, or of the stage it started from; None if it was not recorded."""
    figures = (cell.start if start else cell.stage).measured[part]
    counts = cell.run.counts or {}
    value = figures.get(figure)
    if value is None:
        return None
    known = (counts.get(part), cell.run.unit, cell.run.recorded.tail)
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


MARK = "*"
RULE = (
    f"{MARK} earned: at least {intervals.MIN_SEEDS} seeds, the 95 % interval excludes zero, and "
    "Holm-corrected p < 0.05 (paired t over seeds and test images) among the differences of this "
    "figure in this table"
)
TOO_FEW = f"no mark is possible: no difference has the {intervals.MIN_SEEDS} seeds that it takes"
INTERVAL = (
    "95 % interval: bootstrap over seeds, stretched for few of them, and over test images; with "
    "one seed over test images alone"
)


@dataclass
class Sheet:
    """A table: the first `words` columns are words, the others are numbers."""

    slug: str
    title: str
    head: list[str]
    rows: list[list[Text]]
    words: int = 1
    notes: list[str] = field(default_factory=list)


def of_group(group: Group, choice: Choice) -> list[Sheet]:
    """All tables of a group."""
    sheets = [methods(group, choice), changes(group, choice), differences(group, choice)]
    return [sheet for sheet in [*sheets, weights(group, choice)] if sheet.rows]


def methods(group: Group, choice: Choice) -> Sheet:
    """Every method: mean ± standard deviation over seeds."""
    rows = []
    best = {figure: _earned_best(group, figure, choice.part) for figure in choice.shown}
    for row in group.rows:
        cells = [Text(row.name), Text(str(len(row.cells)))]
        for figure in choice.shown:
            found = [m.value for m in values(row.cells, figure, choice.part)]
            told = _told(found, len(row.cells))
            hint = each_seed(values(row.cells, figure, choice.part))
            cells.append(Text(told, bold=best[figure] == row.name, hint=hint))
        seconds = [c.stage.seconds for c in row.cells.values() if c.stage.seconds]
        rows.append([*cells, Text(f"{statistics.mean(seconds):.0f}" if seconds else "–")])
    head = ["method", "n", *(TITLES[f] for f in choice.shown), "s"]
    notes = [
        "mean ± standard deviation (n - 1) over n seeds; s: seconds of the last stage, which "
        "depend on the machine and its load"
    ]
    if any(best.values()):
        notes.append("bold: best on validation, and on test better than every other row (*)")
    title = f"{titled(group, choice.part)}, percent, by the weights that the checkpoint rule keeps"
    return Sheet("methods", title, head, rows, notes=notes)


def each_seed(found: Sequence[Measured]) -> str:
    """The value of every seed in percent, where there are several."""
    if len(found) < 2:
        return ""
    return "; ".join(f"seed {m.unit[0]}: {percent(m.value)}" for m in found)


def titled(group: Group, part: str) -> str:
    """How the title of a table begins: its part, and what tells its runs from others."""
    return f"{part}, {group.title}" if group.title else part


def _earned_best(group: Group, figure: str, part: str) -> str | None:
    """The leader's name, if it is better than every other row beyond doubt; test only."""
    best = next(iter(leaders(group, figure)), None) if part == "test" else None
    others = [row for row in group.rows if best and row.name != best.name]
    if best is None or not others:
        return None
    pairs = [paired(best, row, figure, part) for row in others]
    if not all(first for first, _ in pairs):
        return None
    found = [intervals.difference(*pair) for pair in pairs]
    worse = [(e.mean > 0) == (figure in SMALLER_IS_BETTER) for e in found]
    return best.name if all(intervals.earned(found)) and all(worse) else None


def changes(group: Group, choice: Choice) -> Sheet:
    """What every further stage changed of its own start."""
    pairs: list[tuple[str, str, list[Measured], list[Measured]]] = []
    for row in group.rows:
        cells = [row.cells[unit] for unit in sorted(row.cells)] if len(row.steps) > 1 else []
        for figure in choice.compared if cells else ():
            ends = [measured(c, figure, choice.part) for c in cells]
            starts = [measured(c, figure, choice.part, start=True) for c in cells]
            both = [(a, b) for a, b in zip(starts, ends, strict=True) if a and b]
            if both:
                pairs.append((row.name, figure, [a for a, _ in both], [b for _, b in both]))
    title = f"{titled(group, choice.part)}, points: the last stage against its own start"
    return paired_sheet("changes", title, ("start", "end", "change"), pairs, choice)


def differences(group: Group, choice: Choice) -> Sheet:
    """Every method against one of them, on the seeds and images that both have."""
    pairs: list[tuple[str, str, list[Measured], list[Measured]]] = []
    notes = []
    # That a table lacks the row to compare with is told once, for all tables (command.py).
    lacks = choice.against is not None and plain.called(group, choice.against) is None
    for figure in choice.compared:
        if len(group.rows) < 2 or lacks:
            continue
        reference, note = _reference(group, figure, choice.against)
        notes.append(f"{TITLES[figure]}: {note}")
        if reference is None:
            continue
        for row in group.rows:
            first, second = paired(reference, row, figure, choice.part)
            if row.name != reference.name and first:
                pairs.append((row.name, figure, first, second))
            elif row.name != reference.name:
                notes.append(f"{row.name} has no seed and images in common with {reference.name}")
    order = {row.name: i for i, row in enumerate(group.rows)}
    pairs.sort(key=lambda pair: order[pair[0]])
    title = f"{titled(group, choice.part)}, points: differences on the same seeds and images"
    sheet = paired_sheet("differences", title, ("other", "method", "difference"), pairs, choice)
    sheet.notes = [*dict.fromkeys(notes), *sheet.notes, *_unequal_steps(group)]
    return sheet


def _reference(group: Group, figure: str, against: str | None) -> tuple[Row | None, str]:
    """The row that differences are taken against, and why it is this one."""
    if named := plain.called(group, against):
        return named, f"against {named.name}"
    found = leaders(group, figure)
    if not found:
        return None, (
            "no differences, for the rows with the most seeds have no values on validation to "
            "choose by; name a row with --against"
        )
    tie = f"first of {len(found)} that tie on validation"
    return found[0], f"against {found[0].name} ({tie if found[1:] else 'best on validation'})"


def _unequal_steps(group: Group) -> list[str]:
    """A note if some methods trained longer than others, all stages together."""
    found: dict[str, list[str]] = {}
    for row in group.rows:
        told = {
            "unknown"
            if any(s.steps is None for s in stages)
            else str(sum(s.steps or 0 for s in stages))
            for cell in row.cells.values()
            for stages in [cell.run.stages[: cell.position + 1]]
        }
        found.setdefault(" or ".join(sorted(told)), []).append(row.name)
    if len(found) < 2:
        return []
    told_rows = "; ".join(f"{steps}: {', '.join(names)}" for steps, names in found.items())
    return [f"the rows have different numbers of steps in all stages together: {told_rows}"]


def paired_sheet(
    slug: str,
    title: str,
    names: tuple[str, str, str],
    pairs: Sequence[tuple[str, str, list[Measured], list[Measured]]],
    choice: Choice,
) -> Sheet:
    """Pairs of measurements as lines: both ends, the change, its interval and whether it is earned.

    Args:
        slug: of the table.
        title: above it.
        names: of the two ends and of the change.
        pairs: row, figure, and its measurements at both ends over the same units.
        choice: what the user wants to see.
    """
    found = [intervals.difference(first, second) for _, _, first, second in pairs]
    marked = _marks([figure for _, figure, _, _ in pairs], found, choice.part)
    rows = []
    for (name, figure, first, second), estimate, mark in zip(pairs, found, marked, strict=True):
        words = [name, TITLES[figure], str(estimate.n)]
        ends = [spread([m.value for m in side]) for side in (first, second)]
        change = spread(
            [b.value - a.value for a, b in zip(first, second, strict=True)], signed=True
        )
        cells = [Text(t) for t in [*words, *ends]]
        each = zip(first, second, strict=True)
        hint = "; ".join(
            f"seed {a.unit[0]}: {percent(a.value)} to {percent(b.value)}" for a, b in each
        )
        cells += [Text(change, hint=hint if len(first) > 1 else "")]
        rows.append([*cells, Text(_interval(estimate) + mark)])
    head = ["method", "figure", "n", *names, "95 % interval"]
    rule = RULE if any(e.n >= intervals.MIN_SEEDS for e in found) else TOO_FEW
    if choice.part != "test":
        rule = "no marks: weights are chosen on validation"
    return Sheet(slug, title, head, rows, words=2, notes=[INTERVAL, rule])


def _marks(figures: Sequence[str], found: Sequence[Estimate], part: str) -> list[str]:
    """The mark of every difference that earned it among those of its figure."""
    marks = [""] * len(found)
    for figure in dict.fromkeys(figures) if part == "test" else ():
        index = [i for i, name in enumerate(figures) if name == figure]
        for i, good in zip(index, intervals.earned([found[i] for i in index]), strict=True):
            marks[i] = MARK if good else ""
    return marks


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "–"
    low, high = (percent(bound, signed=True) for bound in estimate.interval)
    return f"[{low}, {high}]"


def weights(group: Group, choice: Choice) -> Sheet:
    """Best on validation, last, and median of the last evaluations."""
    rows, evaluations = [], set()
    for row in group.rows:
        for figure in choice.compared:
            cells = [row.cells[unit] for unit in sorted(row.cells)]
            medians = [median_of_last(cell, figure) for cell in cells]
            evaluations |= {count for _, count in filter(None, medians)}
            found = {
                "kept, validation": [m.value for m in values(row.cells, figure, "validation")],
                "last, validation": last_values(cells, figure, "validation"),
                "median, validation": [value for value, _ in filter(None, medians)],
                "kept, test": [m.value for m in values(row.cells, figure, "test")],
                "last, test": last_values(cells, figure, "test"),
            }
            shown = [_told(found_values, len(cells)) for found_values in found.values()]
            rows.append([Text(t) for t in (row.name, TITLES[figure], *shown)])
    head = [
        "method",
        "figure",
        "kept, val.",
        "last, val.",
        "median, val.",
        "kept, test",
        "last, test",
    ]
    notes = ["kept: by the checkpoint rule; last: of the last step, – where it was not recorded"]
    if evaluations:
        low, high = min(evaluations), max(evaluations)
        number = f"{low}" if low == high else f"{low} to {high}"
        notes.append(
            f"median: of the last {number} evaluations on validation after step 0 (at most {LAST})"
        )
    else:
        notes.append(f"median of the last {LAST} evaluations: needs run folders with metrics.jsonl")
    title = f"{group.title + ', ' if group.title else ''}percent: which weights are reported"
    return Sheet("weights", title, head, rows, words=2, notes=notes)


def _told(found: Sequence[float], expected: int) -> str:
    few = f" (n={len(found)})" if 0 < len(found) < expected else ""
    return spread(found) + few
