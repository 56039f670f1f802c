"""From lists of image files to a data set: decoded if they are small, as files if they are not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.source import ImageSet, joined
from ssl_selmix.images.cache import PoolCache, folder_of
from ssl_selmix.images.digests import FileImages
from ssl_selmix.images.folder import LARGEST, Part, Reading, read_files, read_together
from ssl_selmix.images.pieces import Piece

Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Listed:
    """The image files of a data set, in the order in which they count.

    A part's folder is what messages call it; its name is that of the part.

    Attributes:
        root: below which all files lie.
        class_names: K names.
        train: files with their classes.
        validation: those of a validation part of its own, if it is to be used.
        test: those of a test part of its own; None: test images are held out of train.
        unlabeled: files whose class nobody knows, without classes.
        groups: of each train and validation image, (N,); images of one group stay together.
        weights: of each of them in the labeled loss, (N,).
        shares: of the annotators of each of them that are for each class, N×K.
    """

    root: Path
    class_names: tuple[str, ...]
    train: Part
    validation: Part | None = None
    test: Part | None = None
    unlabeled: Part | None = None
    groups: Labels | None = None
    weights: Weights | None = None
    shares: npt.NDArray[np.float32] | None = None


def load(
    listed: Listed, size: int | None, cache: str, workers: int | None, *, strict: bool
) -> ImageSet | FileSet:
    """As uint8 RGB pools, decoded or found in the cache; above 64 px as files.

    Args:
        listed: which files.
        size: of the views, size×size pixels; None: small images as they are.
        cache: auto, none or a folder, for decoded images or digests.
        workers: processes that read large images; None: one for each core.
        strict: refuse a JPEG that is damaged in its middle.

    Raises:
        ValueError: a file is no whole image, or sizes are unequal.
    """
    if size is not None and size > LARGEST:
        return _streamed(listed, size, folder_of(cache), workers, strict)
    return _decoded(listed, Reading(size, PoolCache(folder_of(cache)), strict))


def _decoded(listed: Listed, how: Reading) -> ImageSet:
    own = [p for p in (listed.train, listed.validation, listed.unlabeled) if p is not None]
    found = dict(zip((part[0].name for part in own), read_together(own, how), strict=True))
    train = found[listed.train[0].name]
    held = found[listed.validation[0].name] if listed.validation else None
    extra = found[listed.unlabeled[0].name] if listed.unlabeled else None
    test = read_files(*listed.test[:2], how, listed.test[2]) if listed.test else None
    how.copies.tell()
    whole = pooled(
        Pooled(train, _labels(listed), listed.class_names, held, test, extra, listed.groups),
        listed.test[2] if listed.test else None,
    )
    return replace(whole, weights=listed.weights, shares=listed.shares)


class Pooled(NamedTuple):
    """Decoded images of each part, N×C×H×W uint8; train_labels are of train and validation."""

    train: Tensor
    train_labels: Labels
    class_names: tuple[str, ...]
    validation: Tensor | None = None
    test: Tensor | None = None
    unlabeled: Tensor | None = None
    groups: Labels | None = None


def pooled(found: Pooled, test_labels: Labels | None) -> ImageSet:
    """A data set of decoded images, normalised by the mean and deviation of the train images.

    Raises:
        ValueError: parts differ in size, or images are too small to be shifted.
    """
    train, held = found.train, found.validation
    others = {"validation": held, "test": found.test, "unlabeled": found.unlabeled}
    for part, images in others.items():
        if images is not None and images.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"train images are {tuple(train.shape[2:])} and {part} images "
                f"{tuple(images.shape[2:])} pixels; set data.size to resize all"
            )
    apart = 0 if held is None else len(held)
    train = train if held is None else joined(train, held)
    weak, smallest = Weak(), min(train.shape[2:])
    if smallest <= weak.pad:
        raise ValueError(
            f"images must have more than {weak.pad} pixels a side, by which they are shifted, "
            f"not {smallest}; set data.size=32, say"
        )
    seen = train[: len(train) - apart]
    sample = seen[:: max(1, len(seen) // 5000)].transpose(0, 1).flatten(1).double()
    return ImageSet(
        train=train,
        train_labels=found.train_labels,
        test=found.test,
        test_labels=test_labels,
        extra_unlabeled=found.unlabeled,
        class_names=found.class_names,
        mean=tuple(sample.mean(1).tolist()),
        std=tuple(sample.std(1).clamp_min(1).tolist()),
        weak=weak,
        strong=Strong(weak=weak),
        apart=apart,
        groups=found.groups,
    )


def _streamed(
    listed: Listed, size: int, memory: Path | None, workers: int | None, strict: bool
) -> FileSet:
    def files(*parts: Part | None) -> FileImages | None:
        found: list[str] = [file for part in parts if part is not None for file in part[1]]
        if not found:
            return None
        # Those of the pool may be elsewhere, and pieces of files have names of their own.
        here = isinstance(found[0], Piece) or all(
            Path(file).is_relative_to(listed.root) for file in found
        )
        common = None if here else os.path.commonpath([os.path.dirname(file) for file in found])
        return FileImages.below(listed.root if common is None else Path(common), found)

    train = files(listed.train, listed.validation)
    assert train is not None
    return FileSet(
        train=train,
        train_labels=_labels(listed),
        class_names=listed.class_names,
        size=size,
        test=files(listed.test),
        test_labels=listed.test[2] if listed.test else None,
        extra_unlabeled=files(listed.unlabeled),
        workers=workers,
        memory=memory,
        strict=strict,
        apart=len(listed.validation[1]) if listed.validation else 0,
        groups=listed.groups,
        weights=listed.weights,
        shares=listed.shares,
    )


def _labels(listed: Listed) -> Labels:
    parts: Sequence[Part | None] = (listed.train, listed.validation)
    return np.concatenate([p[2] for p in parts if p is not None and p[2] is not None])
