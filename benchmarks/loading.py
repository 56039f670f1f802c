"""How long a run waits for its images: decoded the first time, then from the cache.

    python -m benchmarks.loading

Reads data/{train,test}/<class>/*.jpg if it is there (CIFAR-10 as JPEG files), else 60,000 JPEG
files of 32×32 pixels that it writes to a temporary folder. "Cold" has no cached pool; the files
themselves may be in the system's memory. The cache is a temporary folder, so yours is not touched.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ssl_selmix.datasets import image_folder
from ssl_selmix.images.folder import class_names, listing


@contextmanager
def photographs(root: Path, count: int) -> Iterator[Path]:
    """The folder that is there, or else a temporary one with `count` synthetic images."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        yield root
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as made:
        generator = np.random.default_rng(0)
        for i in range(count):
            part = "test" if i % 6 == 5 else "train"
            folder = Path(made, part, f"class{i // 6 % 10}")
            folder.mkdir(parents=True, exist_ok=True)
            blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"{i:06}.jpg")
        yield Path(made)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pool_table(root: Path, repeats: int) -> None:
    """Print the seconds of loading a folder of small images: cold, and from the cache."""
    with tempfile.TemporaryDirectory() as cache:

        def load() -> None:
            config = image_folder.Config(root=str(root), cache=cache)
            image_folder.load(config)

        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        cold = []
        for _ in range(2):
            for pool in Path(cache).glob("*.pool"):
                pool.unlink()
            cold.append(seconds(load))
        warm = [seconds(load) for _ in range(repeats)]
        size = sum(pool.stat().st_size for pool in Path(cache).glob("*.pool"))
    names = class_names(root / "train")
    files = sum(len(listing(root / part, names)[0]) for part in ("train", "test"))
    print(f"{files} files of {root}, {size >> 20} MiB in the cache")
    print(f"{'':<8}{'runs':>6}{'median s':>10}{'fastest s':>11}")
    again = "cached" if size else "again"  # a few images are not worth a cache
    for name, values in (("cold", cold), (again, warm)):
        middle, least = statistics.median(values), min(values)
        print(f"{name:<8}{len(values):6}{middle:10.2f}{least:11.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description="Time loading of images, cold and cached.")
    parser.add_argument("--root", type=Path, default=Path("data"), help="with train/ and test/")
    parser.add_argument("--count", type=int, default=60_000, help="synthetic images")
    parser.add_argument("--repeats", type=int, default=9, help="timed loads from the cache")
    args = parser.parse_args(argv)
    if args.repeats < 5 or args.count < 600:
        parser.error("a median needs --repeats of 5 or more, and a tail --count of 600")
    torch.set_num_threads(1)
    with photographs(args.root, args.count) as root:
        pool_table(root, args.repeats)


if __name__ == "__main__":
    main()
