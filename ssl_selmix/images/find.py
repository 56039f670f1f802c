"""Image files below folders, the same for training and for `predict`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from functools import cache

LeftOut = dict[str, list[str]]  # why -> files and folders
NO_SUFFIX = "without a known image suffix"
HIDDEN = "with a hidden name"
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats that Pillow names and cannot decode

# Of file managers, archives and servers: thumbnails and notes, no images of the data set.
TOOLS = {
    *("@eadir", "__macosx", ".ipynb_checkpoints", "#recycle", "$recycle.bin", "lost+found"),
    *("system volume information", "thumbs.db", "desktop.ini", "__pycache__", ".ds_store"),
    *(".thumbnails", "thumbnails.db", "@tmp", "@sharebin", ".appledouble", ".spotlight-v100"),
    *(".trashes", ".fseventsd", "ehthumbs.db", ".directory"),
}
FROM_TOOLS = "of tools (thumbnails and the like)"


def is_tools(name: str) -> bool:
    """Whether a file or folder of this name is a tool's own."""
    return name.lower() in TOOLS


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
        if why := _no_name(entry.name):
            left_out.setdefault(why, []).append(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield from below(entry.path, left_out)
        elif why := _no_image(entry):
            left_out.setdefault(why, []).append(entry.path)
        else:
            yield entry.path


def matching(patterns: Sequence[str], left_out: LeftOut) -> list[str]:
    """The images that the patterns match, and those below folders that they match; absolute paths.

    In the order in which one folder of them all would list them, each once. `**` is any number of
    folders; a hidden name must be written out. LIST.txt, or @LIST, has a path in each line.

    Raises:
        ValueError: a pattern that is empty, a URL, or matches no image; a line without an image.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if is_list(pattern):
            found |= dict.fromkeys(_lines(pattern.removeprefix("@")))
            continue
        if not pattern.strip() or "://" in pattern:
            what = f"{pattern!r} is a URL, and nothing is fetched" if pattern.strip() else "empty"
            raise ValueError(f"a pattern of images is {what}; name files or folders here")
        matched = glob.glob(os.path.expanduser(pattern), recursive=True)
        if "**" in pattern:  # which matches folders and all that is in them
            matched = [path for path in matched if not os.path.isdir(path)]
        before, exact = len(left_out.get(NO_SUFFIX, ())), not glob.has_magic(pattern)
        images = [image for path in matched for image in _images_at(path, left_out, exact)]
        if not images:
            other = left_out.get(NO_SUFFIX, [])[before:]
            holds = f" but {shown(other[0])}" if other else ""
            raise ValueError(
                f"{pattern} matches no image{holds}; write it as in 'shots/**/*.jpg', in quotes"
            )
        found |= dict.fromkeys(map(os.path.abspath, images))
    return sorted(found, key=lambda path: path.split(os.sep))


def is_list(pattern: str) -> bool:
    """Whether it names a file that has a path in each line."""
    named = pattern.lower().endswith(".txt") and not glob.has_magic(pattern)
    return pattern.startswith("@") or (named and "://" not in pattern)


def _lines(name: str) -> Iterator[str]:
    """The files that the lines of a list name, absolute; relative ones begin at its folder.

    Raises:
        ValueError: there is no such list, it names nothing, or a line is no file here.
    """
    file = os.path.abspath(os.path.expanduser(name))
    try:
        with open(file, encoding="utf-8-sig") as text:
            lines = [(i, line.strip()) for i, line in enumerate(text, 1) if line.strip()]
    except OSError as error:
        raise ValueError(f"the list {name} cannot be read ({error.strerror}); check it") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is no UTF-8 text (byte {error.start}), and a list has a path in each line; "
            "save it as UTF-8"
        ) from error
    if not lines:
        raise ValueError(f"the list {name} is empty; write a path into each line")
    for number, line in lines:
        if "://" in line[:12]:
            raise ValueError(
                f"{name}, line {number}: {line[:80]!r} is a URL, and nothing is fetched; download "
                "the images and name their files"
            )
        path = os.path.abspath(os.path.join(os.path.dirname(file), os.path.expanduser(line)))
        if "\0" in line or not os.path.isfile(path):
            raise ValueError(
                f"{name}, line {number}: no file {shown(line[:200])}; relative paths begin at the "
                "folder of the list"
            )
        yield path


def _images_at(path: str, left_out: LeftOut, exact: bool) -> Iterator[str]:
    """The images of what a pattern matched; a file that was named is taken whatever its suffix."""
    name = os.path.basename(path)
    if os.path.isdir(path):
        yield from below(path, left_out)
    elif exact or not (is_tools(name) or os.path.splitext(name)[1].lower() not in suffixes()):
        yield path
    else:
        left_out.setdefault(FROM_TOOLS if is_tools(name) else NO_SUFFIX, []).append(path)


def beside(folder: str | os.PathLike[str], left_out: LeftOut) -> None:
    """Add what lies beside the class folders of a folder and is none of them."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        named = _no_name(entry.name)
        if why := named if entry.is_dir() or named == FROM_TOOLS else "beside the class folders":
            left_out.setdefault(why, []).append(entry.path)


def told(left_out: LeftOut) -> Iterator[str]:
    """A line for each reason: how many files or folders, and the first; all names of tools."""
    for why, entries in left_out.items():
        what, names = ("file" if len(entries) == 1 else "files"), ""
        if why == FROM_TOOLS:
            what = "file or folder" if len(entries) == 1 else "files or folders"
            seen = dict.fromkeys(shown(os.path.basename(entry)) for entry in entries)
            names = f": {', '.join(seen)}"
        yield f"left out {len(entries)} {what} {why}{names} (first: {shown(entries[0])})"


def _no_name(name: str) -> str:
    """Why nothing of this name is an image of the data set, or nothing."""
    return FROM_TOOLS if is_tools(name) else HIDDEN if name.startswith(".") else ""


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
