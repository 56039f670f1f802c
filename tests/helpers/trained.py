"""Runs small enough to be trained within a test, and photographs for them."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_selmix import cli

SMALL = [
    *("model.name=cnn-4", "supervised.steps=12", "supervised.batch=8"),
    *("supervised.evaluate_every=12", "supervised.lr=0.1", "pictures=false"),
]
FOLDER = [
    *("data.labeled.largest=6", "data.labeled.rho=2", "data.unlabeled.largest=4"),
    *("data.unlabeled.rho=2", "data.validation=4", "data.workers=0", "data.cache=none"),
]


def train(out: Path, *words: str) -> Path:
    """A finished run on the digits, unless the words say otherwise."""
    assert cli.main(["--algo", "supervised", "--out", str(out), *SMALL, *words]) == 0
    return out


def photographs(root: Path) -> Path:
    """Three classes of JPEG files, 14 to train and 9 to test, of unequal sizes; one is turned."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 8
    for label, i in itertools.product(range(3), range(23)):
        pixels = rng.integers(0, 256, (6, 8, 3)) // 2 + 40 * label
        size = (90 + 7 * (i % 3), 76 + i)
        image = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        path = root / ("train" if i < 14 else "test") / "abc"[label] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif if i == 20 else Image.Exif())
    return root


def train_on(root: Path, out: Path, *words: str) -> Path:
    """A finished run on photographs."""
    return train(out, "--dataset", "image_folder", f"data.root={root}", *FOLDER, *words)
