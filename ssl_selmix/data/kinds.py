"""Which data set reads a path: recognised by the name of a file, or by what lies in a folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import takewhile

from ssl_selmix.data.arrays import READERS
from ssl_selmix.data.arrow import SPLITS
from ssl_selmix.data.table import SUFFIXES
from ssl_selmix.images.find import is_tools

TABLES = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")  # which is a list of paths
ARRAYS = tuple(READERS)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")  # refused if compressed
SAVED = ("dataset_dict.json", "state.json")  # in a folder that `save_to_disk` wrote


def of_file(path: str) -> str:
    """The data set table, arrays, hf or webdataset; "" if the name is of none of their files."""
    suffix = os.path.splitext(path)[1].lower()
    if path.lower().endswith(TARS):
        return "webdataset"
    if suffix == ".parquet":
        return "hf" if _has_images(path) else "table"
    if suffix == ".arrow":
        return "hf"
    return "table" if suffix in TABLES else "arrays" if suffix in ARRAYS else ""


def of_folder(path: str) -> str:
    """The data set hf or webdataset; "" if the folder has something else."""
    if any(os.path.isfile(os.path.join(path, name)) for name in SAVED):
        return "hf"
    try:
        entries = [name for name in os.listdir(path) if not is_tools(name) and name[0] != "."]
    except OSError:  # reading it will say why
        return ""
    tars = [name for name in entries if name.lower().endswith(TARS)]
    return "webdataset" if tars and len(tars) == len(entries) else ""


def _has_images(path: str) -> bool:
    """Whether a parquet file has the bytes of images in it, in the place of paths."""
    try:
        from pyarrow import ArrowInvalid, parquet, types
    except ImportError:  # the reader of tables says what is needed
        return False
    try:
        kinds = [field.type for field in parquet.read_schema(path)]
    except (OSError, ArrowInvalid):  # the reader of tables says what is wrong
        return False
    tests = (types.is_struct, types.is_binary, types.is_large_binary)
    return any(test(kind) for kind in kinds for test in tests)


def shards_in(folder: str) -> dict[str, list[str]]:
    """The tar files of a folder by part, as patterns where one matches exactly those of a part.

    A part is a word of the file's name, such as test in test-000.tar; without one it is train.
    """
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".tar"))
    parts: dict[str, list[str]] = {}
    for name in names:
        words = re.split(r"[^a-z]+", name.lower().removesuffix(".tar"))
        part = next((SPLITS[word] for word in words if word and word in SPLITS), "train")
        parts.setdefault(part, []).append(name)
    return {part: _pattern(folder, own, names) for part, own in parts.items()}


def _pattern(folder: str, own: Sequence[str], names: Sequence[str]) -> list[str]:
    place = glob.escape(folder)
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(own[0], own[-1], strict=False))
    start = "".join(letter for letter, _ in alike).rstrip("0123456789")
    if len(own) > 1 and [name for name in names if name.startswith(start)] == [*own]:
        return [os.path.join(place, f"{glob.escape(start)}*.tar")]
    return [os.path.join(place, glob.escape(name)) for name in own]
