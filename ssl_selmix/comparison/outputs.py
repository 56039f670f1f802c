"""Where a comparison may be written: over nothing that exists, and never into a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_selmix.comparison.reading import FILE

STDOUT = Path("-")
RUN_FILES = ("config.yaml", "manifest.json")  # of a run that has finished nothing yet


def check(files: Sequence[Path], figures: Path | None, force: bool) -> None:
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
        if (folder / FILE).is_file() or all((folder / name).is_file() for name in RUN_FILES):
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
