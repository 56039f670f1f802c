"""The runs of a study in one compressed file: a line of JSON for each, with its folder and files.

`runs.jsonl.gz` in a folder stands for the runs that would lie below that folder.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssl_selmix.common.atomic import beside, write_atomically
from ssl_selmix.common.text import dump
from ssl_selmix.runs import released
from ssl_selmix.runs.folder import CONFIG, MANIFEST, RESULTS, RunError, RunFolder, seal_of

SUFFIX = ".jsonl.gz"
LOG = "metrics.jsonl"


class ArchivedRun(RunFolder):
    """A run whose files are in an archive."""

    def __init__(self, path: Path, files: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._files = files

    def has(self, name: str) -> bool:
        """Whether the run has this file."""
        return name in self._files

    def text(self, name: str) -> str | None:
        """Content of a log; other files are kept as values."""
        found = self._files.get(name)
        return found if isinstance(found, str) else None

    def bytes(self, name: str) -> bytes:
        """Content of a log."""
        return (self.text(name) or "").encode()

    def content(self, name: str) -> Any:
        """What a file holds."""
        return self._files[name] if self.has(name) else super().content(name)


def read(archive: Path) -> Iterator[ArchivedRun]:
    """The runs of an archive, in its order.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with gzip.open(archive, "rt", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                for name in (entry["folder"], *entry["files"]):
                    if Path(name).is_absolute() or ".." in Path(name).parts:
                        raise ValueError(f"{name} leads out of its folder")
                yield ArchivedRun(archive.parent / entry["folder"], dict(entry["files"]))
    except (EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{archive} is damaged ({error}); restore it") from error


def runs_below(folder: Path) -> list[RunFolder]:
    """The runs below a folder, in folders of their own or in archives, by their paths."""
    found: list[RunFolder] = [RunFolder(file.parent) for file in folder.rglob(RESULTS)]
    found += [run for file in folder.rglob(f"*{SUFFIX}") for run in read(file)]
    found += [run for _, run in below(folder)] if not folder.exists() else []
    return sorted(found, key=lambda run: run.path)


def below(folder: Path) -> list[tuple[Path, ArchivedRun]]:
    """The runs of a folder that does not exist, from the archive of a folder above it."""
    for above in folder.parents:
        if above.is_dir():
            found = ((a, run) for a in sorted(above.glob(f"*{SUFFIX}")) for run in read(a))
            return [(a, run) for a, run in found if folder in (run.path, *run.path.parents)]
    return []


def write(archive: Path, runs: Iterable[RunFolder], root: Path) -> None:
    """Keep what comparisons read of runs: results, settings, and manifest and logs where they are.

    Results of version 0.1 are kept as this version writes them. The same runs give the same bytes.

    Args:
        archive: the file.
        runs: the runs.
        root: the folder below which they lie.
    """
    runs = sorted(runs, key=lambda run: run.path)
    released.upgrade([released.Placed(run.path, run.results) for run in runs])
    lines = []
    for run in runs:
        files: dict[str, Any] = {RESULTS: _sealed(run.results.plain())}
        files |= {name: run.content(name) for name in (CONFIG, MANIFEST) if run.has(name)}
        for index in range(len(run.stages)):
            name = f"{run.place(index).name}/{LOG}"
            if (text := run.text(name)) is not None:
                files[name] = text
        folder = run.path.relative_to(root).as_posix()
        lines.append(json.dumps({"folder": folder, "files": files}, ensure_ascii=False) + "\n")
    write_atomically(archive, gzip.compress("".join(lines).encode(), mtime=0))


def _sealed(results: dict[str, Any]) -> dict[str, Any]:
    """Results with their digest anew, if they had one: what started from whom may be added."""
    return results | {"sha256": seal_of(results)} if "sha256" in results else results


def pack(folder: Path, archive: Path) -> list[Path]:
    """Write the finished runs below a folder to an archive; returns their folders."""
    runs = [run for run in runs_below(folder) if run.stages]
    write(archive, runs, folder)
    return [run.path for run in runs]


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Write the runs of an archive below a folder, as training wrote them; returns their folders.

    Raises:
        ValueError: a run's folder exists.
    """
    made = []
    for run in read(archive):
        place = folder / run.path.relative_to(archive.parent)
        if place.exists():
            raise ValueError(f"{place} exists and is not overwritten; unpack into another folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        with beside(place) as whole:
            for name, content in run._files.items():
                (whole / place.name / name).parent.mkdir(parents=True, exist_ok=True)
                if name == CONFIG:
                    text = dump(content)
                else:
                    told = isinstance(content, str)
                    text = content if told else json.dumps(content, indent=1) + "\n"
                (whole / place.name / name).write_text(text, encoding="utf-8")
            (whole / place.name).replace(place)
        made.append(place)
    return made
