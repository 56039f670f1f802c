"""The images of each kind of data set, by the readers of training, as `predict` lists them.

Of files only the places are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import arrays, image_arrays, samples, shards, table
from ssl_selmix.images.find import LeftOut, below, matching, shown
from ssl_selmix.images.folder import UNLABELED
from ssl_selmix.images.pieces import Held, Piece

PARTS = samples.PARTS


@dataclass(frozen=True)
class Asked:
    """What is wanted of the images.

    Attributes:
        class_names: those of the run, K.
        part: train, validation, test or unlabeled; "": all images.
        judged: whether labels are wanted, too.
        features: how many features the run takes of an image; 0: it takes images.
    """

    class_names: Sequence[str]
    part: str = ""
    judged: bool = False
    features: int = 0

    @classmethod
    def of(cls, manifest: Mapping[str, Any], part: str = "", judged: bool = False) -> Asked:
        """What is wanted for a run with this manifest."""
        first, *others = manifest["image_shape"]
        return cls(manifest["class_names"], part, judged, 0 if others else first)

    def class_of(self, label: str, where: str) -> int:
        """The position of a label among the run's classes; -1 if there is none.

        Raises:
            ValueError: it is none of the classes, and labels are wanted.
        """
        if not label or not self.judged:
            return -1
        if label not in self.class_names:
            raise ValueError(
                f"{where}: {unknown('class', label, self.class_names)}; the run knows no other, "
                "rename it, or leave out --evaluate"
            )
        return self.class_names.index(label)


@dataclass
class Images:
    """Images to predict. Lists have an entry for each.

    Attributes:
        names: what rows of the output call them.
        files: paths, pieces of files, or pixels in memory.
        labels: positions among the run's classes; -1: unknown, or not asked for.
        left_out: what was found in folders and is taken for no image.
        notes: a line each.
    """

    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], files: Sequence[str], labels: Sequence[int] = ()) -> None:
        """These images after those that are there."""
        self.names += names
        self.files += files
        self.labels += labels or [-1] * len(files)

    def join(self, other: Images) -> None:
        """All of the other's."""
        self.add(other.names, other.files, other.labels)
        for why, entries in other.left_out.items():
            self.left_out.setdefault(why, []).extend(entries)
        self.notes += other.notes


def _wanted(parts: Sequence[str], asked: Asked, where: object) -> list[str]:
    """The parts to read of those that there are.

    Raises:
        ValueError: there is no such part.
    """
    if asked.part and asked.part not in parts:
        raise ValueError(
            f"{where} has no part {asked.part!r} but {', '.join(parts)}; name one of these, or "
            "leave out --part"
        )
    return [asked.part] if asked.part else list(parts)


def _table(module: Any, given: Any, asked: Asked) -> Images:
    file, root = table.place(given.file, given.root)
    wanted = [word.strip() for word in given.label_column.split(",") if word.strip()]
    columns = table.Columns(given.path_column, wanted, given.split_column, labeled=False)
    rows = table.read(file, columns)
    files = table.resolved(file, root, rows)
    labeled = any(rows.labels)
    parts = [
        "unlabeled" if labeled and not label and part == "train" else part
        for label, part in zip(rows.labels, rows.parts, strict=True)
    ]
    if asked.part and asked.part not in parts and not rows.split:
        raise ValueError(
            f"{file} has no column that says which rows are {asked.part}; leave out --part, or "
            "name the column with data.split_column=NAME"
        )
    wanted_parts = set(_wanted([p for p in PARTS if p in set(parts)], asked, file))
    found = Images()
    for i, part in enumerate(parts):
        if part in wanted_parts:
            found.names.append(rows.paths[i])
            found.files.append(files[i])
            found.labels.append(asked.class_of(rows.labels[i], f"{file}, row {rows.numbers[i]}"))
    return found


def _arrays(module: Any, given: Any, asked: Asked) -> Images:
    if not given.file:
        raise ValueError(
            "--dataset arrays needs data.file=FILE, an .npz, .npy or .safetensors file"
        )
    path = expanded(given.file)
    parts, stated = image_arrays.read(path, to_train=False)
    names = tuple(given.classes) or stated or tuple(asked.class_names)
    found = Images()
    for part in _wanted(list(parts), asked, path):
        images, labels = parts[part].images, parts[part].labels
        own = [f"{part}[{i}]" for i in range(len(images))]
        where = f"{path}: {part}"
        places = [-1] * len(images)
        if asked.judged and labels is not None and part != "unlabeled":
            known = module.numbers(where, parts[part], names, unknown=True)
            texts = [names[k] if k >= 0 else "" for k in known.tolist()]
            places = [asked.class_of(text, where) for text in texts]
        found.add(own, [Held(f"{path}[{n}]", images[i]) for i, n in enumerate(own)], places)
    return found


def _features(module: Any, given: Any, asked: Asked) -> Images:
    if not given.root:
        raise ValueError("--dataset features needs data.root=FILE, an .npz, .npy or .safetensors")
    if not asked.features:
        raise ValueError(
            "--dataset features is for a run on features, and this one was trained on images; name "
            "images"
        )
    path = expanded(given.root)
    parts, stated = arrays.read(path, to_train=False)
    found = Images()
    for part in _wanted(list(parts), asked, path):
        features, labels = parts[part].features, parts[part].labels
        if features.shape[1] != asked.features:
            raise ValueError(
                f"{path}: {part} has {features.shape[1]} features and the run takes "
                f"{asked.features}; compute them with the network that made those of the run"
            )
        own = [f"{part}[{i}]" for i in range(len(features))]
        texts = [""] * len(own)
        if asked.judged and labels is not None:
            texts = _texts(labels.tolist(), stated or asked.class_names)
        places = [asked.class_of(t, f"{path}: {n}") for t, n in zip(texts, own, strict=True)]
        rows = features.numpy()
        found.add(own, [Held(f"{path}[{n}]", rows[i]) for i, n in enumerate(own)], places)
    return found


def _texts(labels: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Labels as names of classes; numbers are positions among them, -1 is none."""
    return [
        label if isinstance(label, str) else "" if label < 0 else _name(label, names)
        for label in labels
    ]


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)


def _hf(module: Any, given: Any, asked: Asked) -> Images:
    found = module.read(given, to_train=False)
    where, images = module.where(given), Images()
    names = _numbers([s for part in found.parts.values() for s in part], given.classes, asked)
    for part in _wanted(list(found.parts), asked, where):
        for i, sample in enumerate(found.parts[part]):
            own = f"{part}[{i}]"
            images.names.append(own)
            images.files.append(_place(sample, own))
            label = names.get(sample.label, sample.label)
            images.labels.append(asked.class_of(label, f"{where}: {own}"))
    return images


def _place(sample: samples.Sample, name: str) -> Piece:
    return Piece(sample.file, sample.offset, sample.size, name)


def _numbers(rows: Sequence[samples.Sample], told: Sequence[str], asked: Asked) -> dict[str, str]:
    """What labels mean that are numbers throughout: positions among the classes, as in training."""
    return samples.numbered({"all": rows}, told or asked.class_names)


def _shards(module: Any, given: Any, asked: Asked) -> Images:
    named = {
        part: given.shards if part == "train" else getattr(given, f"{part}_shards")
        for part in PARTS
    }
    if not any(named.values()):
        raise ValueError(
            "--dataset webdataset needs data.shards='train-{000..003}.tar' or data.test_shards=..."
        )
    there = [part for part in PARTS if named[part]]
    images = Images()
    read: dict[str, list[samples.Sample]] = {}
    for part in _wanted(there, asked, "the command"):
        key = "data.shards" if part == "train" else f"data.{part}_shards"
        read[part] = shards.read(shards.files(key, named[part]), given.image, given.label)
    names = _numbers([s for part in read.values() for s in part], given.classes, asked)
    for part, rows in read.items():
        for sample in rows:
            piece = _place(sample, sample.name)
            label = "" if part == "unlabeled" else names.get(sample.label, sample.label)
            images.add([str(piece)], [piece], [asked.class_of(label, piece)])
    return images


def _folder(module: Any, given: Any, asked: Asked) -> Images:
    if not given.root:
        raise ValueError("--dataset image_folder needs data.root=PATH with train/<class>/*")
    roots = [expanded(root) for root in (given.root, *given.more_roots)]
    places: dict[str, list[Path]] = {
        part: [root / part for root in roots if (root / part).is_dir()] for part in PARTS
    }
    there = [part for part in PARTS if places[part] or (part == UNLABELED and given.unlabeled_from)]
    if not there:
        raise ValueError(f"no folder {roots[0] / 'train'}; data.root must hold train/<class>/*")
    found = Images()
    for part in _wanted(there, asked, roots[0]):
        if part == UNLABELED and given.unlabeled_from:
            files = matching(given.unlabeled_from, found.left_out)
            found.add(files, files)
            continue
        for place in places[part]:
            files = list(below(str(place), found.left_out))
            labels = [_label_in(place, file, part, asked) for file in files]
            found.add(files, files, labels)
    return found


def _label_in(place: Path, file: str, part: str, asked: Asked) -> int:
    """The class of an image by the class folder that it is in."""
    inner = Path(file).relative_to(place).parts
    label = inner[0] if len(inner) > 1 and part != UNLABELED else ""
    return asked.class_of(label, shown(file))


LISTERS: dict[str, Callable[[Any, Any, Asked], Images]] = {
    "table": _table,
    "arrays": _arrays,
    "hf": _hf,
    "webdataset": _shards,
    "image_folder": _folder,
    "features": _features,
}
