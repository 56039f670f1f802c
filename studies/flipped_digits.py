"""Digits of which a share of the training labels is wrong, for the study of the label filter.

    python train.py --algo fixmatch --dataset ./studies/flipped_digits.py model.name=cnn-32 \
        fixmatch.steps=1000 fixmatch.ema=0.99 fixmatch.evaluate_every=100 precision=fp32 \
        fixmatch.label_filter=mixture data.flipped=0.2 data.flip_seed=0 --seed 0

Validation and test images keep their labels. An image in `suspects.csv` is called NUMBER:CLASS, by
its true class. Shapes: N images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ssl_selmix.common.rules import at_least, within
from ssl_selmix.data import ImageSet
from ssl_selmix.datasets import digits
from ssl_selmix.splits import Counts, LongTailSplit

HELD_OUT = {"test": 50, "validation": 20}  # images of each class


@dataclass
class Config(LongTailSplit):
    """How many labels are wrong, and how the images are split."""

    flipped: float = within("[0, 1)", 0.2)  # share of wrong labels
    flip_seed: int = at_least(0, 0)  # which images, and which other class each is given
    labeled: Counts = field(default_factory=lambda: Counts(largest=50, rho=5.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=40, rho=5.0))
    validation: int | float | str = "folder"


def load(config: Config) -> ImageSet:
    """Training images, of which some have another label; validation and test images as they are."""
    whole = digits.load(digits.Config())
    rng = np.random.default_rng(config.flip_seed)
    labels = whole.train_labels
    rank = np.empty(len(labels), dtype=np.int64)  # of each image within its class, at random
    for k in range(10):
        (own,) = np.nonzero(labels == k)
        rank[own] = rng.permutation(len(own))
    test = rank < HELD_OUT["test"]
    held = ~test & (rank < sum(HELD_OUT.values()))
    train = ~test & ~held
    order = np.concatenate([np.nonzero(train)[0], np.nonzero(held)[0]])
    given = labels[order].copy()
    wrong = (rng.random(len(order)) < config.flipped) & train[order]
    other = rng.integers(1, 10, len(order))
    given[wrong] = (given + other)[wrong] % 10
    return replace(
        whole,
        train=whole.train[torch.from_numpy(order)],
        train_labels=given,
        test=whole.train[torch.from_numpy(np.nonzero(test)[0])],
        test_labels=labels[test],
        apart=int(held.sum()),
        # The true class of a wrong label, for whoever reads suspects.csv; no method sees names.
        names=[f"{i}:{labels[i]}" for i in order],
    )
