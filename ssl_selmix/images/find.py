"""Image files below folders, the same for training and for `predict`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache

LeftOut = dict[str, list[str]]  # why -> files and folders
NO_SUFFIX = "without a known image suffix"
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow names and cannot decode


@cache
def suffixes() -> frozenset[str]:
    """Those of all formats that Pillow reads, with a dot, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(s for s, kind in known.items() if kind in Image.OPEN and kind not in STUBS)


def find(sources: Sequence[str | os.PathLike[str]]) -> tuple[list[str], LeftOut]:
    """The files that were named and the images below the folders, sorted by name in each folder.

    A file that was named is taken whatever its suffix. Also returned is what was left out.

    Raises:
        ValueError: there is no such file or folder, or there are no images.
    """
    found: list[str] = []
    left_out: LeftOut = {}
    for source in [os.fspath(given) for given in sources]:
        if not source:
            raise ValueError("an empty path names no image; check the words of the command")
        if os.path.isdir(source):
            found += below(source, left_out)
        elif os.path.lexists(source):
            found.append(source)
        else:
            raise ValueError(f"no file or folder {shown(source)}; check the path")
    if not found:
        other = next(iter(left_out.values()), [])
        holds = f" (but {shown(other[0])})" if other else ""
        where = ", ".join(shown(os.fspath(source)) for source in sources)
        raise ValueError(f"no image in {where or 'an empty list'}{holds}; give image files")
    return found, left_out


def below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """The images below a folder, sorted by name in each folder; a folder that is locked itself."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        yield folder  # reading it will say why
        return
    for entry in entries:
        hidden = entry.name.startswith(".")
        if not hidden and entry.is_dir(follow_symlinks=False):
            yield from below(entry.path, left_out)
        elif why := "with a hidden name" if hidden else _no_image(entry):
            left_out.setdefault(why, []).append(entry.path)
        else:
            yield entry.path


def _no_image(entry: os.DirEntry[str]) -> str:
    """Why a file in a folder cannot be an image, or nothing."""
    if entry.is_dir():
        return "that link to a folder"  # it may hold this one
    if os.path.splitext(entry.name)[1].lower() not in suffixes():
        return NO_SUFFIX
    # Reading a link to nothing will say so; reading a pipe would wait for ever.
    return "" if entry.is_file() or entry.is_symlink() else "that are no regular files"


def shown(name: str) -> str:
    """A file's name in a line of text, whatever its characters."""
    return name if name.isprintable() else repr(name)
