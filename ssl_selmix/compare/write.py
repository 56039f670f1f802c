"""A comparison as terminal tables, Markdown, LaTeX, CSV and HTML; same input, same bytes."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from ssl_selmix.common import page
from ssl_selmix.compare.classes import Confusions
from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.style import Picture, svg
from ssl_selmix.compare.tables import TITLES, Sheet, median_of_last
from ssl_selmix.runs.results import PARTS

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
            lines += [f"### {_md(sheet.title)}", "", *table_lines(sheet)]
            lines += ["", *_list(fresh(sheet.notes, seen)), ""]
    return "\n".join([*lines, *_list(fresh(notes, seen))]).rstrip() + "\n"


def table_lines(sheet: Sheet) -> list[str]:
    """A table alone, as GitHub-flavoured Markdown."""
    align = ["---" if i < sheet.words else "---:" for i in range(len(sheet.head))]
    rows = [
        _md_row([f"**{_md(c.text)}**" if c.bold else _md(c.text) for c in row])
        for row in sheet.rows
    ]
    return [_md_row(sheet.head), _md_row(align), *rows]


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


class _Raw(str):
    """LaTeX as it stands."""


def _comment(text: str) -> _Raw:
    return _Raw(" ".join(text.split()))


@cache
def _templates() -> dict[str, Any]:
    """Environments of the templates, each with the escaping of what it makes."""
    import jinja2

    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    options |= {"keep_trailing_newline": True, "undefined": jinja2.StrictUndefined}
    options |= {"loader": jinja2.PackageLoader("ssl_selmix.compare")}
    for_tex = jinja2.Environment(
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        comment_start_string="((#",
        comment_end_string="#))",
        finalize=lambda value: value if isinstance(value, _Raw) else tex(str(value)),
        autoescape=False,  # which is for HTML; `finalize` escapes
        **options,
    )
    for_tex.filters |= {"raw": _Raw, "comment": _comment}
    html = page.environment("ssl_selmix.compare", keep_trailing_newline=True)
    return {"tex": for_tex, "html": html}


def latex(made: Made, notes: Sequence[str]) -> str:
    r"""Every table as a `table` environment, for a preamble with booktabs and graphicx."""
    template = _templates()["tex"].get_template("tables.tex.jinja")
    return str(template.render(made=made, notes=notes))


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


@dataclass(frozen=True)
class Part:
    """What a report shows of a group."""

    group: Group
    sheets: Sequence[Sheet]
    pictures: Sequence[Picture]
    classes: Sheet
    confusions: Confusions


PIXELS = 132  # per inch of a figure, where there is room for them


def report(parts: Sequence[Part], notes: Sequence[str]) -> str:
    """Tables and figures as one page of HTML; the same input gives the same bytes."""
    seen: set[str] = set()
    template = _templates()["html"].get_template("report.html.jinja")
    made = template.render(
        parts=parts,
        notes=notes,
        runs=sum(len(part.group.runs) for part in parts),
        methods=len({row.name for part in parts for row in part.group.rows}),
        heading=heading,
        fresh=lambda told: fresh(told, seen),
        width=lambda picture: round(PIXELS * picture.figure.get_figwidth()),
        drawn=lambda picture: base64.b64encode(svg(picture)).decode(),
    )
    return str(made)
