"""What `ssl-selmix compare` does with its arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ssl_selmix.comparison import grouping, logged, outputs, reading, sheets, writers
from ssl_selmix.comparison.outputs import STDOUT
from ssl_selmix.comparison.readout import Choice
from ssl_selmix.plugins import unknown


@dataclass(frozen=True)
class Request:
    """What the user asked for; a file that is `-` is the standard output."""

    runs: Sequence[Path]
    allow: Sequence[str] = ()
    by: Sequence[str] = ()
    choice: Choice = field(default_factory=Choice)
    markdown: Path | None = None
    latex: Path | None = None
    csv: Path | None = None
    html: Path | None = None
    figures: Path | None = None
    force: bool = False

    @property
    def files(self) -> list[Path]:
        """The files to write, in the order of their names above."""
        return [p for p in (self.markdown, self.latex, self.csv, self.html) if p is not None]


def run(request: Request) -> None:
    """Read, compare, print and write.

    Raises:
        ValueError: the runs do not compare, or a mistake in the request.
        OSError: a file could not be written.
    """
    outputs.check(request.files, request.figures, request.force)
    runs, left_out = reading.read(request.runs)
    outputs.check_inputs(request.files, [run.path for run in runs])
    groups, notes = grouping.group(runs, request.allow, request.by)
    notes = list(dict.fromkeys([*notes, *_half(runs), *left_out, *logged.notes(runs)]))
    notes += _without_reference(request.choice.against, groups)
    made = [(group, sheets.of_group(group, request.choice)) for group in groups]
    if request.markdown:
        _write(request.markdown, writers.markdown(made, notes))
    if request.latex:
        _write(request.latex, writers.latex(made, notes))
    if request.csv:
        _write(request.csv, writers.table_of_values(groups))
    if request.html or request.figures:
        notes += _pictures(request, made, notes)
    if STDOUT not in request.files:
        writers.terminal(made, notes, _console())


def _pictures(request: Request, made: writers.Made, notes: Sequence[str]) -> list[str]:
    """Figures and report; notes on figures for which the runs hold no data."""
    from ssl_selmix.comparison import figures, page

    drawn = [
        (group, tables, figures.of_group(group, request.choice.part)) for group, tables in made
    ]
    told = [note for _, _, found in drawn for note in found.notes]
    if request.figures:
        for _, _, found in drawn:
            figures.save(found, request.figures)
    if request.html:
        _write(request.html, page.report(drawn, [*notes, *told]))
    return list(dict.fromkeys(told))


def _without_reference(name: str | None, groups: Sequence[grouping.Group]) -> list[str]:
    """Which tables lack the row that differences are against; refuses one that no table has."""
    if name is None:
        return []
    rows = {group.title: [row.name for row in group.rows] for group in groups}
    known = dict.fromkeys(row for found in rows.values() for row in found)
    if name not in known:
        raise ValueError(f"{unknown('row', name, known)} (--against)")
    return [
        f"no differences with {title}, which has no row {name}"
        for title, found in rows.items()
        if name not in found
    ]


def _half(runs: Sequence[reading.Run]) -> list[str]:
    """Which runs have stages that they have not finished."""
    return [
        f"{run.name} is unfinished: {len(run.stages)} stage(s) of {len(run.protocol['steps'])}, "
        f"{' + '.join(run.chain)}; --resume continues it"
        for run in runs
        if run.unfinished
    ]


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def _console() -> Console:
    found = Console()
    # Elsewhere than on a terminal nobody can widen the window: tables take the room they need.
    return found if found.is_terminal else Console(width=200, color_system=None)
