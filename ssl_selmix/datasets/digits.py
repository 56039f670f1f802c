"""scikit-learn's handwritten digits: 1,797 real 8×8 images, nothing to download."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def load(config: Config) -> ImageSet:
    """The images as uint8; test images are held out by the split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    weak = Weak(pad=1, flip=False, padding="zeros")  # a mirrored digit is no digit
    return ImageSet(
        train=images,
        train_labels=digits.target,
        class_names=tuple(str(name) for name in digits.target_names),
        mean=(77.9,),
        std=(95.9,),
        weak=weak,
        strong=Strong(weak=weak),
    )
