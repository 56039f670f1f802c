"""A comparison as terminal tables, Markdown, LaTeX and CSV; the same input gives the same bytes."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from ssl_selmix.compare.methods import Cell, Group, Row
from ssl_selmix.compare.style import Picture, Pictures, slug, svg
from ssl_selmix.compare.tables import TITLES, Sheet, Text, median_of_last
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


Drawn = Sequence[tuple[Group, Sequence[Sheet], Pictures]]
PIXELS = 132  # per inch of a figure, where there is room for them
CSS = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --rule: #c9c9d1; --band: #f3f3f6;
  --soft: #5a5a64; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --paper: #17171b; --rule: #44444e;
  --band: #212127; --soft: #a5a5b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; border-top: 2px solid var(--rule);
  padding-top: 1rem; margin-top: 2rem; } h3 { font-size: 1rem; margin-bottom: .4rem; }
.box { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }
.box:focus { outline: 2px solid currentColor; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  width: 100%; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; white-space: nowrap; text-align: right; }
th.word, td.word { text-align: left; }
thead th { border-bottom: 2px solid var(--rule); }
tbody tr:nth-child(even) td { background: var(--band); }
th:first-child, td:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper);
  white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: 40vw;
  border-right: 1px solid var(--rule); }
figure { margin: 1.5rem 0; }
figure .box { background: #fff; text-align: center; }
figure img { max-width: 100%; height: auto; vertical-align: middle; }
figcaption, .notes { color: var(--soft); font-size: .875rem; }
.notes { padding-left: 1.1rem; }
@media print { .box { overflow: visible; } }
"""


def report(drawn: Drawn, notes: Sequence[str]) -> str:
    """The whole page; the same input gives the same bytes."""
    seen: set[str] = set()
    parts = [*_contents(drawn), *_notes(fresh(notes, seen))]
    for group, tables, pictures in drawn:
        parts.append(f'<h2 id="{group.slug}">{escape(heading(group))}</h2>')
        parts += _notes([*group.protocol, *fresh(group.notes, seen)])
        first = [picture for picture in pictures.made if picture.slug == slug("plane", group)]
        parts += [line for picture in first for line in _figure(picture)]
        for sheet in tables:
            parts.append(f'<h3 id="{_anchor(group, sheet)}">{escape(sheet.title)}</h3>')
            parts += [*_table(sheet), *_notes(fresh(sheet.notes, seen))]
        rest = [picture for picture in pictures.made if picture not in first]
        parts += [line for picture in rest for line in _figure(picture)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Comparison of runs</title><style>{CSS}</style></head><body>",
            "<h1>Comparison of runs</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def _anchor(group: Group, sheet: Sheet) -> str:
    return f"{sheet.slug}-{group.slug}"


def _contents(drawn: Drawn) -> Iterator[str]:
    """How much there is, and links to it."""
    runs = [run for group, _, _ in drawn for run in group.runs]
    methods = {row.name for group, _, _ in drawn for row in group.rows}
    yield f"<p>{len(runs)} runs, {len(methods)} methods.</p>"
    yield "<nav><ul>"
    for group, tables, pictures in drawn:
        links = [(_anchor(group, sheet), sheet.slug) for sheet in tables]
        links += [
            (picture.slug, picture.slug.removesuffix(f"-{group.slug}")) for picture in pictures.made
        ]
        told = ", ".join(f'<a href="#{where}">{escape(name)}</a>' for where, name in links)
        yield f'<li><a href="#{group.slug}">{escape(heading(group))}</a>: {told}</li>'
    yield "</ul></nav>"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def _table(sheet: Sheet) -> Iterator[str]:
    # The box can be scrolled from the keyboard, too.
    yield f'<div class="box" tabindex="0" role="region" aria-label="{escape(sheet.title)}"><table>'
    head = "".join(
        f'<th scope="col"{_class(i, sheet)}>{escape(name)}</th>'
        for i, name in enumerate(sheet.head)
    )
    yield f"<thead><tr>{head}</tr></thead><tbody>"
    for row in sheet.rows:
        cells = "".join(f"<td{_class(i, sheet)}>{_cell(c)}</td>" for i, c in enumerate(row))
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def _class(column: int, sheet: Sheet) -> str:
    return ' class="word"' if column < sheet.words else ""


def _cell(cell: Text) -> str:
    text = escape(cell.text)
    return f"<strong>{text}</strong>" if cell.bold else text


def _figure(picture: Picture) -> Iterator[str]:
    data = base64.b64encode(svg(picture)).decode()
    alt = escape(picture.caption.partition(". ")[0])
    yield f'<figure id="{picture.slug}"><div class="box" tabindex="0">'
    width = round(PIXELS * picture.figure.get_figwidth())
    yield f'<img width="{width}" src="data:image/svg+xml;base64,{data}" alt="{alt}"></div>'
    yield f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
