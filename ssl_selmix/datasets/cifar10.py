"""CIFAR-10, 32×32 photographs in 10 classes; fetched into data.root (170 MB) unless it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet
from ssl_selmix.data.download import Downloaded, cifar
from ssl_selmix.splits import Counts

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@dataclass
class Config(Downloaded):
    """The SelMix paper's split: N1 = 1500, M1 = 3000, both with ρ = 100.

    The paper validates on the same number of images and their mirror images; here they are not
    counted twice.
    """

    labeled: Counts = field(default_factory=lambda: Counts(largest=1500, rho=100.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=3000, rho=100.0))
    validation: int | float | str = 500


def files(config: Config) -> list[Path]:
    """The unpacked folder: see `runs.kept`."""
    return [expanded(config.root) / "cifar-10-batches-py"]


def load(config: Config) -> ImageSet:
    """50,000 training and 10,000 test images."""
    return cifar("CIFAR10", config, MEAN, STD)
