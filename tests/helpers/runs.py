"""Runs small enough to be trained within a test, and photographs for them."""

import json
from pathlib import Path

from PIL import Image

from ssl_selmix import cli
from tests.helpers.images import photo, photo_tree

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
    photo_tree(root, {"train": 14, "test": 9}, "abc", least=(90, 76))
    exif = Image.Exif()
    exif[0x0112] = 8
    for turned in (root / "test").glob("*/06.jpg"):
        photo(97, 82, seed=6).save(turned, exif=exif)
    return root


def train_on(root: Path, out: Path, *words: str) -> Path:
    """A finished run on photographs."""
    return train(out, "--dataset", "image_folder", f"data.root={root}", *FOLDER, *words)


def unbound(run: Path) -> Path:
    """The run without the digests of its files, which then can be changed as older runs' can."""
    file = run / "results.json"
    if file.exists():
        content = json.loads(file.read_text())
        kept = {key: value for key, value in content.items() if key not in ("files", "sha256")}
        file.write_text(json.dumps(kept))
    return run
