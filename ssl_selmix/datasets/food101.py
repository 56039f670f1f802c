"""Food-101, 101 dishes, by its lists or a long-tailed one: data.root has food-101/ (5 GB)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.download import Archive
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import in_class_folders
from ssl_selmix.data.published import Layout, Published
from ssl_selmix.splits import Counts

ARCHIVE = Archive(
    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    "85eeb15f3717b99a5da872d97d918f87",
    "food-101",
)
LAYOUT = Layout(
    title="Food-101",
    put=f"unpack {ARCHIVE.told} there, or set data.download=true",
    lists={
        "train": [("food-101/meta/train.txt", in_class_folders(".jpg"))],
        "test": [("food-101/meta/test.txt", in_class_folders(".jpg"))],
    },
    numbers={"train": 75_750, "test": 25_250},
    images="food-101/images",
    both_from_test=True,
    named_by_folder=False,
)


@dataclass
class Config(Published):
    """Food-101-LT of CoSSL (Fan et al., CVPR 2022): N1 = 250, M1 = 500, both with ρ = 50.

    A long-tailed list of somebody else: data.train_list=FILE data.labeled.shape=all
    data.labeled.largest=0.
    """

    labeled: Counts = field(default_factory=lambda: Counts(largest=250, rho=50.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=500, rho=50.0))
    # Both of the 250 published test images of a class: N1 and M1 take all of its train images
    validation: int | float | str = 50
    test: int | float | str | None = 200
    root: str = "data"  # the folder that has food-101
    download: bool = False  # whether to fetch and unpack it


def load(config: Config) -> ImageSet | FileSet:
    """The images of the two lists."""
    if config.download and config.root:
        ARCHIVE.fetch(expanded(config.root))
    return published.load(LAYOUT, config)
