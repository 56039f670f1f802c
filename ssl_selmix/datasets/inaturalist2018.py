"""iNaturalist 2018, 8,142 species, by its JSON annotations or lists: data.root=PATH."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import coco, lines
from ssl_selmix.data.published import Layout, Published

# visipedia/inat_comp, 2018, which publishes the MD5 of the archives.
LAYOUT = Layout(
    title="iNaturalist 2018",
    put="unpack train_val2018.tar.gz (MD5 b1c6952ce38f31868cc50ea72d066cc3), train2018.json.tar.gz "
    "(bfa29d89d629cbf04d826a720c0a68b0) and val2018.json.tar.gz (f2ed8bfe3e9901cdefceb4e53cd3775d)"
    " there",
    lists={
        "train": [("train2018.json", coco), ("iNaturalist18_train.txt", lines)],
        "test": [("val2018.json", coco), ("iNaturalist18_val.txt", lines)],
    },
    numbers={"train": 437_513, "test": 24_426},
    named_by_folder=False,
)


@dataclass
class Config(Published):
    """All train images but some for validation are labeled; the published validation is the test.

    That part, 3 images of every species, is what papers report on. Nothing else was published to
    choose weights on, so that a tenth of each species is held out, at most 20 images.
    """

    validation: int | float | str = "0.1,max=20"


def load(config: Config) -> ImageSet | FileSet:
    """The images of the two parts."""
    return published.load(LAYOUT, config)
