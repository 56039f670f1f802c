"""Your own images: data.root=PATH with train/<class>/*, test/<class>/*, perhaps unlabeled/*."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_selmix.common.console import warn
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, listed
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.listed import Listed
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images.cache import folder_of
from ssl_selmix.images.checks import check_same_classes
from ssl_selmix.images.folder import (
    UNLABELED,
    Part,
    class_names,
    listing,
    unlabeled,
    unlabeled_from,
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
    # Where the images without a class are instead of unlabeled/*: 'shots/**/*.jpg', folders, a list
    unlabeled_from: list[str] = field(default_factory=list)
    cache: str = "auto"  # of decoded images or digests: auto (~/.cache/ssl_selmix), none, a folder
    workers: int | None = None  # processes that read images above 64 px; None: one for each core
    strict: bool = True  # refuse a JPEG that is damaged in its middle; false: tell of it, take it

    def __post_init__(self) -> None:
        """Refuse a size or a number of workers without meaning, and a cache without a place."""
        super().__post_init__()
        if self.unlabeled_from and self.unlabeled.shape != "unknown":
            raise ValueError(
                "unlabeled_from names images of unknown class; set data.unlabeled.shape=unknown "
                "data.unlabeled.largest=0, or take --preset image_folder-as-found"
            )
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
    train = (root / "train", *listing(root / "train", names))
    held: Part | None = None
    if config.validation == FOLDER:
        check_same_classes(root / "train", names, root / FOLDER_OF, class_names(root / FOLDER_OF))
        held = (root / FOLDER_OF, *listing(root / FOLDER_OF, names))
    test = (root / "test", *listing(root / "test", names)) if has_test else None
    unknown = config.unlabeled.shape == "unknown"
    extra: Part | None = None
    if config.unlabeled_from:
        if (root / UNLABELED).is_dir():
            warn(
                f"{root / UNLABELED} is not looked at; name it in data.unlabeled_from, too, to "
                "add it"
            )
        place = Path("data.unlabeled_from") / UNLABELED
        extra = (place, unlabeled_from(root, config.unlabeled_from), None)
    elif unknown:
        extra = (root / UNLABELED, unlabeled(root), None)
    found = Listed(root, names, train, held, test, extra)
    return listed.load(found, config.size, config.cache, config.workers, strict=config.strict)
