"""CIFAR-10 by files of indices, as long-tailed splits are published: data.labeled_index=FILE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssl_selmix.data import ImageSet, indexed
from ssl_selmix.data.download import cifar
from ssl_selmix.data.indexed import Indexed
from ssl_selmix.datasets.cifar10 import MEAN, STD


@dataclass
class Config(Indexed):
    """All images of the first file are labeled, all of the second are the pool."""

    validation: int | float | str = 50


def files(config: Indexed) -> list[Path]:
    """What `load` reads: see `runs.kept`."""
    return indexed.files(config, "cifar-10-batches-py")


def load(config: Config) -> ImageSet:
    """The images that the files name, and all test images."""
    return indexed.select(cifar("CIFAR10", config, MEAN, STD), config)
