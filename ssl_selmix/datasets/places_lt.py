"""Places-LT, 365 scenes of 4,980 to 5 photographs, by its lists: data.root=PATH."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import lines
from ssl_selmix.data.published import Layout, Published

# Liu et al., CVPR 2019; lists of facebookresearch/classifier-balancing, data/Places_LT.
LAYOUT = Layout(
    title="Places-LT",
    put="put Places_LT_train.txt, _val.txt and _test.txt beside train/<scene>/*.jpg and "
    "val/<scene>/*.jpg of places365_standard",
    lists={
        "train": [("Places_LT_train.txt", lines)],
        "validation": [("Places_LT_val.txt", lines)],
        "test": [("Places_LT_test.txt", lines)],
    },
    numbers={"train": 62_500, "validation": 7_300, "test": 36_500},
)


@dataclass
class Config(Published):
    """All 62,500 images are labeled; 20 and 100 of every class are for validation and test."""


def load(config: Config) -> ImageSet | FileSet:
    """The images of the three lists."""
    return published.load(LAYOUT, config)
