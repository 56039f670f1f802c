"""ImageNet-LT, 1,000 classes of 1,280 to 5 photographs, by its lists: data.root=PATH."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import lines
from ssl_selmix.data.published import Layout, Published

# Liu et al., CVPR 2019; lists of facebookresearch/classifier-balancing, data/ImageNet_LT.
LAYOUT = Layout(
    title="ImageNet-LT",
    put="put ImageNet_LT_train.txt, _val.txt and _test.txt beside train/<synset>/*.JPEG and "
    "val/<synset>/*.JPEG of ImageNet 2012",
    lists={
        "train": [("ImageNet_LT_train.txt", lines)],
        "validation": [("ImageNet_LT_val.txt", lines)],
        "test": [("ImageNet_LT_test.txt", lines)],
    },
    numbers={"train": 115_846, "validation": 20_000, "test": 50_000},
)


@dataclass
class Config(Published):
    """All 115,846 images are labeled; 20 and 50 of every class are for validation and test."""


def load(config: Config) -> ImageSet | FileSet:
    """The images of the three lists."""
    return published.load(LAYOUT, config)
