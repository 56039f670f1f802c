"""Semi-Aves, 200 species of birds with a published pool, by its lists: data.root=PATH."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ssl_selmix.common.rules import one_of
from ssl_selmix.data import ImageSet, published
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.lists import lines
from ssl_selmix.data.published import Layout, Published

# cvl-umass/semi-inat-2020 has the images, cvl-umass/ssl-evaluation, data/semi_aves, the lists.
LAYOUT = Layout(
    title="Semi-Aves",
    put="put l_train.txt, val.txt, test.txt and u_train_in.txt (perhaps u_train_out.txt and "
    "u_train.txt) beside trainval_images, test, u_train_in and u_train_out",
    lists={
        "train": [("l_train.txt", lines)],
        "validation": [("val.txt", lines)],
        "test": [("test.txt", lines)],
    },
    numbers={"train": 3_959, "validation": 2_000, "test": 8_000},
)
POOLS = {"in": ("u_train_in.txt", 26_640), "out": ("u_train_out.txt", 122_208)}
POOLS["both"] = ("u_train.txt", 26_640 + 122_208)


@dataclass
class Config(Published):
    """3,959 labeled images, 10 and 40 of every class for validation and test, and the pool.

    Su et al. (CVPR 2021) train on the validation images as well: data.train_list=l_train_val.txt.
    """

    # which unlabeled images: in, of the 200 species; out, of others; both
    pool: str = one_of(*POOLS)


def load(config: Config) -> ImageSet | FileSet:
    """The images of the lists."""
    name, number = POOLS[config.pool]
    lists = {**LAYOUT.lists, "unlabeled": [(name, lines)]}
    numbers = {**LAYOUT.numbers, "unlabeled": number}
    return published.load(dataclasses.replace(LAYOUT, lists=lists, numbers=numbers), config)
