"""What a data set holds before anything is refused: its images by part, class and group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ssl_selmix.common import config, plugins
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, image_arrays, table
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.image_arrays import decoded
from ssl_selmix.data.samples import Sample, numbered
from ssl_selmix.images.cache import digest_of
from ssl_selmix.images.decode import contents, rgb
from ssl_selmix.images.find import LeftOut, below, beside, is_tools, matching, told
from ssl_selmix.images.folder import UNLABELED
from ssl_selmix.images.pieces import Piece

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = ("train", "validation", "test", "unlabeled")
ENOUGH = 128  # pixels that a side keeps when a large JPEG is decoded; examples are smaller


class Opened(NamedTuple):
    """One image: digest of its bytes, W×H pixels, Pillow's mode, corrections, RGB pixels."""

    digest: bytes
    size: tuple[int, int]
    mode: str
    corrections: list[str]
    image: Image


@dataclass
class Inventory:
    """The images of a data set in the order of part and class. Lists have an entry for each.

    Attributes:
        title: the data set and where it is.
        open: reads an image.
        kind: what the bytes of an image are, files or images.
        names: by which a person finds them.
        parts: train, validation, test or unlabeled.
        labels: the class, or an empty text.
        groups: of a table with such a column, else empty.
        classes: of each part, as they are, also those without an image.
        notes: what was left out, a line each.
    """

    title: str
    open: Callable[[int], Opened]
    kind: str = "files"
    names: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, part: str, names: Sequence[str], labels: Sequence[str]) -> None:
        """These images of a part."""
        self.names += names
        self.parts += [part] * len(names)
        self.labels += labels
        if part != "unlabeled":
            known = self.classes.setdefault(part, [])
            known += [name for name in dict.fromkeys(labels) if name and name not in set(known)]


def take(name: str, settings: Sequence[str]) -> Inventory:
    """All images of the data set.

    Args:
        name: of a data set, or its file.
        settings: words data.key=value.

    Raises:
        ValueError: it cannot even be listed, or has no images.
    """
    name, own = plugins.parted(name)
    words = config.parse_overrides([*own, *settings])
    if others := [key for key in words if not key.startswith("data.")]:
        raise ValueError(
            f"{others[0]} is no setting of a data set; write data.{others[0]}, if it is"
        )
    module = plugins.dataset(name)
    layers = [("command line", words)]
    asked = config.compose({"data": module.Config}, layers)[0]["data"]
    found = LISTERS.get(name, _of_any)(name, module, asked)
    if not found.names:
        raise ValueError(f"{found.title} holds no image; check the path")
    return found


def _of_file(file: str) -> Opened:
    import io

    from PIL import Image

    content = contents(file)
    image, corrections = rgb(content, file, ENOUGH, strict=False)
    with Image.open(io.BytesIO(content)) as header:
        return Opened(digest_of(content), header.size, header.mode, corrections, image)


def _folder(name: str, module: Any, asked: Any) -> Inventory:
    if not asked.root:
        raise ValueError("data image_folder needs data.root=PATH, a folder with train/<class>/*")
    roots = [expanded(root) for root in (asked.root, *asked.more_roots)]
    if missing := [root for root in (roots[0] / "train", *roots[1:]) if not root.is_dir()]:
        raise ValueError(f"no folder {missing[0]}; data.root must hold train/<class>/*")
    found = Inventory(f"{name} {roots[0]}", lambda i: _of_file(found.names[i]))
    for place, part in [(root, part) for part in PARTS[:3] for root in roots]:
        if (place / part).is_dir():
            _add_classes(found, part, place / part)
    left_out: LeftOut = {}
    files: list[str] = []
    if asked.unlabeled_from:
        files = matching(asked.unlabeled_from, left_out)
    else:
        pools = [root / UNLABELED for root in roots if (root / UNLABELED).is_dir()]
        files = [file for pool in pools for file in below(str(pool), left_out)]
    found.add("unlabeled", files, [""] * len(files))
    found.notes += [f"unlabeled: {line}" for line in told(left_out)]
    return found


def _add_classes(found: Inventory, part: str, folder: Path) -> None:
    left_out: LeftOut = {}
    beside(folder, left_out)
    folders = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    for name in folders:
        if not is_tools(name):
            files = list(below(str(folder / name), left_out))
            found.add(part, files, [name] * len(files))
            if not files:
                found.classes.setdefault(part, []).append(name)
    found.notes += [f"{folder}: {line}" for line in told(left_out)]


def _table(name: str, module: Any, asked: Any) -> Inventory:
    file, root = table.place(asked.file, asked.root)
    labels = [word.strip() for word in asked.label_column.split(",") if word.strip()]
    rows = table.read(
        file, table.Columns(asked.path_column, labels, asked.split_column, asked.group_column)
    )
    files = table.resolved(file, root, rows)
    found = Inventory(f"{name} {file}", lambda i: _of_file(found.names[i]))
    parts = [
        "unlabeled" if not label and part == "train" else part
        for label, part in zip(rows.labels, rows.parts, strict=True)
    ]
    order = sorted(range(len(files)), key=lambda i: (PARTS.index(parts[i]), rows.labels[i]))
    for i in order:
        found.names.append(files[i])
        found.parts.append(parts[i])
        found.labels.append(rows.labels[i] if parts[i] != "unlabeled" else "")
    for part in PARTS[:3]:
        if here := sorted({rows.labels[i] for i in order if parts[i] == part} - {""}):
            found.classes[part] = here
    found.groups = [rows.groups[i] for i in order] if rows.groups else []
    if rows.disagreements:
        found.notes.append(
            f"{len(rows.disagreements)} images without a majority of annotators (first: row "
            f"{rows.disagreements[0]})"
        )
    return found


def _arrays(name: str, module: Any, asked: Any) -> Inventory:
    if not asked.file:
        raise ValueError("data arrays needs data.file=FILE, an .npz, .npy or .safetensors file")
    path = expanded(asked.file)
    parts, stated = image_arrays.read(path)
    names = module.class_names(path, parts["train"], asked.classes or stated)
    pools: list[tuple[str, Any, list[str]]] = []
    for part in PARTS:
        if part not in parts:
            continue
        given = parts[part]
        labels = [""] * len(given.images)
        if given.labels is not None and part != "unlabeled":
            places = module.numbers(f"{path}: {part}", given, names, unknown=part == "train")
            labels = [names[k] if k >= 0 else "" for k in places.tolist()]
        pools.append((part, given.images, labels))
    return _of_pools(f"{name} {path}", pools)


def _hf(name: str, module: Any, asked: Any) -> Inventory:
    found = module.read(asked)
    return _of_samples(f"{name} {module.where(asked)}", found.parts, asked.classes or found[1])


def _shards(name: str, module: Any, asked: Any) -> Inventory:
    return _of_samples(f"{name} {module.where(asked)}", module.parts(asked), asked.classes)


def _of_samples(
    title: str, parts: Mapping[str, Sequence[Sample]], names: Sequence[str]
) -> Inventory:
    """Images that lie in larger files; those to train on without a label are unlabeled."""
    meaning = numbered(parts, names)
    rows = [
        ("unlabeled" if part == "train" and not sample.label else part, sample)
        for part in PARTS
        for sample in parts.get(part, ())
    ]
    found = Inventory(title, lambda i: _of_file(found.names[i]))
    for part in PARTS:
        here = [
            (meaning.get(sample.label, sample.label) if part != "unlabeled" else "", sample)
            for kind, sample in rows
            if kind == part
        ]
        here.sort(key=lambda row: row[0])
        pieces = [Piece(s.file, s.offset, s.size, s.name) for _, s in here]
        if pieces:
            found.add(part, pieces, [label for label, _ in here])
    return found


def _of_any(name: str, module: Any, asked: Any) -> Inventory:
    """Of what `load` returns: that it can be loaded is then taken for granted."""
    source = module.load(asked)
    if not isinstance(source, ImageSet | FileSet):
        raise ValueError(f"{name} has no images to look at, but features of some")

    def named(labels: Any) -> list[str]:
        return [source.class_names[k] if k >= 0 else "" for k in np.asarray(labels).tolist()]

    own = len(source.train) - source.apart
    known = named(source.train_labels)
    given: list[tuple[str, Any, list[str]]] = []
    if isinstance(source, ImageSet):
        pools: dict[str, Tensor | None] = {"train": source.train[:own]}
        pools["validation"] = source.train[own:]
        pools |= {"test": source.test, "unlabeled": source.extra_unlabeled}
        labels = {"train": known[:own], "validation": known[own:]}
        if source.test is not None:
            labels["test"] = named(source.test_labels)
        for part, images in pools.items():
            if images is not None and len(images):
                blank = [""] * len(images)
                given.append((part, images.permute(0, 2, 3, 1).numpy(), labels.get(part, blank)))
        return _of_pools(name, given)
    found = Inventory(f"{name} {source.train.root}", lambda i: _of_file(found.names[i]))
    found.add("train", source.train.paths[:own], known[:own])
    if source.apart:
        found.add("validation", source.train.paths[own:], known[own:])
    if source.test is not None:
        found.add("test", source.test.paths, named(source.test_labels))
    if source.extra_unlabeled is not None:
        files = source.extra_unlabeled.paths
        found.add("unlabeled", files, [""] * len(files))
    return found


def _of_pools(title: str, pools: Sequence[tuple[str, Any, list[str]]]) -> Inventory:
    """Images N×H×W×C uint8 of each part; those to train on without a class are unlabeled."""
    places: list[tuple[Any, int]] = []

    def opened(i: int) -> Opened:
        from PIL import Image

        images, row = places[i]
        pixels: Tensor = decoded(images[row : row + 1])[0]
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        mode = "L" if images.shape[3] == 1 else "RGB"
        return Opened(digest_of(pixels.numpy().tobytes()), image.size, mode, [], image)

    found = Inventory(title, opened, "images")
    for part, images, labels in pools:
        for row, label in enumerate(labels):
            known = part if label or part != "train" else "unlabeled"
            found.add(known, [f"{part}[{row}]"], [label])
            places.append((images, row))
    return found


LISTERS: dict[str, Callable[[str, Any, Any], Inventory]] = {
    "image_folder": _folder,
    "table": _table,
    "arrays": _arrays,
    "hf": _hf,
    "webdataset": _shards,
}
