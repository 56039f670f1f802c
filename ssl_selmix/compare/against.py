"""Tables of SelMix and its controls, in plain words: against the start, and against offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ssl_selmix.common.page import Text
from ssl_selmix.compare import plain, tables
from ssl_selmix.compare.intervals import Measured
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.tables import Choice, Sheet, measured, paired, paired_sheet, titled

Both = tuple[list[Measured], list[Measured]]  # a figure of what is compared with, and of a row
SELMIX, OTHERS = "with SelMix", "controls"
NOTE = (
    "controls: what may do as well without SelMix. Offsets and the point of WiSE-FT are chosen on "
    "the same validation images; thresholds by class shares are fitted to nothing"
)


def of_group(group: Group, choice: Choice) -> list[Sheet]:
    """All tables of a group."""
    first, *others = tables.of_group(group, choice)
    mine = [of_start(group, choice), of_offsets(group, choice)]
    return [first, *(sheet for sheet in mine if sheet.rows), *others]


def of_start(group: Group, choice: Choice) -> Sheet:
    """What every chain made of the start that all of them share."""
    title = f"{titled(group, choice.part)}, points: SelMix and its controls, against their start"

    def over_start(row: Row, rows: Sequence[Row], figure: str) -> Both:
        pairs = [
            (measured(Cell(cell.run, 0), figure, choice.part), measured(cell, figure, choice.part))
            for cell in (row.cells[unit] for unit in sorted(row.cells))
            if cell.position
        ]
        both = [(a, b) for a, b in pairs if a and b]
        return [a for a, _ in both], [b for _, b in both]

    return _sheet("controls", title, ("start", "end", "change"), group, choice, over_start)


def of_offsets(group: Group, choice: Choice) -> Sheet:
    """Every chain against post-hoc offsets alone, chosen for the same objective."""
    title = f"{titled(group, choice.part)}, points: against {plain.OFFSETS} alone"

    def over_offsets(row: Row, rows: Sequence[Row], figure: str) -> Both:
        reference = _offsets_for(row, rows)
        return paired(reference, row, figure, choice.part) if reference else ([], [])

    names = ("offsets", "this", "difference")
    return _sheet("offsets", title, names, group, choice, over_offsets)


def _offsets_for(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of offsets alone that a row is to be held against."""
    alone = [one for one in rows if plain.is_offsets(one)]
    aim = plain.aim(row)  # none: whatever offsets there are
    found = alone if aim is None else [one for one in alone if plain.aim(one) == aim]
    own = len(row.steps) == 1 or plain.is_offsets(row)
    return found[0] if len(found) == 1 and not own else None


def _sheet(
    slug: str,
    title: str,
    names: tuple[str, str, str],
    group: Group,
    choice: Choice,
    compare: Callable[[Row, Sequence[Row], str], Both],
) -> Sheet:
    """A line for every row and figure, below a line that says which kind of row follows."""
    families, words = plain.families(group), plain.names(group)
    pairs, kinds = [], []
    for start, rows in families.items():
        prefix = f"{start}: " if len(families) > 1 else ""
        for row in rows:
            for figure in choice.compared:
                first, second = compare(row, rows, figure)
                if first:
                    pairs.append((words[row.name], figure, first, second))
                    kinds.append(prefix + (SELMIX if plain.is_selmix(row) else OTHERS))
    sheet = paired_sheet(slug, title, names, pairs, choice)
    lines: list[list[Text]] = []
    for kind, before, line in zip(kinds, ["", *kinds], sheet.rows, strict=False):
        if kind != before:
            lines.append([Text(kind, bold=True), *(Text("") for _ in sheet.head[1:])])
        lines.append(line)
    sheet.rows = lines
    sheet.notes = [NOTE, *sheet.notes]
    return sheet
