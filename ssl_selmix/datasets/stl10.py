"""STL-10, 10 classes and 100,000 images of unknown class; fetched into data.root (2.6 GB)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet
from ssl_selmix.data.download import STRONG, WEAK, Downloaded, open_part, pool
from ssl_selmix.splits import Counts

MEAN, STD = (112.3, 108.9, 98.3), (68.5, 66.6, 68.4)
LARGEST = 96  # pixels, the size of the files
# The file with the names is the only one without a published checksum, and torchvision may do
# without it; the order is that of the labels.
CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)


@dataclass
class Config(Downloaded):
    """The SelMix paper's split, N1 = 450 with ρ = 10, but for its validation images.

    The released code validates on 45 to 50 images per class out of the labeled training images
    themselves. Here 50 per class are held out, and no image is in two parts. The unlabeled pool is
    the official one, whose classes nobody knows: `unlabeled.shape=unknown`.
    """

    labeled: Counts = field(default_factory=lambda: Counts(largest=450, rho=10.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    validation: int | float | str = 50
    size: int = 32  # the images are resized to size×size pixels, before any augmentation

    def __post_init__(self) -> None:
        """Refuse a size that only invents pixels."""
        super().__post_init__()
        if not 8 <= self.size <= LARGEST:
            raise ValueError(f"size must be 8 to {LARGEST} pixels, not {self.size}")


def files(config: Config) -> list[Path]:
    """The unpacked folder: see `runs.kept`."""
    return [expanded(config.root) / "stl10_binary"]


def load(config: Config) -> ImageSet:
    """5,000 training, 8,000 test and, if the split wants them, 100,000 unlabeled images."""
    train, test = (open_part("STL10", config, split=part) for part in ("train", "test"))
    extra = None
    if config.unlabeled.shape == "unknown":
        extra = pool(open_part("STL10", config, split="unlabeled").data, config.size)
    return ImageSet(
        train=pool(train.data, config.size),
        train_labels=train.labels.astype(np.int64),
        test=pool(test.data, config.size),
        test_labels=test.labels.astype(np.int64),
        extra_unlabeled=extra,
        class_names=CLASSES,
        mean=MEAN,
        std=STD,
        weak=WEAK,
        strong=STRONG,
    )
