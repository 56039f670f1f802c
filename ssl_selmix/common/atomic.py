"""Files that are whole or absent, even if two processes write them or the disk is full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ssl_selmix.common.locks import in_turn


@contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of the one at `path` if nothing is raised.

    A crash leaves the old file or the new one, never a part. Other processes that write it wait.

    Args:
        path: of the file; if it is a link, that is replaced.
        sync: wait until it is on the disk, as what cannot be made again must be.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    with in_turn(path.with_name(f".{path.name}.lock")):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            partial.replace(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                error.filename = error.filename or str(path)  # a full disk names no file
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched.
    """
    with replaced(path) as file:
        file.write(content)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder next to a file, in which it and what belongs to it are made; gone at the end.

    It has one name, so that what a killed process left goes with the next.

    Raises:
        OSError: it cannot be made.
    """
    folder = path.with_name(f".{path.name}.making")
    with in_turn(path.with_name(f".{path.name}.lock"), f"writes {path}; waiting for it"):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            yield folder
        except OSError as error:
            if str(error.filename or folder).startswith(str(folder)):
                error.filename = str(path)  # which is what the user knows
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
