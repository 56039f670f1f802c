"""SUN397, 397 scenes of 2,361 to 100 photographs: data.root has SUN397/ (37 GB)."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.download import Archive
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import class_folders
from ssl_selmix.data.published import Layout, Published

ARCHIVE = Archive(
    "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
    "8ca2778205c41d23104230ba66911c7a",
    "SUN397",
)
LAYOUT = Layout(
    title="SUN397",
    put=f"unpack {ARCHIVE.told} there, or set data.download=true",
    lists={"train": [("SUN397/ClassName.txt", class_folders)]},
    numbers={"train": 108_754},
    images="SUN397",
    named_by_folder=False,
)


@dataclass
class Config(Published):
    """All images are labeled but 50 of every class for test and a tenth for validation.

    The tail is the data set's own. The official partitions are balanced and leave most images out.
    """

    validation: int | float | str = "0.1,max=20"
    test: int | float | str | None = 50
    root: str = "data"  # the folder that has SUN397
    download: bool = False  # whether to fetch and unpack it


def load(config: Config) -> ImageSet | FileSet:
    """The images of the class folders, which ClassName.txt lists."""
    if config.download and config.root:
        ARCHIVE.fetch(expanded(config.root))
    return published.load(LAYOUT, config)
