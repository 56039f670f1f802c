"""CIFAR-100, 32×32 photographs in 100 classes; fetched into data.root (170 MB) unless there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet
from ssl_selmix.data.download import Downloaded, cifar
from ssl_selmix.splits import Counts

MEAN, STD = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)


@dataclass
class Config(Downloaded):
    """The SelMix paper's split: N1 = 150, M1 = 300, both with ρ = 10."""

    labeled: Counts = field(default_factory=lambda: Counts(largest=150, rho=10.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=300, rho=10.0))
    validation: int | float | str = 50


def files(config: Config) -> list[Path]:
    """The unpacked folder: see `runs.kept`."""
    return [expanded(config.root) / "cifar-100-python"]


def load(config: Config) -> ImageSet:
    """50,000 training and 10,000 test images in the 100 fine classes."""
    return cifar("CIFAR100", config, MEAN, STD)
