"""ImageNet-100 photographs, read from data.root with train/<synset>/* and val/<synset>/*."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np

from ssl_selmix.common.paths import expanded
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images import folder
from ssl_selmix.images.cache import folder_of
from ssl_selmix.images.digests import FileImages
from ssl_selmix.splits import Counts, LongTailSplit

ARRANGE = (
    "unpack ILSVRC2012_img_train.tar and the tar of each class into train/<synset>/, and "
    "ILSVRC2012_img_val.tar into val/<synset>/, a folder for each class"
)


@dataclass
class Config(LongTailSplit):
    """The SelMix paper's split, N1 = 433, M1 = 866, both with ρ = 10, but without its overlaps.

    The released code takes the first n_i and the first m_i files of a class, so that every labeled
    image is an unlabeled one too; here they are drawn, and no image is in both unless
    `labeled_in_pool` says so. It takes random halves of the official validation images for
    validation and test, 14 to 36 of a class; here they are 25 and 25 of every class. They come from
    there, because labeled and unlabeled images leave one of the 1,300 training images.
    """

    root: str = ""  # the folder with train/<synset>/* and val/<synset>/*
    classes: str = ""  # empty: the published list; a file with a synset per line; all: as found
    size: int = 224  # side of the views, size×size pixels
    workers: int | None = None  # processes that read images; None: one for each core; 0: none
    # place of the files' digests: auto (~/.cache/ssl_selmix), none, or a folder
    cache: str = "auto"
    strict: bool = True  # refuse a JPEG that is damaged in its middle; false: tell of it, take it
    labeled: Counts = field(default_factory=lambda: Counts(largest=433, rho=10.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=866, rho=10.0))
    validation: int | float | str = 25
    test: int | float | str | None = 25

    def __post_init__(self) -> None:
        """Refuse a size or a number of workers without meaning."""
        super().__post_init__()
        check_settings(self.size, self.workers)
        folder_of(self.cache)


def load(config: Config) -> FileSet:
    """The files of the chosen classes, in sorted order of the classes as in the released code."""
    if not config.root:
        raise ValueError(f"--dataset imagenet100 needs data.root=PATH; {ARRANGE}")
    root = expanded(config.root)
    names = class_names(root, config.classes)
    paths: list[str] = []
    labels, counts = [], []
    for part in ("train", "val"):
        found, of_part = folder.listing(root / part, names)
        paths += found
        labels.append(of_part)
        counts.append(len(found))
    return FileSet(
        train=FileImages.below(root, paths),
        train_labels=np.concatenate(labels),
        class_names=names,
        size=config.size,
        workers=config.workers,
        apart=counts[1],
        memory=folder_of(config.cache),
        strict=config.strict,
    )


def class_names(root: Path, classes: str) -> tuple[str, ...]:
    """The wanted synsets, sorted.

    Raises:
        ValueError: a class has no folder, or the list is none.
    """
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(f"no folder {root / part}; {ARRANGE}")
    wanted = folder.class_names(root / "train") if classes == "all" else listed(classes)
    for part in ("train", "val"):
        missing = [name for name in wanted if not (root / part / name).is_dir()]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(
                f"{root / part} has no folder {missing[0]}{more}; {ARRANGE}, or set data.classes "
                "to a file that lists other classes, or to all"
            )
    return wanted


def listed(classes: str) -> tuple[str, ...]:
    """The synsets of a list, sorted; of the published one if its name is empty."""
    try:
        published = files("ssl_selmix") / "datasets" / "imagenet100_synsets.txt"
        text = expanded(classes).read_text("utf-8") if classes else published.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.classes={classes} cannot be read ({error}); give a file with one synset per "
            "line, or all"
        ) from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    names = tuple(sorted(line for line in lines if line))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"data.classes={classes} lists {len(names)} classes, {len(set(names))} of them "
            "different; list at least 2, each once"
        )
    return names
