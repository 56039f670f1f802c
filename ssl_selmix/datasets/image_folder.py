"""Your own images: data.root=PATH with train/<class>/*, test/<class>/*, perhaps unlabeled/*."""

from __future__ import annotations

from collections.abc import Sequence
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
    more_roots: list[str] = field(default_factory=list)  # folders of the same kind, added to it
    # side of the views, size×size pixels; None: take small images as they are
    size: int | None = None
    labeled: Counts = field(default_factory=lambda: Counts(largest=1500, rho=100.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=3000, rho=100.0))
    validation: int | float | str = 500
    # Where the images without a class are instead of unlabeled/*: 'shots/**/*.jpg', folders,
    # LIST.txt with a path in each line, or several of these
    unlabeled_from: list[str] = field(default_factory=list)
    # place of decoded images or digests: auto (~/.cache/ssl_selmix), none, a folder
    cache: str = "auto"
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
    roots = [expanded(root) for root in (config.root, *config.more_roots)]
    train, *more = _places(roots, "train")
    names = class_names(train, *more)
    test: Part | None = None
    if not config.test:
        test = _part(roots, "test", names)
    elif found := [root / "test" for root in roots if (root / "test").exists()]:
        warn(f"{found[0]} is not looked at, for data.test={config.test} holds images out")
    held = _part(roots, FOLDER_OF, names) if config.validation == FOLDER else None
    whole = Listed(
        roots[0],
        names,
        (train, *listing(train, names, *more)),
        held,
        test,
        _unlabeled(roots, config),
    )
    return listed.load(whole, config.size, config.cache, config.workers, strict=config.strict)


def _places(roots: Sequence[Path], part: str) -> list[Path]:
    """The folders of a part, or that of the first root if none has it.

    Raises:
        ValueError: a further root is no folder.
    """
    for root in roots[1:]:
        if not root.is_dir():
            raise ValueError(f"no folder {root}; check data.more_roots")
    return [root / part for root in roots if (root / part).is_dir()] or [roots[0] / part]


def _part(roots: Sequence[Path], part: str, names: tuple[str, ...]) -> Part:
    first, *more = _places(roots, part)
    check_same_classes(roots[0] / "train", names, first, class_names(first, *more))
    return first, *listing(first, names, *more)


def _unlabeled(roots: Sequence[Path], config: Config) -> Part | None:
    if config.unlabeled_from:
        if found := [root / UNLABELED for root in roots if (root / UNLABELED).is_dir()]:
            warn(f"{found[0]} is not looked at; name it in data.unlabeled_from, too, to add it")
        place = Path("data.unlabeled_from") / UNLABELED
        return place, unlabeled_from(roots, config.unlabeled_from), None
    if config.unlabeled.shape == "unknown":
        return roots[0] / UNLABELED, unlabeled(*roots), None
    return None
