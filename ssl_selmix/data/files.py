"""Images that stay in their files and stream through workers, where memory does not hold them.

An algorithm cannot tell the difference. Every step is cut into as many jobs as there are workers,
and each worker decodes and augments its share of every step, two steps ahead of training. The
random numbers of a view come from its seed and the row: the number of workers changes nothing but
the time.

Shapes: N images, n positions among them, S×S pixels of a view.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.augment.augmix import AugMix
from ssl_selmix.common.processes import World, default_workers
from ssl_selmix.data.batch import Batch, SeededDraw, SeededView, Views
from ssl_selmix.data.pool import Normalisation, Pools, ReadyViews
from ssl_selmix.data.targets import on_device
from ssl_selmix.data.workers import Job, Made, Reader, Request, Workers
from ssl_selmix.images.checks import Copies
from ssl_selmix.images.digests import FileImages, hashes

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in units of 0..255
PLAIN = (SeededView("plain", 0),)


@dataclass(frozen=True)
class FilePool:
    """Images in files, which worker processes decode and augment."""

    workers: Workers
    normalise: Normalisation

    @property
    def device(self) -> torch.device:
        """Where network inputs are delivered."""
        return self.normalise.mean.device

    @property
    def shape(self) -> tuple[int, ...]:
        """3×S×S."""
        return (3, self.workers.reader.size, self.workers.reader.size)

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions, decoded by this process, n×3×S×S uint8."""
        return self._now(index, PLAIN)[0]

    def views(self, index: Tensor, views: Sequence[SeededView]) -> Views:
        """Augmented network inputs of the images, all made at once by this process."""
        return ReadyViews(self._now(index, views), self.normalise)

    def _now(self, index: Tensor, views: Sequence[SeededView]) -> list[Tensor]:
        (made,) = self.workers.reader.make((Request(index.tolist(), tuple(views), 0),))
        return [self._deliver([view]) for view in made]

    def plain(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """Un-augmented network inputs in order, in batches of `size`."""
        jobs = (
            (Request(share.tolist(), PLAIN, 0),)
            for part in index.split(size)
            for share in part.tensor_split(self.workers.shares)
        )
        with closing(self.workers.run(jobs)) as results:
            while shares := list(islice(results, self.workers.shares)):
                yield self.normalise(self._deliver([made[0][0] for made in shares]))

    def stream(self, draws: Iterable[SeededDraw], world: World | None) -> Iterator[Batch]:
        """The batches that were drawn, made by the workers in advance.

        Of several processes each decodes its share of a batch; the other rows are black.
        """
        begun: deque[SeededDraw] = deque()

        def jobs() -> Iterator[Job]:
            for seeded in draws:
                begun.append(seeded)
                yield from self._jobs(seeded, world)

        with closing(self.workers.run(jobs())) as results:
            while shares := list(islice(results, self.workers.shares)):
                yield self._batch(begun.popleft(), shares, world)

    def _jobs(self, seeded: SeededDraw, world: World | None) -> Iterator[Job]:
        """The step cut into shares that are alike, so that all workers end together."""
        draw, labeled, unlabeled = seeded
        parts = ((draw.labeled, labeled), (draw.unlabeled, unlabeled))
        start, every = (world.rank, world.size) if world else (0, 1)
        shares = [(r[start::every].tensor_split(self.workers.shares), views) for r, views in parts]
        first = [start, start]
        for i in range(self.workers.shares):
            yield tuple(
                Request(rows[i].tolist(), views, first[part], every)
                for part, (rows, views) in enumerate(shares)
            )
            nums = (len(rows[i]) for rows, _ in shares)
            first = [row + every * num for row, num in zip(first, nums, strict=True)]

    def _batch(self, seeded: SeededDraw, shares: list[Made], world: World | None) -> Batch:
        draw, labeled, unlabeled = seeded
        nums = (len(draw.labeled), len(draw.unlabeled))
        (x, *more), u = (
            [
                _whole(self._deliver([made[part][view] for made in shares]), nums[part], world)
                for view in range(len(views))
            ]
            for part, views in enumerate((labeled, unlabeled))
        )
        return Batch(
            x=self.normalise(x),
            y=draw.y.to(self.device, non_blocking=True),
            u=ReadyViews(u, self.normalise),
            index_u=draw.index_u.to(self.device, non_blocking=True),
            more_x=tuple(map(self.normalise, more)),
            masses=on_device(draw.masses, self.device),
            index_x=on_device(draw.index_x, self.device),
        )

    def _deliver(self, parts: list[Tensor]) -> Tensor:
        """The parts of a batch on the device, as bytes: a fourth of what floats would take."""
        return torch.cat([part.to(self.device, non_blocking=True) for part in parts])


def _whole(own: Tensor, num: int, world: World | None) -> Tensor:
    """A batch of so many images, of which this process has its share."""
    if world is None:
        return own
    whole = torch.zeros(num, *own.shape[1:], dtype=own.dtype, device=own.device)
    whole[world.rank :: world.size] = own
    return whole.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class FileSet:
    """Image files as a data set, at size×size pixels, normalised by the constants of ImageNet.

    What an `ImageSet` is for decoded images. Test images are held out of `train` if there are none
    of their own; `apart` is that of an `ImageSet`.

    Shape: train_labels (N,), test_labels (T,).
    """

    train: FileImages
    train_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    size: int
    test: FileImages | None = None
    test_labels: npt.NDArray[np.int64] | None = None
    extra_unlabeled: FileImages | None = None  # of unknown class
    workers: int | None = None  # processes that read images; None: one for each core
    apart: int = 0
    memory: Path | None = None  # folder that keeps the digests of the files; see `hashes`
    strict: bool = True  # refuse a JPEG that is damaged in its middle
    groups: npt.NDArray[np.int64] | None = None  # as of an ImageSet
    weights: npt.NDArray[np.float64] | None = None  # as of an ImageSet
    shares: npt.NDArray[np.float32] | None = None  # as of an ImageSet
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    strong: AugMix | None = None  # how strong views are mixed; None: they are RandAugment's

    @property
    def image_shape(self) -> tuple[int, ...]:
        """3×S×S."""
        return (3, self.size, self.size)

    @cached_property
    def hashes(self) -> dict[str, list[str]]:
        """SHA-256 of the bytes of every file of train, test and unlabeled, in order."""
        parts = {"train": self.train, "test": self.test, "unlabeled": self.extra_unlabeled}
        return {
            part: hashes(images, self.memory, self.strict)
            for part, images in parts.items()
            if images is not None
        }

    def sha256(self) -> str:
        """Digest of the names below their folder and of the bytes of every file, in order."""
        parts = (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
            ("unlabeled", self.extra_unlabeled, None),
        )
        digest, copies = hashlib.sha256(), Copies()
        for part, images, labels in parts:
            if images is not None:
                found = self.hashes[part]
                copies.add(part, images.paths, found, labels)
                digest.update(f"{len(images)}:".encode())
                for name, of_bytes in zip(images.names, found, strict=True):
                    digest.update(os.fsencode(name) + f"\0{of_bytes}\0".encode())
        copies.tell()
        return digest.hexdigest()

    def preprocessing(self) -> dict[str, Any]:
        """How a file becomes what the network takes: its central square, as `Reader` cuts it."""
        return {
            "kind": "central_square",
            "size": [self.size, self.size],
            "resize": round(self.size * 256 / 224),
            "interpolation": "bilinear",
        }

    def pools(self, device: torch.device) -> Pools:
        """All files in one row: training images, those without a class, a test part of its own.

        One pool, so that one set of workers reads them all.
        """
        parts = (self.train, self.extra_unlabeled, self.test)
        paths = [path for images in parts if images is not None for path in images.paths]
        num = default_workers() if self.workers is None else self.workers
        reader = Reader(paths, self.size, self.strict, self.strong)
        workers = Workers(reader, num, pin=device.type == "cuda")
        pool = FilePool(workers, Normalisation.of(self.mean, self.std, device))
        if self.test is None:
            return pool, None
        return pool, (pool, torch.arange(len(paths) - len(self.test), len(paths)))
