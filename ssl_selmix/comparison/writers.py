"""A comparison as terminal tables, Markdown, LaTeX and CSV; the same input gives the same bytes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from ssl_selmix.comparison.grouping import Cell, Group, Row
from ssl_selmix.comparison.reading import PARTS
from ssl_selmix.comparison.readout import TITLES, median_of_last
from ssl_selmix.comparison.sheets import Sheet

COLUMNS = (
    *("table", "method", "stage", "steps", "seed", "images_sha256", "run", "part", "weights"),
    *("figure", "class", "value", "change"),
)
Made = Sequence[tuple[Group, Sequence[Sheet]]]  # a comparison: tables of every group


def heading(group: Group) -> str:
    """What all runs of a group have in common."""
    return f"Runs with {group.title}" if group.title else "All runs"


def fresh(notes: Sequence[str], seen: set[str]) -> list[str]:
    """The notes that have not been shown yet, which are then seen."""
    found = [note for note in dict.fromkeys(notes) if note not in seen]
    seen.update(found)
    return found


def terminal(made: Made, notes: Sequence[str], out: Console) -> None:
    """Print everything."""
    seen: set[str] = set()
    for group, sheets in made:
        if len(made) > 1:
            out.print(RichText(heading(group), style="bold"))
        for sheet in sheets:
            out.print(_rich(sheet))
            for note in fresh(sheet.notes, seen):
                out.print(RichText(f"  {note}"), soft_wrap=True)
            out.print()
        for note in (*group.protocol, *fresh(group.notes, seen)):
            out.print(RichText(note), soft_wrap=True)
        out.print()
    for note in fresh(notes, seen):
        out.print(RichText(f"note: {note}"), soft_wrap=True)


def _rich(sheet: Sheet) -> Table:
    title = RichText(sheet.title, style="bold")  # not markup, which a name may look like
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD)
    for i, name in enumerate(sheet.head):
        side: Literal["left", "right"] = "left" if i < sheet.words else "right"
        # In a narrow window cells break; cut ones would not tell two methods apart.
        table.add_column(name, justify=side, overflow="fold")
    for row in sheet.rows:
        table.add_row(*(RichText(c.text, style="bold" if c.bold else "") for c in row))
    return table


def markdown(made: Made, notes: Sequence[str]) -> str:
    """Everything as GitHub-flavoured Markdown."""
    lines = ["# Comparison", ""]
    seen: set[str] = set()
    for group, sheets in made:
        lines += [
            f"## {_md(heading(group))}",
            "",
            *_list((*group.protocol, *fresh(group.notes, seen))),
            "",
        ]
        for sheet in sheets:
            align = ["---" if i < sheet.words else "---:" for i in range(len(sheet.head))]
            lines += [f"### {_md(sheet.title)}", "", _md_row(sheet.head), _md_row(align)]
            lines += [
                _md_row([f"**{_md(c.text)}**" if c.bold else _md(c.text) for c in row])
                for row in sheet.rows
            ]
            lines += ["", *_list(fresh(sheet.notes, seen)), ""]
    return "\n".join([*lines, *_list(fresh(notes, seen))]).rstrip() + "\n"


def _list(notes: Sequence[str]) -> list[str]:
    return [f"- {_md(note)}" for note in notes]


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|<])", r"\\\1", text)


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


ESCAPES = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"±": r"$\pm$", "–": "--", "*": r"$^{*}$", "<": "$<$", ">": "$>$"},
}


def tex(text: str) -> str:
    r"""Text for LaTeX; a signed number gets a real minus.

    >>> tex("a_b + 50 %"), tex("-1.2 ± 0.3"), tex("[-1.0, +2.0]*")
    ('a\\_b + 50 \\%', '$-1.2 \\pm 0.3$', '$[-1.0, +2.0]^{*}$')
    """
    if re.fullmatch(r"\[?[+-]?\d[\d.]*( ± [\d.]+|, [+-][\d.]+\]\*?)?", text):
        return f"${text.replace('±', chr(92) + 'pm').replace('*', '^{*}')}$"
    return "".join(ESCAPES.get(c, c) for c in text)


def latex(made: Made, notes: Sequence[str]) -> str:
    r"""Every table as a `table` environment, for a preamble with booktabs and graphicx."""
    lines = [r"% needs \usepackage{booktabs,graphicx}", *(f"% {_comment(n)}" for n in notes)]
    for group, sheets in made:
        for sheet in sheets:
            lines += ["", *_latex_table(group, sheet)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _latex_table(group: Group, sheet: Sheet) -> Iterator[str]:
    rows = [
        [rf"\textbf{{\boldmath {tex(c.text)}}}" if c.bold else tex(c.text) for c in row]
        for row in sheet.rows
    ]
    yield from (r"\begin{table}", r"\centering")
    yield rf"\caption{{{tex(sheet.title)}. {' '.join(tex(n) + '.' for n in sheet.notes)}}}"
    yield rf"\label{{tab:{group.slug}-{sheet.slug}}}"
    yield from (f"% {_comment(note)}" for note in (*group.protocol, *group.notes))
    # No wider than the text and no higher than leaves room for the caption, else as it is.
    yield r"\resizebox*{!}{\ifdim\totalheight>0.8\textheight 0.8\textheight\else\totalheight\fi}{%"
    yield r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    align = "l" * sheet.words + "r" * (len(sheet.head) - sheet.words)
    yield rf"\begin{{tabular}}{{{align}}}"
    yield r"\toprule"
    yield " & ".join(tex(name) for name in sheet.head) + r" \\"
    yield r"\midrule"
    yield from (" & ".join(row) + r" \\" for row in rows)
    yield from (r"\bottomrule", r"\end{tabular}}}", r"\end{table}")


def table_of_values(groups: Sequence[Group]) -> str:
    """CSV with a row per observation: what every mean was taken over, and the change of it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for group in groups:
        for row in group.rows:
            for unit in sorted(row.cells):
                writer.writerows(_observations(group, row, row.cells[unit]))
    return text.getvalue()


def _observations(group: Group, row: Row, cell: Cell) -> Iterator[list[Any]]:
    steps = "" if cell.stage.steps is None else cell.stage.steps
    what = [group.title, row.name, cell.stage.algorithm, steps, cell.run.seed, cell.run.images]
    what.append(cell.run.name)
    before = cell.start if cell.position else None
    for part in PARTS:
        start = before.measured[part] if before else {}
        for figure in TITLES:
            yield from _values([*what, part, "kept", figure], cell.stage.measured[part], start)
        for figure in ("per_class_recall", "per_class_coverage"):
            yield from _per_class(cell, [*what, part, "kept", figure], part, start)
        if cell.stage.last is not None:
            for figure in TITLES:
                yield from _values([*what, part, "last", figure], cell.stage.last[part], {})
    for figure in TITLES:
        if (median := median_of_last(cell, figure)) is not None:
            yield [*what, "validation", f"median of {median[1]}", figure, "", median[0], ""]


def _values(what: list[Any], end: Any, start: Any) -> Iterator[list[Any]]:
    figure = what[-1]
    if end.get(figure) is not None:
        before = start.get(figure)
        change = "" if before is None else end[figure] - before
        yield [*what, "", end[figure], change]


def _per_class(cell: Cell, what: list[Any], part: str, start: Any) -> Iterator[list[Any]]:
    figure = what[-1]
    ends = cell.stage.measured[part][figure]
    starts = start.get(figure) or [None] * len(ends)
    for name, end, before in zip(cell.run.class_names, ends, starts, strict=True):
        if end is not None:
            yield [*what, name, end, "" if before is None else end - before]
