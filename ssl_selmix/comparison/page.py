"""The HTML report: one file, no network, readable on a phone, bright or dark."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

from ssl_selmix.comparison.figures import Picture, Pictures, slug, svg
from ssl_selmix.comparison.grouping import Group
from ssl_selmix.comparison.sheets import Sheet, Text
from ssl_selmix.comparison.writers import fresh, heading

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
