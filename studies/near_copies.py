"""How many near copies `ssl-selmix data` finds, and how many pairs of different images it names.

    python -m studies.near_copies FOLDER --images 1000

Every image is changed in one way, and looked for among all images and all changed ones.

Shapes: N images.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from ssl_selmix.audit import near
from ssl_selmix.images.find import find

Change = Callable[[Image.Image], Image.Image]
Z = 1.96  # of the normal distribution, for 95 %


def _jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        out = io.BytesIO()
        image.save(out, "jpeg", quality=quality)
        return Image.open(io.BytesIO(out.getvalue())).convert("RGB")

    return change


def _resized(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        size = tuple(round(factor * side) for side in image.size)
        return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)

    return change


def _cut(share: float) -> Change:
    """A share of width and height cut off, half at each end; the rest at the former size."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = share * width / 2, share * height / 2
        box = (x, y, width - x, height - y)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return change


def _brighter(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


CHANGES: Mapping[str, Change] = {
    **{f"JPEG, quality {quality}": _jpeg(quality) for quality in (90, 70, 30)},
    **{f"resized to {percent} %": _resized(percent / 100) for percent in (50, 75, 200)},
    **{f"{share} % of each side cut off": _cut(share / 100) for share in (2, 5, 10)},
    "mirrored": ImageOps.mirror,
    **{f"brightness × {factor}": _brighter(factor) for factor in (0.7, 0.9, 1.1, 1.3)},
}


def interval(found: int, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(limit, 3) for limit in interval(50, 100)]
    [0.404, 0.596]
    """
    share, square = found / num, Z * Z / num
    middle = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / num + square / (4 * num)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def counted(originals: npt.NDArray[np.uint8], changed: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Of the miniatures N×8×9: copies that are found, and pairs of different images besides."""
    num = len(originals)
    pairs = near.pairs(np.concatenate([originals, changed]))
    own = (pairs[:, 1] - pairs[:, 0]) == num
    across = (pairs[:, 0] < num) & (pairs[:, 1] >= num)
    return int((own & across).sum()), int((~own & across).sum())


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="images, also in sub-folders")
    parser.add_argument("--images", type=int, default=1000, help="how many of them, drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    args = parser.parse_args(words)
    files, _ = find([args.folder])
    drawn = np.random.default_rng(args.seed).permutation(len(files))[: args.images]
    images = [Image.open(files[i]).convert("RGB") for i in sorted(drawn.tolist())]
    originals = np.stack([near.miniature(image) for image in images])
    num = len(images)
    alarms = len(near.pairs(originals))
    print(f"{num} images, {num * (num - 1) // 2} pairs of different ones, {alarms} named")
    print(f"{int(near.flat(originals).sum())} of them are nearly of one colour and not compared\n")
    print("change                    found of 100   95 % interval   pairs of different images")
    for name, change in CHANGES.items():
        found, wrong = counted(originals, np.stack([near.miniature(change(i)) for i in images]))
        low, high = (100 * limit for limit in interval(found, num))
        print(f"{name:25} {100 * found / num:12.1f}   {low:5.1f} to {high:5.1f}   {wrong:24}")


if __name__ == "__main__":
    main()
