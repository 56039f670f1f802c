"""Sets of the Hugging Face library `datasets`: which bytes of its Arrow files are which image.

The library finds, downloads and describes a set. Its images are then read from the Arrow files in
place, so that workers need neither the library nor a copy.

Shapes: R rows of a part.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.data.samples import PARTS, Sample
from ssl_selmix.data.table import LABEL
from ssl_selmix.data.table import PARTS as SPELLINGS

NEEDED = "pip install ssl-selmix[hf]"
IMAGE = ("image", "img", "pixel_values", "picture", "photo")  # columns, the likeliest first
# What a part is called in sets of the Hub, beside what tables call it.
SPLITS = {**SPELLINGS, **dict.fromkeys(("unsupervised", "extra"), "unlabeled")}


@dataclass(frozen=True)
class Columns:
    """Which columns are meant; an empty name is looked for."""

    image: str = ""
    label: str = ""


class Found(NamedTuple):
    """The images of every part, and the names of the classes if the set has them."""

    parts: dict[str, list[Sample]]
    class_names: Sequence[str]


def library() -> Any:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        found = importlib.import_module("datasets")
    except ImportError as error:
        raise ValueError(f"--dataset hf needs the library datasets; {NEEDED}") from error
    if not hasattr(found, "load_from_disk"):  # some folder of that name in the working directory
        raise ValueError(f"--dataset hf needs the library datasets; {NEEDED}")
    return found


def of_folder(root: str) -> Any:
    """What `save_to_disk` wrote, or a folder or file that `load_dataset` takes.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    datasets = library()
    if "://" in root:
        raise ValueError(
            f"data.root={root} is no folder here; name a set of the Hub as --dataset hf:OWNER/NAME"
        )
    path = expanded(root)
    if not path.exists():
        raise ValueError(f"no folder {path}; give what Dataset.save_to_disk wrote with data.root")
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # nothing is fetched
    try:
        if saved:
            return datasets.load_from_disk(str(path), keep_in_memory=False)
        if path.is_dir():
            return datasets.load_dataset(str(path), keep_in_memory=False)
        kind = path.suffix.lower().removeprefix(".")
        return datasets.load_dataset(kind, data_files=str(path), keep_in_memory=False)
    except Exception as error:  # the library has no class for what is wrong with a set
        raise ValueError(
            f"{path} cannot be read by datasets ({_reason(error)}); write it anew with "
            "Dataset.save_to_disk"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def of_hub(name: str, revision: str) -> Any:
    """A set of the Hub, NAME or NAME:CONFIG, downloaded or as it was downloaded before.

    Raises:
        ValueError: it cannot be had.
    """
    datasets = library()
    owner_name, _, config = name.partition(":")
    try:
        with _quick_to_fail():
            return datasets.load_dataset(
                owner_name, config or None, revision=revision or None, keep_in_memory=False
            )
    except Exception as error:  # of the network, of the Hub, of the set: each has its own
        raise ValueError(
            f"hf:{name} cannot be loaded ({_reason(error)}); check the name, or write "
            f"load_dataset({owner_name!r}).save_to_disk(FOLDER) where there is a network and take "
            "--dataset hf data.root=FOLDER"
        ) from error


@contextmanager
def _quick_to_fail() -> Iterator[None]:
    """Where the Hub has no address, look only at what was downloaded before.

    The library would try for half a minute and print a line for each attempt.
    """
    modules = [sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config")]
    known = [module for module in modules if hasattr(module, "HF_HUB_OFFLINE")]
    before = [module.HF_HUB_OFFLINE for module in known]  # type: ignore[union-attr]
    try:
        if _no_address():
            for module in known:
                module.HF_HUB_OFFLINE = True  # type: ignore[union-attr]
        yield
    finally:
        for module, value in zip(known, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[union-attr]


def _no_address() -> bool:
    """Whether the name of the Hub leads nowhere; a proxy would look it up itself."""
    if getproxies():
        return False
    place = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.getaddrinfo(place.hostname, place.port or 443)
    except OSError:
        return True
    return False


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read(
    where: str,
    loaded: Any,
    named: Mapping[str, str],
    columns: Columns,
    *,
    to_train: bool = True,
) -> Found:
    """The images of a set by part.

    Args:
        where: the set, for messages.
        loaded: a Dataset, or a dict of them by the name of their split.
        named: for a part the split that it is, where the set calls it otherwise.
        columns: which are meant.
        to_train: whether there must be a split to train on and labels; else any part will do.

    Raises:
        ValueError: a stream, a split or column that is not there, or images of another kind.
    """
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    for split in splits.values():
        check_whole(where, split)
    chosen = _chosen(where, splits, named, to_train)
    parts: dict[str, list[Sample]] = {}
    names: Sequence[str] = ()
    for part, split in chosen.items():
        labeled = part != "unlabeled"
        rows, stated = _samples(where, split, columns, labeled=labeled, needed=to_train)
        parts[part] = rows
        names = stated if part == "train" else names
    return Found(parts, names)


def check_whole(where: str, split: Any) -> None:
    """Refuse a set that streams.

    Raises:
        ValueError: it does.
    """
    if not hasattr(split, "cache_files") or not hasattr(split, "num_rows"):
        raise ValueError(
            f"{where} is a streaming set; every step draws its images by their number from the "
            "whole set, which a stream does not have: load it with streaming=False, or save it "
            "with save_to_disk"
        )


def _chosen(
    where: str, splits: Mapping[str, Any], named: Mapping[str, str], to_train: bool
) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    taken = {name for name in named.values() if name}
    for part in PARTS:
        if name := named.get(part):
            if name not in splits:
                raise ValueError(f"{where}: data.{part}_split: {unknown('split', name, splits)}")
            chosen[part] = splits[name]
            continue
        usual = [s for s in splits if SPLITS.get(s.lower()) == part and s not in taken]
        if len(usual) > 1:
            raise ValueError(
                f"{where} has the splits {' and '.join(usual)}; say which is meant with "
                f"data.{part}_split={usual[0]}"
            )
        if usual:
            chosen[part] = splits[usual[0]]
    if "train" not in chosen and (to_train or not chosen):
        raise ValueError(
            f"{where} has the splits {', '.join(splits)} and none is called train"
            f"{'' if to_train else ', validation, test or unlabeled'}; name it with "
            "data.train_split=NAME"
        )
    return chosen


def _samples(
    where: str, split: Any, columns: Columns, *, labeled: bool, needed: bool
) -> tuple[list[Sample], Sequence[str]]:
    features = dict(split.features)
    image = _image_column(where, features, columns.image)
    label = _label_column(where, features, columns.label, needed=needed) if labeled else ""
    names = list(getattr(features[label], "names", None) or ()) if label else []
    rows: list[Sample] = []
    for file in [str(entry["filename"]) for entry in split.cache_files]:
        rows += _of_file(where, os.path.abspath(file), image, label, names)
    if len(rows) != split.num_rows:
        raise ValueError(
            f"{where} has {split.num_rows} rows and its files have {len(rows)}; write it anew with "
            "Dataset.save_to_disk"
        )
    return _named(rows), names


def _named(rows: list[Sample]) -> list[Sample]:
    """With names that tell those of a class apart: of the files, or the number of the row."""
    if len({(row.label, row.name) for row in rows}) == len(rows) and all(r.name for r in rows):
        return rows
    digits = len(str(len(rows)))
    return [row._replace(name=f"{number:0{digits}}") for number, row in enumerate(rows)]


def _image_column(where: str, features: Mapping[str, Any], wanted: str) -> str:
    if wanted:
        if wanted not in features:
            raise ValueError(f"{where}: data.image_column: {unknown('column', wanted, features)}")
        return wanted
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    usual = images if len(images) == 1 else [name for name in IMAGE if name in features]
    if not usual:
        raise ValueError(
            f"{where} has the columns {', '.join(map(repr, features))} and none of them is image; "
            "name it with data.image_column=NAME"
        )
    return usual[0]


def _label_column(where: str, features: Mapping[str, Any], wanted: str, *, needed: bool) -> str:
    if wanted:
        if wanted not in features:
            raise ValueError(f"{where}: data.label_column: {unknown('column', wanted, features)}")
        return wanted
    classes = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    usual = [name for name in (*LABEL, "labels") if name in features]
    found = classes if len(classes) == 1 else usual
    if not found and needed:
        raise ValueError(
            f"{where} has the columns {', '.join(map(repr, features))} and none of them is label; "
            "name it with data.label_column=NAME"
        )
    return found[0] if found else ""


def _of_file(where: str, file: str, image: str, label: str, names: Sequence[str]) -> list[Sample]:
    """The rows of an Arrow file."""
    import pyarrow as pa

    try:
        with pa.memory_map(file) as source:
            whole = source.read_buffer()
            table = pa.ipc.open_stream(whole).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file} cannot be read ({_reason(error)}); write it anew") from error
    labels = _labels(where, table.column(label), names) if label else [""] * table.num_rows
    rows: list[Sample] = []
    for chunk in table.column(image).chunks:
        for place, name in _places(where, file, image, chunk, whole):
            rows.append(Sample(*place, name, labels[len(rows)]))
    return rows


def _labels(where: str, column: Any, names: Sequence[str]) -> list[str]:
    """Labels as texts; "" where there is none, or the number -1."""
    import pyarrow.types as kinds

    if not (kinds.is_integer(column.type) or kinds.is_string(column.type) or _long(column.type)):
        raise ValueError(
            f"{where}: labels are {column.type}, and one whole number or text for each image is "
            "needed; name another column with data.label_column"
        )

    def one(value: Any) -> str:
        if value is None or value == -1:
            return ""
        if names and not 0 <= value < len(names):
            raise ValueError(f"{where}: label {value}, and there are {len(names)} class names")
        return names[value] if names else str(value).strip()

    return [one(value) for value in column.to_pylist()]


def _long(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_large_string(kind))


def _places(
    where: str, file: str, image: str, chunk: Any, whole: Any
) -> list[tuple[tuple[str, int, int], str]]:
    """File, offset and size of every image of a chunk, and its name."""
    import pyarrow.types as kinds

    names: list[str | None] = [None] * len(chunk)
    content, paths = chunk, names
    if kinds.is_struct(chunk.type):
        here = {field.name for field in chunk.type}
        if not here <= {"bytes", "path"} or "bytes" not in here:
            raise ValueError(f"{where}: {image} is {chunk.type}, no image; {_other()}")
        content = chunk.field("bytes")
        paths = chunk.field("path").to_pylist() if "path" in here else names
    if kinds.is_string(content.type):
        return [_of_path(where, path, None) for path in content.to_pylist()]
    if not (kinds.is_binary(content.type) or kinds.is_large_binary(content.type)):
        raise ValueError(f"{where}: {image} is {chunk.type}, no image; {_other()}")
    ends = _offsets(content)
    begin = _begin(file, content, whole)
    valid = content.is_valid().to_pylist()
    found = []
    for i, path in enumerate(paths):
        name = os.path.basename(path) if path else ""
        if valid[i]:
            place = (file, begin + int(ends[i]), int(ends[i + 1] - ends[i]))
            found.append((place, name))
        else:
            found.append(_of_path(where, path, name))
    return found


def _other() -> str:
    return "cast the column to datasets.Image(), or name another with data.image_column"


def _offsets(content: Any) -> npt.NDArray[np.int64]:
    import pyarrow.types as kinds

    kind = np.int64 if kinds.is_large_binary(content.type) else np.int32
    ends = np.frombuffer(content.buffers()[1], kind) if len(content) else np.zeros(1, kind)
    found: npt.NDArray[np.int64] = ends[content.offset : content.offset + len(content) + 1].astype(
        np.int64
    )
    return found


def _begin(file: str, content: Any, whole: Any) -> int:
    """Where in the file the bytes of the images begin.

    Raises:
        ValueError: the file is compressed, so that they are nowhere in it as they are.
    """
    data = content.buffers()[2]
    if data is None or not data.size:
        return 0
    begin = int(data.address - whole.address)
    if not 0 <= begin <= whole.size - data.size:
        raise ValueError(
            f"{file} is compressed inside; write it anew with Dataset.save_to_disk, which does not"
        )
    return begin


def _of_path(where: str, path: str | None, name: str | None) -> tuple[tuple[str, int, int], str]:
    """An image that is a file of its own."""
    if not path:
        raise ValueError(f"{where}: a row has no image; remove it")
    if "://" in path:
        raise ValueError(
            f"{where}: {path[:80]!r} is a URL, and nothing is fetched; save the images with "
            "save_to_disk"
        )
    own = Path(path).absolute()
    try:
        size = own.stat().st_size
    except OSError as error:
        raise ValueError(f"{where}: no image {own}; save the images with save_to_disk") from error
    return (str(own), 0, size), name or own.name
