"""Tar shards of key.jpg with key.cls or key.json: data.shards='shards/{000..003}.tar'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ssl_selmix.data import ImageSet, samples, shards
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.samples import Sample


@dataclass
class Config(samples.Config):
    """Where the shards of each part are, and how their images are split."""

    shards: list[str] = field(default_factory=list)  # 'train-{000..003}.tar', 'train/*.tar', a list
    test_shards: list[str] = field(default_factory=list)  # shards of images to test on
    # shards of validation images, for data.validation=folder
    validation_shards: list[str] = field(default_factory=list)
    unlabeled_shards: list[str] = field(default_factory=list)  # whatever labels these have
    image: str = ""  # which of several images with one key is meant, such as left.png
    label: str = ""  # which member or key of key.json has the label; empty: cls, label, class ...


def parts(config: Config) -> Mapping[str, list[Sample]]:
    """The images of every part, of which only the places are looked at.

    Raises:
        ValueError: no shards are named, or one cannot be taken as it is.
    """
    if not config.shards:
        raise ValueError(
            "--dataset webdataset needs data.shards='train-{000..003}.tar', tar files of key.jpg "
            "with key.cls, and data.test_shards, or data.test=0.2 to hold images out"
        )
    named = {
        "train": ("shards", config.shards),
        "validation": ("validation_shards", config.validation_shards),
        "test": ("test_shards", config.test_shards),
        "unlabeled": ("unlabeled_shards", config.unlabeled_shards),
    }
    files = {part: shards.files(f"data.{key}", found) for part, (key, found) in named.items()}
    shards.check_apart({f"data.{key}": files[part] for part, (key, _) in named.items()})
    read = {part: shards.read(found, config.image, config.label) for part, found in files.items()}
    read["unlabeled"] = [sample._replace(label="") for sample in read["unlabeled"]]
    return read


def load(config: Config) -> ImageSet | FileSet:
    """The shards' images as uint8 RGB pools; above 64 px they are read from the shards."""
    return samples.load(where(config), parts(config), config)


def where(config: Config) -> str:
    """What messages call the data set."""
    return ",".join(config.shards)
