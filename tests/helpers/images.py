"""Folders of image files as users have them: noise whose pixels are known, and photographs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Counts = Mapping[str, int]  # images of each class by part, such as {"train": 4, "test": 1}


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Independent pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def seed_of(part: str, label: int, index: int) -> int:
    """The seed of an image that `noise_tree` wrote."""
    return 100 * label + 10 * index + len(part)


def write(path: Path, pixels: Pixels) -> None:
    """An image file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise_tree(
    root: Path, counts: Counts, shape: Sequence[int] = (8, 8, 3), classes: Sequence[str] = ()
) -> Path:
    """Write `root/part/class/0.png` and so on, all of one shape; cats and dogs without classes."""
    for part, count in counts.items():
        for label, name in enumerate(classes or ("cat", "dog")):
            for i in range(count):
                pixels = noise(*shape, seed=seed_of(part, label, i))
                write(root / part / name / f"{i}.png", pixels)
    return root


def photo(width: int = 40, height: int = 30, seed: int = 0, shade: int = 0) -> Image.Image:
    """Smooth noise, brighter by the shade."""
    pixels = np.random.default_rng(seed).integers(0, 128, (6, 8, 3)) + shade
    size = (width, height)
    return Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def photo_tree(
    root: Path,
    counts: Counts,
    classes: Sequence[str],
    least: tuple[int, int] = (60, 48),
    name: str = "{i:02}.jpg",
) -> Path:
    """Write `root/part/class/00.jpg` and so on, of unequal sizes; classes differ in brightness.

    Args:
        root: the folder.
        counts: images of each class by part; a part "" has its classes directly below the root.
        classes: their names, at most four.
        least: pixels of the smallest image, width and height.
        name: of a file, by its number `i` and its class.
    """
    for part, count in counts.items():
        for label, kind in enumerate(classes):
            for i in range(count):
                size = (least[0] + 7 * (i % 3), least[1] + i)
                path = root / part / kind / name.format(i=i, kind=kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(*size, seed=seed_of(part, label, i), shade=40 * label).save(path)
    return root
