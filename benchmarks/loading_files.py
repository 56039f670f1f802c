"""Throughput of a folder of photographs at 224 px: ours against torchvision's PIL transforms.

    OMP_NUM_THREADS=1 python -m benchmarks.loading_files --rounds 7

Both read the same JPEG files of about 500×375 pixels with a DataLoader of two workers and end in
normalised float batches; torchvision decodes once for both views, as we do. The files are made of
CIFAR-10 photographs (data/train/<class>/*.jpg, or smooth noise if there are none), enlarged, with
noise, to some 80 kB. Rounds alternate between the pipelines, so that a busy machine slows all
alike; workers are started before the clock is. The table shows medians, of images a second and of
the processor time that an image costs in all processes together (Linux only).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets, transforms

from benchmarks.photographs import jpeg, smooth_noise
from ssl_selmix.algorithm import Batch
from ssl_selmix.data import Data, assemble
from ssl_selmix.data.batch import Draw
from ssl_selmix.data.files import MEAN, STD, FileSet
from ssl_selmix.images.digests import FileImages
from ssl_selmix.splits import Counts, LongTailSplit

SIZE, BATCH = 224, 64


def write_photographs(root: Path, source: Path, count: int) -> None:
    """`count` JPEG files in two class folders."""
    rng = np.random.default_rng(0)
    small = sorted(source.glob("*/*.jpg"))
    for i in range(count):
        if small:
            with Image.open(small[int(rng.integers(len(small)))]) as opened:
                image = opened.convert("RGB")
        else:
            image = smooth_noise(rng)
        folder = root / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:05d}.jpg").write_bytes(jpeg(image, rng, upright=i % 4 == 0))


class Ours:
    """Our pipeline over all files, once per call."""

    def __init__(self, root: Path, views: tuple[str, ...], workers: int) -> None:
        paths = sorted(map(str, root.glob("*/*.jpg")))
        labels = np.asarray(["class1" in path for path in paths], dtype=np.int64)
        images = FileImages.below(root, paths)
        source = FileSet(images, labels, ("class0", "class1"), SIZE, workers=workers)
        split = LongTailSplit(Counts(1), Counts(1), validation=1, test=1).draw(labels, 2, seed=0)
        data, _ = assemble(source, split, seed=0, device=torch.device("cpu"))
        self.data: Data = data
        self.views, self.num = views, len(paths)

    def _draws(self) -> Iterator[Draw]:
        none = torch.empty(0, dtype=torch.int64)
        for step, rows in enumerate(torch.randperm(self.num).split(BATCH)):
            yield Draw(step, labeled=none, y=none, unlabeled=rows, index_u=rows)

    def __call__(self) -> None:
        """Read every file."""
        batches: Iterable[Batch] = self.data.stream(self._draws(), self.views)
        for batch in batches:
            for view in range(len(self.views)):
                batch.u[view].shape  # noqa: B018  # asking for it normalises it


class _Views:
    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [step(image) for step in self.steps]


class Theirs:
    """torchvision's ImageFolder, PIL transforms and DataLoader over all files, once per call."""

    def __init__(self, root: Path, views: tuple[str, ...], workers: int) -> None:
        crop = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        scale = ([m / 255 for m in MEAN], [s / 255 for s in STD])
        end = [transforms.ToTensor(), transforms.Normalize(*scale)]
        kinds = {
            "weak": transforms.Compose([*crop, *end]),
            "strong": transforms.Compose([*crop, transforms.RandAugment(num_ops=3), *end]),
        }
        self.loader = torch.utils.data.DataLoader(
            datasets.ImageFolder(str(root), _Views([kinds[view] for view in views])),
            BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
        )

    def __call__(self) -> None:
        """Read every file."""
        for _ in self.loader:
            pass


def cpu_seconds() -> float:
    """Processor time of this process and its workers so far."""
    total = 0.0
    for pid in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        try:
            times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        total += (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(
    calls: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds per call, after one untimed round that starts the workers."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            cpu, start = cpu_seconds(), time.perf_counter()
            call()
            if i:
                seconds[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, write the files, time, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photographs", type=Path, default=Path("data/train"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, args.photographs, args.images)
        files = list(root.glob("*/*.jpg"))
        kilobytes = sum(map(os.path.getsize, files)) / len(files) / 1000
        print(f"{len(files)} files of {kilobytes:.0f} kB on average, {args.workers} workers")
        kinds = {"weak": ("weak",), "weak + strong": ("weak", "strong")}
        calls: dict[str, Callable[[], None]] = {}
        for name, views in kinds.items():
            calls[f"{name}, ours"] = Ours(root, views, args.workers)
            calls[f"{name}, torchvision"] = Theirs(root, views, args.workers)
        seconds = measure(calls, args.rounds)
    print(f"{'views':14} {'measure':12} {'ours':>8} {'torchvision':>12} {'ratio':>6}  per round")
    for name in kinds:
        ours, theirs = (np.array(seconds[f"{name}, {who}"]) for who in ("ours", "torchvision"))
        ratios = theirs / ours
        for column, unit in enumerate(("images/s", "CPU ms/image")):
            found = [statistics.median(part[:, column]) / len(files) for part in (ours, theirs)]
            shown = [1000 * cost if column else 1 / cost for cost in found]
            spread = f"{ratios[:, column].min():.2f} to {ratios[:, column].max():.2f}"
            row = f"{name:14} {unit:12} {shown[0]:8.2f} {shown[1]:12.2f}"
            print(f"{row} {np.median(ratios[:, column]):6.2f}  {spread}")


if __name__ == "__main__":
    main()
