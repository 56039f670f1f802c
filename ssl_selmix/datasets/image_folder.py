"""Your own images: data.root=PATH with train/<class>/*, test/<class>/*, perhaps unlabeled/*."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.common.console import warn
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.source import joined
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images.cache import PoolCache, folder_of
from ssl_selmix.images.checks import check_same_classes
from ssl_selmix.images.digests import FileImages
from ssl_selmix.images.folder import (
    LARGEST,
    UNLABELED,
    Part,
    Reading,
    class_names,
    listing,
    read,
    read_together,
    unlabeled,
)
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit

FOLDER_OF = "validation"  # where data.validation=folder finds them


@dataclass
class Config(LongTailSplit):
    """Where the images are and how they are split; the counts are the SelMix paper's CIFAR-10."""

    root: str = ""  # the folder with train/<class>/*, perhaps test/<class>/* and unlabeled/*
    size: int | None = None  # of the views, size×size pixels; None: take small images as they are
    labeled: Counts = field(default_factory=lambda: Counts(largest=1500, rho=100.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=3000, rho=100.0))
    validation: int | float | str = 500
    cache: str = "auto"  # of decoded images or digests: auto (~/.cache/ssl_selmix), none, a folder
    workers: int | None = None  # processes that read images above 64 px; None: one for each core
    strict: bool = True  # refuse a JPEG that is damaged in its middle; false: tell of it, take it

    def __post_init__(self) -> None:
        """Refuse a size or a number of workers without meaning, and a cache without a place."""
        super().__post_init__()
        folder_of(self.cache)
        check_settings(self.size, self.workers)


def load(config: Config) -> ImageSet | FileSet:
    """The folders as uint8 RGB pools, decoded or found in the cache; above 64 px as files."""
    if not config.root:
        raise ValueError(
            "--dataset image_folder needs data.root=PATH, a folder with train/<class>/* and "
            "test/<class>/*, or without the second and with data.test=20, say"
        )
    root = expanded(config.root)
    names = class_names(root / "train")
    has_test = not config.test
    if not has_test and (root / "test").exists():
        warn(f"{root / 'test'} is not looked at, for data.test={config.test} holds images out")
    if has_test:
        check_same_classes(root / "train", names, root / "test", class_names(root / "test"))
    if config.size is not None and config.size > LARGEST:
        return _streamed(root, names, config.size, config)
    how = Reading(config.size, PoolCache(folder_of(config.cache)), config.strict)
    parts: list[Part] = [(root / "train", *listing(root / "train", names))]
    if config.validation == FOLDER:
        check_same_classes(root / "train", names, root / FOLDER_OF, class_names(root / FOLDER_OF))
        parts.append((root / FOLDER_OF, *listing(root / FOLDER_OF, names)))
    if config.unlabeled.shape == "unknown":
        parts.append((root / UNLABELED, unlabeled(root), None))
    read_parts = dict(zip((part[0].name for part in parts), read_together(parts, how), strict=True))
    train, held, extra = (read_parts.get(part) for part in ("train", FOLDER_OF, UNLABELED))
    assert train is not None
    test, test_labels = read(root / "test", names, how) if has_test else (None, None)
    how.copies.tell()
    for part, images in ((FOLDER_OF, held), ("test", test), (UNLABELED, extra)):
        if images is not None and images.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"train images are {tuple(train.shape[2:])} and {part} images "
                f"{tuple(images.shape[2:])} pixels; set data.size to resize all"
            )
    labels = [of_part for _, _, of_part in parts if of_part is not None]
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
        train_labels=np.concatenate(labels),
        test=test,
        test_labels=test_labels,
        extra_unlabeled=extra,
        class_names=names,
        mean=tuple(sample.mean(1).tolist()),
        std=tuple(sample.std(1).clamp_min(1).tolist()),
        weak=weak,
        strong=Strong(weak=weak),
        apart=apart,
    )


def _streamed(root: Path, names: tuple[str, ...], size: int, config: Config) -> FileSet:
    train, train_labels = listing(root / "train", names)
    apart = 0
    if config.validation == FOLDER:
        check_same_classes(root / "train", names, root / FOLDER_OF, class_names(root / FOLDER_OF))
        held, held_labels = listing(root / FOLDER_OF, names)
        train, apart = [*train, *held], len(held)
        train_labels = np.concatenate([train_labels, held_labels])
    test, test_labels = ([], None) if config.test else listing(root / "test", names)
    extra = unlabeled(root) if config.unlabeled.shape == "unknown" else []
    return FileSet(
        train=FileImages.below(root, train),
        train_labels=train_labels,
        class_names=names,
        size=size,
        test=FileImages.below(root, test) if test else None,
        test_labels=test_labels,
        extra_unlabeled=FileImages.below(root, extra) if extra else None,
        workers=config.workers,
        memory=folder_of(config.cache),
        strict=config.strict,
        apart=apart,
    )
