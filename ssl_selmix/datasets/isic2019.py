"""ISIC-2019, 25,331 images of skin lesions in 8 classes: data.root has the published files."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import columns_of_ones, csv_table
from ssl_selmix.data.published import Layout, Published

LAYOUT = Layout(
    title="ISIC-2019",
    put="put ISIC_2019_Training_GroundTruth.csv and ISIC_2019_Training_Metadata.csv beside the "
    "folder ISIC_2019_Training_Input of challenge.isic-archive.com",
    lists={
        "train": [
            ("ISIC_2019_Training_GroundTruth.csv", columns_of_ones("ISIC_2019_Training_Input"))
        ]
    },
    numbers={"train": 25_331},
    named_by_folder=False,
)
METADATA = "ISIC_2019_Training_Metadata.csv"


@dataclass
class Config(Published):
    """A fifth of each class for test and a tenth for validation; images of a lesion stay together.

    The published test images have no list of classes that papers share.
    """

    validation: int | float | str = 0.1
    test: int | float | str | None = 0.2
    by_lesion: bool = True  # images of one lesion_id are in one part


def load(config: Config) -> ImageSet | FileSet:
    """The images of the ground truth, without the column UNK, which no image is in."""
    return published.load(LAYOUT, config, _lesions(config) if config.by_lesion else None)


def _lesions(config: Config) -> dict[str, str]:
    """The lesion of every image, empty for one whose lesion nobody recorded."""
    file = expanded(config.lists or config.root) / METADATA
    if not config.root:
        return {}
    if not file.is_file():
        raise ValueError(f"no file {file}; {LAYOUT.put}, or set data.by_lesion=false")
    records = csv_table(file, "image", "lesion_id").records
    return {record["image"]: record["lesion_id"] for _, record in records}
