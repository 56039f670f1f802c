"""Image files in a fixed order, and digests of their bytes, which are remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssl_selmix.common.console import warn
from ssl_selmix.common.processes import default_workers
from ssl_selmix.images.damage import damage_of
from ssl_selmix.images.decode import BROKEN_FILE, check_damage, contents
from ssl_selmix.images.pieces import Piece, file_of


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder, in a fixed order."""

    root: Path
    names: tuple[str, ...]  # relative to the root, with forward slashes
    pieces: tuple[Piece, ...] = ()  # if the images are no files but lie in some

    @classmethod
    def below(cls, root: Path, files: Sequence[str]) -> FileImages:
        """These files, whose paths begin with the root; or these pieces of files."""
        if pieces := tuple(file for file in files if isinstance(file, Piece)):
            return cls(root, tuple(piece.name for piece in pieces), pieces)
        return cls(root, tuple(Path(file).relative_to(root).as_posix() for file in files))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Where the images are."""
        return [*self.pieces] or [f"{self.root}/{name}" for name in self.names]


def hashes(images: FileImages, memory: Path | None, strict: bool = True) -> list[str]:
    """SHA-256 of the bytes of every file, in order; files that were not seen before are checked.

    Reading all of ImageNet-100 at every start would take minutes. So what was found is kept in the
    folder `memory`, and taken again while size, modification and change time of a file are what
    they were. A JPEG that is damaged in its middle is told of, or refused with `strict`.

    Raises:
        ValueError: a file is missing or damaged.
    """
    place = hashlib.sha256(str(images.root.resolve()).encode()).hexdigest()[:16]
    checks = "checked" if strict else "seen"  # what was only seen may be damaged
    record = memory / f"files-{checks}-{place}.json" if memory is not None else None
    known = _read_hashes(record)
    paths = images.paths
    stamps = [_stamp(path) for path in paths]
    new = [
        i
        for i, (name, stamp) in enumerate(zip(images.names, stamps, strict=True))
        if known.get(name, [None])[:-1] != stamp
    ]
    try:
        with ThreadPoolExecutor(default_workers()) as threads:
            found = threads.map(partial(_digest, strict=strict), [paths[i] for i in new])
            for i, digest in zip(new, found, strict=True):
                known[images.names[i]] = [*stamps[i], digest]
    finally:  # a damaged file, or Ctrl-C, must not cost what was read before
        if new and record is not None:
            _remember(record, known)
    return [str(known[name][-1]) for name in images.names]


def _remember(record: Path, known: dict[str, list[Any]]) -> None:
    # Of several runs that start together, each writes a file of its own before it is renamed.
    partial = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text(json.dumps(known))
        partial.replace(record)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        warn(f"digests of files are not remembered ({error}); every start reads all of them")


def _read_hashes(path: Path | None) -> dict[str, list[Any]]:
    try:
        known = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(
        isinstance(entry, list) and len(entry) == 4 for entry in known.values()
    )
    return known if sound else {}


def _stamp(path: str) -> list[int | str]:
    try:
        found = os.stat(file_of(path))
    except OSError as error:
        if error.errno not in BROKEN_FILE:
            raise  # of the machine
        raise ValueError(
            f"{path} is no readable image ({error.strerror}); remove or replace it"
        ) from error
    place = f"{path.file} {path.offset} {path.size}" if isinstance(path, Piece) else found.st_size
    return [place, found.st_mtime_ns, found.st_ctime_ns]


def _digest(path: str, strict: bool) -> str:
    from ssl_selmix.images.photo import Photo

    content = contents(path)
    Photo(content, path, strict)
    if damage := damage_of(content):
        check_damage(damage, path, strict)
        warn(f"{path} is damaged ({damage}) and taken as it is")
    return hashlib.sha256(content).hexdigest()
