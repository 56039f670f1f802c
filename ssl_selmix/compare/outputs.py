"""What `ssl-selmix compare` does: reads, compares, prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import Terminal
from ssl_selmix.common.names import unknown
from ssl_selmix.compare import methods, plain, reading, write
from ssl_selmix.compare.against import of_group
from ssl_selmix.compare.tables import Choice
from ssl_selmix.runs.folder import CONFIG, MANIFEST, RESULTS, RunFolder

STDOUT = Path("-")


def check_outputs(files: Sequence[Path], figures: Path | None, force: bool) -> None:
    """Refuse places that are taken or cannot be written, before any work.

    Raises:
        ValueError: names the place and what is wrong with it.
    """
    if files.count(STDOUT) > 1 or figures == STDOUT:
        raise ValueError("the standard output (-) takes one of --markdown, --latex, --csv, --html")
    named = [path for path in files if path != STDOUT]
    places = [path.resolve() for path in (*named, *([figures] if figures else []))]
    for path in places:
        _check_place(path)
    for path in named:
        if path.is_dir() or not path.name:
            raise ValueError(f"{path} is a folder; name a file in it")
        if (path.exists() or path.is_symlink()) and not force:
            raise ValueError(f"{path} exists and is not overwritten; add --force")
    if figures is not None:
        if figures.exists() and not figures.is_dir():
            raise ValueError(f"{figures} is a file; --figures takes a folder")
        if figures.is_dir() and any(figures.iterdir()) and not force:
            raise ValueError(f"{figures} is a folder with files; add --force, or name another")
    if len(set(places)) < len(places):
        raise ValueError("two outputs have the same path; name different ones")


def _check_place(path: Path) -> None:
    for folder in (path, *path.parents):
        if folder.is_file() and folder != path:
            raise ValueError(f"{path} cannot be written, for {folder} is a file")
        run = RunFolder(folder)
        if run.has(RESULTS) or (run.has(CONFIG) and run.has(MANIFEST)):
            raise ValueError(f"{path} is in the folder of a run, {folder}; write elsewhere")


def check_inputs(files: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over results, whatever their name.

    Raises:
        ValueError: names the file.
    """
    taken = {path.resolve() for path in inputs}
    for path in files:
        if path != STDOUT and path.resolve() in taken:
            raise ValueError(f"{path} is one of the results to compare; write to another file")


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
    examples: int = 1  # rows whose worst confusions the report shows
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
    check_outputs(request.files, request.figures, request.force)
    runs, left_out = reading.read(request.runs)
    check_inputs(request.files, [run.file for run in runs])
    groups, notes = methods.group(runs, request.allow, request.by)
    notes = list(dict.fromkeys([*notes, *_half(runs), *left_out, *_damaged(runs)]))
    notes += _without_reference(request.choice.against, groups)
    made = [(group, of_group(group, request.choice)) for group in groups]
    if request.markdown:
        _write(request.markdown, write.markdown(made, notes))
    if request.latex:
        _write(request.latex, write.latex(made, notes))
    if request.csv:
        _write(request.csv, write.table_of_values(groups))
    if request.html or request.figures:
        notes += _pictures(request, made, notes)
    if STDOUT not in request.files:
        write.terminal(made, notes, _console())


def _pictures(request: Request, made: write.Made, notes: Sequence[str]) -> list[str]:
    """Figures and report; notes on figures for which the runs hold no data."""
    from ssl_selmix.compare import classes, figures, style, write

    part = request.choice.part
    drawn = [(group, tables, figures.of_group(group, part)) for group, tables in made]
    told = [note for _, _, found in drawn for note in found.notes]
    if request.figures:
        for _, _, found in drawn:
            style.save(found, request.figures)
    if request.html:
        shown = [
            write.Part(
                group,
                list(tables),
                found.made,
                classes.sheet(group, part),
                classes.confusions(group, part, request.examples),
            )
            for group, tables, found in drawn
        ]
        _write(request.html, write.report(shown, [*notes, *told]))
    return list(dict.fromkeys(told))


def _without_reference(name: str | None, groups: Sequence[methods.Group]) -> list[str]:
    """Which tables lack the row that differences are against; refuses one that no table has."""
    if name is None:
        return []
    lacking = [group.title for group in groups if plain.called(group, name) is None]
    known = dict.fromkeys(row.name for group in groups for row in group.rows)
    if len(lacking) == len(groups):
        raise ValueError(f"{unknown('row', name, known)} (--against)")
    return [f"no differences with {title}, which has no row {name}" for title in lacking]


def _half(runs: Sequence[reading.Run]) -> list[str]:
    """Which runs have stages that they have not finished."""
    return [
        f"{run.name} is unfinished: {len(run.stages)} stage(s) of {len(run.protocol['steps'])}, "
        f"{' + '.join(run.chain)}; --resume continues it"
        for run in runs
        if run.unfinished
    ]


def _damaged(runs: Sequence[reading.Run]) -> list[str]:
    """Which logs say what cannot be so."""
    return [note for run in runs for stage in run.stages if stage.log for note in stage.log.note]


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.resolve(), text.encode("utf-8", "backslashreplace"))  # a link stays one


def _console() -> Console:
    found = Terminal()
    # Elsewhere than on a terminal nobody can widen the window: tables take the room they need.
    return found if found.is_terminal else Terminal(width=200, color_system=None)
