"""Sets of the Hugging Face library: --dataset hf:OWNER/NAME[:CONFIG], or data.root=FOLDER."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.data import ImageSet, arrow, samples
from ssl_selmix.data.files import FileSet


@dataclass
class Config(samples.Config):
    """Which set, what its columns and splits are called, and how its images are split."""

    # name on the Hub, OWNER/NAME or OWNER/NAME:CONFIG; --dataset hf:NAME says the same
    name: str = ""
    root: str = ""  # a folder that save_to_disk wrote, or one that load_dataset takes
    revision: str = ""  # branch, tag or commit of the Hub; empty: its newest
    image_column: str = ""  # empty: the one of images, or image, img ...
    label_column: str = ""  # empty: the one of classes, or label, class ...
    train_split: str = ""  # empty: train, training ...
    validation_split: str = ""  # empty: validation, val, valid, dev
    test_split: str = ""  # empty: test, testing, eval ...
    unlabeled_split: str = ""  # empty: unlabeled, unsupervised, extra ...


def read(config: Config) -> arrow.Found:
    """The images of every part, of which only the places are looked at.

    Raises:
        ValueError: no set is named, two are, or it cannot be taken as it is.
    """
    if bool(config.name) == bool(config.root):
        raise ValueError(
            "--dataset hf needs a set of the Hub, --dataset hf:OWNER/NAME, or data.root=FOLDER "
            "that save_to_disk wrote; one of them"
        )
    if config.revision and config.root:
        raise ValueError("data.revision is of a set of the Hub; leave it out beside data.root")
    loaded = (
        arrow.of_folder(config.root) if config.root else arrow.of_hub(config.name, config.revision)
    )
    splits = {part: str(getattr(config, f"{part}_split")) for part in samples.PARTS}
    columns = arrow.Columns(config.image_column, config.label_column)
    return arrow.read(where(config), loaded, splits, columns)


def load(config: Config) -> ImageSet | FileSet:
    """The set's images as uint8 RGB pools; above 64 px they are read from its files."""
    found = read(config)
    return samples.load(where(config), found.parts, config, found.class_names)


def where(config: Config) -> str:
    """What messages call the data set."""
    return config.root or f"hf:{config.name}"
