"""Small images as arrays, such as MedMNIST's: data.file=FILE.npz, .npy + .csv, .safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.common.console import warn
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, image_arrays
from ssl_selmix.data.image_arrays import EXPECTED, Part, decoded
from ssl_selmix.data.listed import Pooled, pooled
from ssl_selmix.images.cache import digest_of
from ssl_selmix.images.checks import Copies, check_class_names
from ssl_selmix.images.folder import LARGEST
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit

Labels = npt.NDArray[np.int64]


@dataclass
class Config(LongTailSplit):
    """Where the arrays are, and how their images are split."""

    file: str = ""  # file with train_images, train_labels, perhaps val_images, test_images ...
    classes: list[str] = field(default_factory=list)  # names of the classes, in their order
    size: int | None = None  # of the views, size×size pixels, at most 64; None: as they are
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="all"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    # Held out of the train images; `folder`: the part validation of the file
    validation: int | float | str = 0.2

    def __post_init__(self) -> None:
        """Refuse a size that cannot be that of images in memory."""
        super().__post_init__()
        if self.size is not None and not 1 <= self.size <= LARGEST:
            raise ValueError(
                f"size={self.size} of arrays must lie in 1..{LARGEST}; save larger images as files "
                "and train with --dataset image_folder or table"
            )


def files(config: Config) -> list[Path]:
    """The file and its table: see `runs.kept`."""
    path = expanded(config.file)
    return [path, path.with_suffix(".csv")] if config.file else []


def load(config: Config) -> ImageSet:
    """The file's images as RGB pools, in the order of the file; images labeled -1 are unlabeled."""
    if not config.file:
        raise ValueError(
            "--dataset arrays needs data.file=FILE, an .npz, .npy or .safetensors file of uint8 "
            f"images; {EXPECTED}"
        )
    path = expanded(config.file)
    parts, stated = image_arrays.read(path)
    parts = _used(path, parts, config)
    for name, part in parts.items():
        _check_size(path, name, part, config.size)
    names = class_names(path, parts["train"], config.classes or stated)
    labels = {
        name: numbers(f"{path}: {name}", part, names, unknown=name == "train")
        for name, part in parts.items()
        if name != "unlabeled"
    }
    known = labels["train"] >= 0
    if absent := set(range(len(names))) - set(labels["train"].tolist()):
        raise ValueError(
            f"{path} has no train image of the class {names[min(absent)]!r}; add some, or leave "
            "the class out and number the others from 0"
        )
    images = {name: decoded(part.images, config.size) for name, part in parts.items()}
    _tell_copies(images, labels)
    unlabeled = [images["unlabeled"]] if "unlabeled" in images else []
    if not known.all():
        found = torch.from_numpy(known)
        if config.unlabeled.shape == "unknown":
            unlabeled.insert(0, images["train"][~found])
        images["train"] = images["train"][found]
    own = [labels["train"][known], *([labels["validation"]] if "validation" in labels else [])]
    return pooled(
        Pooled(
            train=images["train"],
            train_labels=np.concatenate(own),
            class_names=names,
            validation=images.get("validation"),
            test=images.get("test"),
            unlabeled=_together(path, unlabeled),
        ),
        labels.get("test"),
    )


def _used(path: Path, parts: Mapping[str, Part], config: Config) -> dict[str, Part]:
    """The parts that the settings ask for.

    Raises:
        ValueError: they ask for one that is not there.
    """
    found = dict(parts)
    if config.validation == FOLDER and "validation" not in found:
        raise ValueError(
            f"{path} has no val_images; hold images out of the train images with "
            "data.validation=0.2, say"
        )
    if config.validation != FOLDER and (held := found.pop("validation", None)):
        warn(
            f"{path}: {len(held.images)} validation images are not used, for data.validation="
            f"{config.validation} holds images out; data.validation=folder uses them"
        )
    if config.test and (test := found.pop("test", None)):
        warn(
            f"{path}: {len(test.images)} test images are not used, for data.test={config.test} "
            "holds images out"
        )
    if not config.test and "test" not in found:
        raise ValueError(
            f"{path} has no test_images; add them, or hold images out with data.test=0.2"
        )
    if config.unlabeled.shape != "unknown":
        found.pop("unlabeled", None)
    return found


def _check_size(path: Path, name: str, part: Part, size: int | None) -> None:
    height, width = part.images.shape[1:3]
    if size is None and max(height, width) > LARGEST:
        raise ValueError(
            f"{path}: {name} images are {width}×{height} pixels and an array is taken up to "
            f"{LARGEST}; set data.size={LARGEST} or less to resize, or save them as files and "
            "train with --dataset image_folder"
        )


def class_names(path: Path, train: Part, told: Sequence[str] | None) -> tuple[str, ...]:
    """The classes: as told, or the texts among the labels, or the numbers up to the largest.

    Raises:
        ValueError: there are fewer than two, or some that nobody can tell apart.
    """
    if train.labels is None:
        raise ValueError(f"{path} has no train_labels; add a label for each of train_images")
    if told:
        names = tuple(told)
    elif train.labels.dtype.kind == "U":
        names = tuple(name for name in np.unique(train.labels).tolist() if name)
    else:
        names = tuple(map(str, range(int(train.labels.max()) + 1)))
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: the class {twice[0]!r} is named twice; name every class once")
    if len(names) < 2:
        raise ValueError(f"{path} has {len(names)} classes to train on; at least 2 are needed")
    check_class_names(path, names)
    return names


def numbers(where: str, part: Part, names: tuple[str, ...], *, unknown: bool) -> Labels:
    """Labels as positions in the names; -1, or an empty text, is an unknown class.

    Args:
        where: for errors, the file and the part.
        part: has the labels.
        names: of the classes.
        unknown: whether an image may have no class, as those to train on.

    Raises:
        ValueError: a label is none of the classes.
    """
    labels = part.labels
    if labels is None:
        raise ValueError(f"{where} has no labels; add {where.rpartition(' ')[2]}_labels")
    if labels.dtype.kind == "U":
        places = {name: k for k, name in enumerate(names)} | {"": -1}
        if others := sorted(set(labels.tolist()) - places.keys()):
            raise ValueError(
                f"{where} has the class {others[0]!r}, which is none of those to train on; "
                "remove its images or add the class"
            )
        found = np.array([places[name] for name in labels.tolist()], dtype=np.int64)
    else:
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= len(names):
            raise ValueError(
                f"{where} labels run from {low} to {high} and there are {len(names)} classes; they "
                f"must lie in 0..{len(names) - 1}"
            )
        found = labels.astype(np.int64)
    if not unknown and (missing := np.flatnonzero(found < 0)).size:
        raise ValueError(
            f"{where} image {missing[0]} has no class and cannot be judged; label it or move it "
            "to unlabeled_images"
        )
    return found


def _together(path: Path, images: Sequence[Tensor]) -> Tensor | None:
    if len({part.shape[1:] for part in images}) > 1:
        raise ValueError(
            f"{path}: unlabeled images and train images without a label are of two sizes; set "
            "data.size to resize all"
        )
    return torch.cat(list(images)) if images else None


def _tell_copies(images: Mapping[str, Tensor], labels: Mapping[str, Labels]) -> None:
    copies = Copies("images")
    for name, part in images.items():
        digests = [digest_of(image.tobytes()) for image in part.numpy()]
        copies.add(name, [f"{name}[{i}]" for i in range(len(part))], digests, labels.get(name))
    copies.tell()
