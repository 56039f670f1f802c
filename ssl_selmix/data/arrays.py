"""Features that somebody else computed: arrays by name, out of npz, npy with CSV, or safetensors.

No file is unpickled, so that none can execute anything.

Shapes: N images, D features, V views of an image.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.common.plugins import text_of

Array = npt.NDArray[Any]

PARTS = {
    "train": ("train", "training"),
    "test": ("test",),
    "validation": ("validation", "val", "valid"),
    "unlabeled": ("unlabeled", "unlabelled", "extra"),
}
FEATURES = ("features", "x", "feats", "embeddings")
LABELS = ("labels", "y", "label", "targets")
GROUPS = ("groups", "group")
NAMES = ("class_names", "classes", "names")
EXPECTED = (
    "expected are train and train_labels, perhaps train_groups, test and test_labels, validation "
    "and validation_labels, unlabeled, class_names"
)
LABEL_COLUMNS, PART_COLUMNS = ("label", "class", "labels", "y", "target"), ("part", "split")


@dataclass(frozen=True)
class Part:
    """One part of the images.

    Shape: features N×D; labels (N,) of whole numbers or texts, or None; views N×V×D by name;
    groups (N,) of whole numbers or texts, or None.
    """

    features: Tensor
    labels: Array | None
    views: Mapping[str, Tensor]
    groups: Array | None = None


def read(path: Path, *, to_train: bool = True) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The parts of a file or folder of features by name, and the names of the classes if told.

    Args:
        path: of the file or folder.
        to_train: whether it must have features to train on; else any part will do, and an .npy file
            needs no table of labels.

    Raises:
        ValueError: it cannot be read so, or its arrays do not fit together.
    """
    found: dict[tuple[str, str], tuple[str, Array]] = {}
    names: tuple[str, ...] | None = None
    for key, array in stored(path, "data.root", labeled=to_train).items():
        plain = plain_key(key)
        if plain in NAMES:
            names = tuple(map(str, array.tolist()))
        elif (meant := MEANINGS.get(plain)) is not None:
            if meant in found:
                raise ValueError(f"{path} has both {found[meant][0]} and {key}; leave out one")
            found[meant] = (key, array)
    there = [part for part in PARTS if (part, "features") in found]
    if not there or (to_train and "train" not in there):
        held = ", ".join(sorted(stored(path, "data.root", labeled=to_train))) or "nothing"
        wanted = "features to train on" if to_train else "features"
        raise ValueError(f"{path} has no {wanted} (it holds {held}); {EXPECTED}")
    parts = {part: _part(path, part, found) for part in there}
    _check_dimensions(path, parts)
    return parts, names


def plain_key(key: str) -> str:
    """A key as `meanings` has it: small letters and digits, and one _ for all between them."""
    return re.sub(r"[^a-z0-9]+", "_", key.lower())


def meanings(kinds: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """What a key means: its part, and its kind; a part alone means the first kind.

    Args:
        kinds: words for each kind, such as labels and y for the labels.
    """
    first = next(iter(kinds))
    found: dict[str, tuple[str, str]] = {}
    for part, parts in PARTS.items():
        for kind, words in kinds.items():
            for name in parts:
                for word in words:
                    found |= dict.fromkeys((f"{name}_{word}", f"{word}_{name}"), (part, kind))
        found |= dict.fromkeys(parts, (part, first))
    for kind, words in kinds.items():
        found |= dict.fromkeys(words, ("train", kind))
    return found


MEANINGS = meanings(
    {
        "features": FEATURES,
        "labels": LABELS,
        "groups": GROUPS,
        "weak": ("weak",),
        "strong": ("strong",),
    }
)


def stored(path: Path, setting: str, *, labeled: bool = True) -> dict[str, Array]:
    """All arrays of a file or folder, by their names in it.

    Args:
        path: of an npz or safetensors file, an npy file beside a CSV file, or a folder of those.
        setting: that gave the path, for errors.
        labeled: whether an npy file needs the CSV file.

    Raises:
        ValueError: it is none of these, cannot be read, or holds Python objects.
    """
    if path.is_dir():
        return _of_folder(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(READERS)
        raise ValueError(f"{path} is none of {kinds}, nor a folder of .npy files; convert it")
    if not path.is_file():
        raise ValueError(f"no file {path}; check {setting}")
    alone = path.suffix.lower() == ".npy" and not path.with_suffix(".csv").is_file()
    try:
        return {"train": _npy(path)} if alone and not labeled else reader(path)
    except (OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}); write it anew") from error


def _of_folder(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for file in sorted(path.iterdir()):
        if file.suffix == ".npy":
            found[file.stem] = _npy(file)
        elif file.suffix == ".csv":
            found |= _csv_labels(file, file.stem)
    return found


def _npy(path: Path) -> Array:
    """Mapped: features may be larger than memory. Copy-on-write, which torch asks for."""
    return _loaded(path, lambda: np.load(path, mmap_mode="c", allow_pickle=False))


def _loaded(what: object, load: Callable[[], Array]) -> Array:
    try:
        return load()
    except (ValueError, EOFError) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            reason = "it holds Python objects, which might be code"
            remedy = "save numbers, and texts as np.array(names, dtype=str)"
        else:
            reason, remedy = " ".join(str(error).split())[:200], "write it anew"
        raise ValueError(f"{what} cannot be read ({reason}); {remedy}") from error


def _of_npy(path: Path) -> dict[str, Array]:
    """One array, and its labels and parts in a CSV file of the same name."""
    features, table = _npy(path), path.with_suffix(".csv")
    if not table.is_file():
        raise ValueError(
            f"{path} needs its labels in {table}, a line per row with a column label, and perhaps "
            "a column part (train, test, validation, unlabeled)"
        )
    labels, parts = _table(table)
    if len(labels) != len(features):
        raise ValueError(f"{table} has {len(labels)} lines and {path} {len(features)} rows")
    if parts is None:
        return {"train": features, "train_labels": labels}
    if wrong := sorted(set(parts.tolist()) - PARTS.keys()):
        raise ValueError(f"{table} names the part {wrong[0]!r}; parts are {', '.join(PARTS)}")
    found: dict[str, Array] = {}
    for part in PARTS:
        rows = parts == part
        if rows.any():
            found |= {part: np.asarray(features[rows]), f"{part}_labels": labels[rows]}
    return found


def _csv_labels(path: Path, part: str) -> dict[str, Array]:
    return {f"{part}_labels": _table(path)[0]}


def _table(path: Path) -> tuple[Array, Array | None]:
    """Labels and, if there is such a column, parts of the lines of a CSV file."""
    lines = [line for line in csv.reader(text_of(path).splitlines()) if line]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    of = {kind: [c for c in known if c in header] for kind, known in COLUMNS.items()}
    if of["label"]:
        rows = lines[1:]
        column = header.index(of["label"][0])
    elif len(header) == 1:
        rows, column = lines, 0
    else:
        raise ValueError(f"{path} has no column label but {', '.join(header) or 'nothing'}; add it")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"{path}: line {ragged[0]} has not {len(header)} cells; correct it")
    labels = _whole_or_text([row[column].strip() for row in rows])
    if not of["part"]:
        return labels, None
    place = header.index(of["part"][0])
    return labels, np.array([row[place].strip().lower() for row in rows], dtype=str)


COLUMNS = {"label": LABEL_COLUMNS, "part": PART_COLUMNS}


def _whole_or_text(cells: list[str]) -> Array:
    if all(re.fullmatch(r"-?[0-9]{1,9}", cell) for cell in cells):
        return np.array(list(map(int, cells)), dtype=np.int64)
    return np.array(cells, dtype=str)


def _of_npz(path: Path) -> dict[str, Array]:
    with path.open("rb") as handle:  # which numpy leaves open if the file is damaged
        file: Any = _loaded(path, lambda: np.load(handle, allow_pickle=False))
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} is no npz file; write it with numpy.savez")
        with file:
            return {
                key: _loaded(f"{key} in {path}", partial(file.__getitem__, key))
                for key in file.files
            }


def _of_safetensors(path: Path) -> dict[str, Array]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package safetensors; pip install 'ssl_selmix[safetensors]'"
        ) from error
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            told = (file.metadata() or {}).get("class_names")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); write it anew") from error
    found = {k: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for k, t in tensors.items()}
    try:
        return found | ({"class_names": np.array(json.loads(told), dtype=str)} if told else {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its metadata class_names is no JSON list of names") from error


READERS = {".npz": _of_npz, ".npy": _of_npy, ".safetensors": _of_safetensors}


def _part(path: Path, part: str, found: Mapping[tuple[str, str], tuple[str, Array]]) -> Part:
    key, array = found[part, "features"]
    features = _tensor(path, key, array, 2)
    views = {}
    for name in ("weak", "strong"):
        if (part, name) in found:
            key_of, drawn = found[part, name]
            views[name] = _tensor(path, key_of, drawn, 3)
            if (len(views[name]), views[name].shape[2]) != tuple(features.shape):
                raise ValueError(
                    f"{path}: {key_of} is {shape_of(drawn)} and {key} {shape_of(array)}; views are "
                    "images × views × features of the same images"
                )
    labels, groups = (
        _of_rows(path, found[part, kind], key, array) if (part, kind) in found else None
        for kind in ("labels", "groups")
    )
    return Part(features, labels, views, groups)


def _of_rows(path: Path, named: tuple[str, Array], of: str, features: Array) -> Array:
    """Labels or groups, one for each row of the features.

    Raises:
        ValueError: of another number, or neither whole numbers nor texts.
    """
    key, values = named
    word = "group" if plain_key(key).rpartition("_")[2] in GROUPS else "label"
    if values.shape != (len(features),):
        raise ValueError(
            f"{path}: {key} is {shape_of(values)} and {of} {shape_of(features)}; give a {word} "
            "per row"
        )
    if values.dtype.kind not in "iuU":
        whole = "whole numbers from 0 on" if word == "label" else "whole numbers"
        raise ValueError(f"{path}: {key} holds {values.dtype}; {word}s are {whole}, or texts")
    return values


def shape_of(array: Array) -> str:
    """Its shape for a message."""
    return "×".join(map(str, array.shape)) or "one number"


def _tensor(path: Path, key: str, array: Array, dims: int) -> Tensor:
    """The array without a copy where torch takes it so; float64 becomes float32.

    Raises:
        ValueError: it is of another shape or kind, or has NaN or inf.
    """
    what = "images × features" if dims == 2 else "images × views × features"
    if array.ndim != dims or 0 in array.shape:
        raise ValueError(f"{path}: {key} is {shape_of(array)}; it must be {what}")
    if array.dtype.kind != "f":
        raise ValueError(f"{path}: {key} holds {array.dtype}; features are floating-point numbers")
    if array.dtype.itemsize > 4:
        array = array.astype(np.float32)
    if not array.dtype.isnative or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        array = array.copy()
    found = torch.from_numpy(array)
    for start in range(0, len(found), 4096):
        bad = ~found[start : start + 4096].isfinite().flatten(1).all(1)
        if bool(bad.any()):
            row = start + int(bad.nonzero()[0])
            raise ValueError(f"{path}: {key} has NaN or inf in row {row}; correct it")
    return found


def _check_dimensions(path: Path, parts: Mapping[str, Part]) -> None:
    first, *_ = parts
    train = parts[first].features
    for name, part in parts.items():
        if part.features.shape[1] != train.shape[1]:
            raise ValueError(
                f"{path}: {first} has {train.shape[1]} features and {name} "
                f"{part.features.shape[1]}; compute all parts with one network"
            )
