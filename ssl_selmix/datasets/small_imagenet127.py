"""Small ImageNet-127, 1.28 million images of 32 or 64 pixels in 127 classes: data.root=PATH."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import ImageSet, batches
from ssl_selmix.data.listed import Pooled, pooled
from ssl_selmix.splits import Counts, LongTailSplit

TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))
TEST = "val_data"
WORDS = "synset_words_up_down_127.txt"
NUM_CLASSES = 127
PUT = (
    "put train_data_batch_1 to train_data_batch_10 and val_data there, as YUE-FAN/CoSSL's "
    "prepare_small_imagenet_127 writes them from the downsampled ImageNet of image-net.org"
)


@dataclass
class Config(LongTailSplit):
    """The protocol of CoSSL (Fan et al., CVPR 2022), P-IN127: a tenth of each class is labeled.

    The pool is all train images, the labeled ones too. The test images are ImageNet's validation
    images, whose classes are as skewed as those to train on. 50 images of each class are held out
    of the pool for validation; the published code chooses on test images.
    """

    root: str = ""  # the folder with train_data_batch_1 ... and val_data
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="0.1"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="rest"))
    validation: int | float | str = 50
    labeled_in_pool: bool = True


def files(config: Config) -> list[Path]:
    """What `load` reads: see `runs.kept`."""
    root = expanded(config.root)
    return [root / name for name in (*TRAIN, TEST, WORDS)] if config.root else []


def load(config: Config) -> ImageSet:
    """All images in one array; 4 GB of them at 32 pixels, 16 GB at 64."""
    if not config.root:
        raise ValueError(f"--dataset small_imagenet127 needs data.root=PATH; {PUT}")
    root = expanded(config.root)
    if missing := [name for name in (*TRAIN, TEST) if not (root / name).is_file()]:
        raise ValueError(f"no file {root / missing[0]}; {PUT}")
    train, labels = batches.read([root / name for name in TRAIN], NUM_CLASSES)
    test, test_labels = batches.read([root / TEST], NUM_CLASSES)
    return pooled(Pooled(train, labels, names(root), test=test), test_labels)


def names(root: Path) -> tuple[str, ...]:
    """The 127 names in the published file, if it is beside the images; else numbers."""
    file = root / WORDS
    if not file.is_file():
        return tuple(map(str, range(NUM_CLASSES)))
    found = tuple(line.partition(" ")[2].strip() for line in file.read_text("utf-8").splitlines())
    if len(set(found)) != NUM_CLASSES:
        raise ValueError(
            f"{file} has {len(found)} names, {len(set(found))} of them different, and there are "
            f"{NUM_CLASSES} classes; take the published file, or none"
        )
    return found
