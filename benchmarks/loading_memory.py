"""What loading a folder of images holds beside the pool that it makes, at its worst moment.

    python -m benchmarks.loading_memory

Writes image files of random pixels to a temporary folder, one test image a class, and loads them in
processes of their own: without a cache, into a cold cache and from a warm one; as training images
alone, and with an unlabeled half and a validation part, which must lie in one row. What is told is
the peak of the process's memory less what it held before. A part of it does not grow with the
images (a sample for the normalising constants), so that two numbers of files are measured and
the line through both is followed to a million. Of a warm cache the system counts mapped pages,
which it takes back when it needs memory. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import apart, forget_peak, peak, resident, table
from ssl_selmix.data import ImageSet
from ssl_selmix.data.pool import MemoryPool
from ssl_selmix.datasets import image_folder
from ssl_selmix.images.find import suffixes

TARGET = 0.2  # of the pool
MILLION = 10**6
ALONE, TOGETHER = "training", "training, unlabeled, validation"
HOW = ("no cache", "cold cache", "warm cache")


def write(root: Path, parts: dict[str, int], size: int) -> None:
    """So many PPM files in each part, training and validation ones in two classes."""
    rng, header = np.random.default_rng(0), f"P6 {size} {size} 255\n".encode()
    for part, count in parts.items():
        classes = [root / part / name for name in ("a", "b")] if part != "unlabeled" else []
        folders = classes or [root / part]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, 3 * size * size, dtype=np.uint8).tobytes()
            (folders[i % len(folders)] / f"{i:07d}.ppm").write_bytes(header + pixels)


def memory_of_loading(root: Path, cache: str) -> tuple[int, int]:
    """Bytes of the pool, and those that were held at most while it was made."""
    torch.set_num_threads(1)
    suffixes()  # imports Pillow and its formats, which are no images
    config = image_folder.Config(root=str(root), cache=cache, validation=1)
    if (root / "validation").exists():
        config = image_folder.Config(root=str(root), cache=cache, validation="folder")
        config.unlabeled.shape = "unknown"
    before = resident()
    forget_peak()
    with contextlib.redirect_stdout(io.StringIO()):
        source = image_folder.load(config)
        assert isinstance(source, ImageSet)
        source.sha256()
        pool, _ = source.pools(torch.device("cpu"))
        assert isinstance(pool, MemoryPool)
    return pool.images.nbytes, peak() - before


def parts_of(kind: str, count: int) -> dict[str, int]:
    """Images of each folder."""
    if kind == ALONE:
        return {"train": count, "test": 2}
    # As many training images that the sample for the constants has 5,000 with either number.
    half, eighth = count // 2, count // 8
    return {"train": half, "unlabeled": half - eighth, "validation": eighth, "test": 2}


def measured(kind: str, count: int, size: int) -> list[tuple[int, int]]:
    """Pool and peak by each of HOW, of so many new files."""
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "images"), str(Path(folder, "cache"))
        write(root, parts_of(kind, count), size)
        places = {"no cache": "none", "cold cache": cache, "warm cache": cache}
        return [apart(memory_of_loading, root, places[how]) for how in HOW]


def main() -> None:
    """Measure with two numbers of files and draw the line through both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60_000, help="a multiple of 30,000")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    few, rows, worst = args.count // 3, [], 0.0
    for kind in (ALONE, TOGETHER):
        both = zip(*(measured(kind, n, args.size) for n in (few, args.count)), strict=True)
        for how, ((_, small), (pool, large)) in zip(HOW, both, strict=True):
            each = (large - small) / (args.count - few)
            ratio = (large + each * (MILLION - args.count)) / (pool / args.count * MILLION)
            worst = max(worst, ratio - 1)
            sizes = (f"{pool / 1e6:,.0f} MB", f"{large / 1e6:,.0f} MB")
            rows.append([kind, how, *sizes, f"{each - pool / args.count:,.0f} B", f"{ratio:.2f}"])
    head = ["images", "cache", "pool", "peak", "beside each", "peak / pool of 10^6"]
    print(f"{args.count:,} images of {args.size} px, and a third of them\n")
    print(table(head, rows))
    verdict = "met" if worst <= TARGET else "missed"
    print(f"\nat most {1 + TARGET:.2f} times the pool is the aim: {verdict}")


if __name__ == "__main__":
    main()
