"""CIFAR by files of indices: which of torchvision's train images are labeled, which are the pool.

Shapes: n positions in the N train images.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ssl_selmix.common.paths import expanded
from ssl_selmix.common.rules import one_of
from ssl_selmix.data.download import Downloaded
from ssl_selmix.data.source import ImageSet, joined
from ssl_selmix.splits import FOLDER, Counts

Positions = npt.NDArray[np.int64]
KINDS = (".npy", ".txt", ".json")


@dataclass
class Indexed(Downloaded):
    """Files of positions in the train images: .npy, .json, or .txt with numbers between spaces."""

    labeled_index: str = ""  # the labeled images
    unlabeled_index: str = ""  # the pool, whose labels are not looked at; may repeat labeled images
    # The validation images, with data.validation=folder; empty: drawn, see validation_from
    validation_index: str = ""
    # others: validation images are those in neither file; labeled: they are held out of the labeled
    validation_from: str = one_of("others", "labeled")
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="all"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    validation: int | float | str = 50

    def __post_init__(self) -> None:
        """Refuse a list of validation images that is not used."""
        super().__post_init__()
        if bool(self.validation_index) != (self.validation == FOLDER):
            raise ValueError(
                f"validation_index={self.validation_index or 'null'} goes with validation=folder, "
                f"and validation={self.validation} draws images; set both or none"
            )


def files(config: Indexed, folder: str) -> list[Path]:
    """The unpacked folder and the files of positions: see `runs.kept`."""
    lists = (config.labeled_index, config.unlabeled_index, config.validation_index)
    return [expanded(config.root) / folder, *(expanded(name) for name in lists if name)]


def select(whole: ImageSet, config: Indexed) -> ImageSet:
    """The images that the files name, in the order of the data set.

    Raises:
        ValueError: names the file, the entry, the value and the remedy.
    """
    if not config.labeled_index:
        raise ValueError(
            "data.labeled_index=FILE is missing, the positions of the labeled images in the train "
            f"images; give one of {', '.join(KINDS)}"
        )
    num = len(whole.train)
    labeled = read(expanded(config.labeled_index), num)
    pool = read(expanded(config.unlabeled_index), num) if config.unlabeled_index else None
    taken = labeled if pool is None else np.union1d(labeled, pool)
    if config.validation_index:
        held = read(expanded(config.validation_index), num)
        if (both := np.intersect1d(held, taken)).size:
            raise ValueError(
                f"{config.validation_index}: image {both[0]} is to train on as well; remove it "
                "from one of the files"
            )
    elif config.validation_from == "others":
        held = np.setdiff1d(np.arange(num), taken)
    else:
        held = labeled[:0]
    train, apart = (whole.train[torch.from_numpy(places)] for places in (labeled, held))
    own = np.concatenate([labeled, held])
    use_pool = pool is not None and config.unlabeled.shape == "unknown"
    return dataclasses.replace(
        whole,
        train=joined(train, apart),
        train_labels=whole.train_labels[own],
        apart=len(held),
        extra_unlabeled=whole.train[torch.from_numpy(pool)] if use_pool else None,
    )


def read(file: Path, num: int) -> Positions:
    """The positions in a file, sorted.

    Args:
        file: of positions.
        num: of images that there are.

    Raises:
        ValueError: names the entry, the value and the remedy.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}; check the path")
    found = _numbers(file)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise ValueError(
            f"{file} holds no row of whole numbers but {found.shape} of {found.dtype}; save "
            "positions from 0 on"
        )
    outside = np.flatnonzero((found < 0) | (found >= num))
    if outside.size:
        raise ValueError(
            f"{file}, entry {outside[0] + 1}: {found[outside[0]]} is no position among {num} train "
            f"images; count from 0 to {num - 1}"
        )
    unique, first = np.unique(found, return_index=True)
    if len(unique) < len(found):
        again = np.setdiff1d(np.arange(len(found)), first)[0]
        raise ValueError(
            f"{file}, entry {again + 1}: {found[again]} is there twice; keep one of the two"
        )
    positions: Positions = unique.astype(np.int64)
    return positions


def _numbers(file: Path) -> npt.NDArray[Any]:
    """What is in the file, as an array of any kind; nothing is unpickled."""
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{file} is none of {', '.join(KINDS)}; convert it")
    try:
        if kind == ".npy":
            loaded: npt.NDArray[Any] = np.load(file, allow_pickle=False)
            return loaded
        text = file.read_text("utf-8-sig")
        values = json.loads(text) if kind == ".json" else [int(word) for word in text.split()]
    except (OSError, ValueError, RecursionError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{file} cannot be read ({reason}); save positions from 0 on") from error
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise ValueError(f"{file} is no list of whole numbers; save positions from 0 on")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"{file}: {max(values, key=abs)} is no position; count from 0") from error
