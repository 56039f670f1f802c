"""scikit-learn's handwritten digits: 1,797 real 8×8 images, nothing to download."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import ImageSet
from ssl_selmix.splits import Counts, LongTailSplit


@dataclass
class Config(LongTailSplit):
    """Split of the digits; the images come with scikit-learn."""

    labeled: Counts = field(default_factory=lambda: Counts(largest=30, rho=15.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=60, rho=15.0))
    validation: int | float | str = 20
    test: int | float | str | None = 50


def files(config: Config) -> list[Path]:
    """None that a user could change: see `runs.kept`."""
    return []


def load(config: Config) -> ImageSet:
    """The images as uint8; test images are held out by the split."""
    digits = _table()
    images = torch.from_numpy(digits[:, :-1].reshape(-1, 8, 8) * (255 / 16))
    weak = Weak(pad=1, flip=False, padding="zeros")  # a mirrored digit is no digit
    return ImageSet(
        train=images.round().to(torch.uint8)[:, None],
        train_labels=digits[:, -1].astype(np.int64),
        class_names=tuple(map(str, range(10))),
        mean=(77.9,),
        std=(95.9,),
        weak=weak,
        strong=Strong(weak=weak),
    )


def _table() -> np.ndarray:
    """Each row the 64 pixels of an image, 0 to 16, and its class: 1,797×65.

    Read from scikit-learn's folder: importing scikit-learn takes half as long as importing torch.
    """
    found = find_spec("sklearn")
    for place in (found.submodule_search_locations or ()) if found else ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of a version that has its file elsewhere

    data, target = load_digits(return_X_y=True)
    return np.column_stack([data, target])
