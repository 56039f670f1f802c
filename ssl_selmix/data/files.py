"""Images that stay in their files and stream through a DataLoader: for what does not fit in memory.

The interface is that of `Data`, so an algorithm cannot tell the difference. Every step is cut into
as many jobs as there are workers, and each worker decodes and augments its share of every step, two
steps ahead of training. The random numbers of a view come from (seed, stage, purpose, step, row):
the number of workers changes nothing but the time.

Shapes: N images, S×S pixels of a view, B labeled and M unlabeled images of a batch.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.common.processes import World, default_workers
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data.batch import Batch, Draw, Views
from ssl_selmix.data.pool import Data
from ssl_selmix.data.source import ImageSet
from ssl_selmix.data.workers import Job, Made, Reader, Request, Workers
from ssl_selmix.images.checks import Copies
from ssl_selmix.images.digests import FileImages, hashes

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in units of 0..255


class _Made:
    """Views that the workers made of one batch of unlabeled images, normalised when asked for."""

    def __init__(self, data: Files, bytes_: list[Tensor]) -> None:
        self._data, self._bytes = data, bytes_
        self._normalised: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, view: int) -> Tensor:
        if view not in self._normalised:
            self._normalised[view] = self._data.normalise(self._bytes[view])
        return self._normalised[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The view of the images at `rows`."""
        images = self._bytes[view]
        return self._data.normalise(images.index_select(0, rows.to(images.device)))


@dataclass(frozen=True)
class Files(Data):
    """`Data` whose images are files; `images` has their shape and no pixels.

    Of several processes each decodes its share of a batch, if `world` is set; the other rows of its
    views are black then. Shape: test (T,) positions of the test images among the files.
    """

    workers: Workers = field(kw_only=True)
    test: Tensor = field(kw_only=True)
    world: World | None = None

    @property
    def device(self) -> torch.device:
        """Where batches are delivered."""
        return self.mean.device

    def shared(self, world: World | None) -> Files:
        """The same data, of whose batches only this process's share is decoded."""
        return replace(self, world=world)

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions without augmentation, N×3×S×S uint8."""
        (made,) = self.workers.reader.make((Request(index.tolist(), (("plain", 0),), 0),))
        return self._deliver([made[0]])

    def weak_view(self, index: Tensor, purpose: str, step: int) -> Tensor:
        """Weakly augmented network input of the images at `index`."""
        request = Request(index.tolist(), self._weak(purpose, step), 0)
        (made,) = self.workers.reader.make((request,))
        return self.normalise(self._deliver([made[0]]))

    def views(self, index: Tensor, names: Sequence[str], step: int) -> Views:
        """Augmented views of the images at `index`, by name, made at once."""
        (made,) = self.workers.reader.make(
            (Request(index.tolist(), self._unlabeled(names, step), 0),)
        )
        return _Made(self, [self._deliver([view]) for view in made])

    def stream(self, draws: Iterable[Draw], views: Sequence[str]) -> Iterator[Batch]:
        """The batches that were drawn, made by the workers in advance."""
        begun: deque[Draw] = deque()

        def jobs() -> Iterator[Job]:
            for draw in draws:
                begun.append(draw)
                yield from self._jobs(draw, views)

        with closing(self.workers.run(jobs())) as results:  # type: ignore[type-var]
            while shares := list(islice(results, self.workers.shares)):
                yield self._batch(begun.popleft(), shares, len(views))

    def plain(self, index: Tensor, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the images at `index`, in order."""
        jobs = (
            (Request(share.tolist(), (("plain", 0),), 0),)
            for part in index.split(size)
            for share in part.tensor_split(self.workers.shares)
        )
        with closing(self.workers.run(jobs)) as results:  # type: ignore[type-var]
            while shares := list(islice(results, self.workers.shares)):
                yield self.normalise(self._deliver([made[0][0] for made in shares]))

    def test_batches(self, rows: Tensor | None = None, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the test images, or of these rows of them, in order."""
        return self.plain(self.test if rows is None else self.test[rows], size)

    def _weak(self, purpose: str, step: int) -> tuple[tuple[str, int], ...]:
        return (("weak", seed_of(self.seed, self.stage, purpose, step)),)

    def _unlabeled(self, names: Sequence[str], step: int) -> tuple[tuple[str, int], ...]:
        for name in names:
            self.augmentation(name)  # which refuses an unknown name
        seeds = (seed_of(self.seed, self.stage, "view", view, step) for view in range(len(names)))
        return tuple(zip(names, seeds, strict=True))

    def _jobs(self, draw: Draw, names: Sequence[str]) -> Iterator[Job]:
        """The step cut into shares that are alike, so that all workers end together."""
        parts = (
            (draw.labeled, self._weak("labeled", draw.step)),
            (draw.unlabeled, self._unlabeled(names, draw.step)),
        )
        start, every = (self.world.rank, self.world.size) if self.world else (0, 1)
        shares = [(r[start::every].tensor_split(self.workers.shares), views) for r, views in parts]
        first = [start, start]
        for i in range(self.workers.shares):
            yield tuple(
                Request(rows[i].tolist(), views, first[part], every)
                for part, (rows, views) in enumerate(shares)
            )
            nums = (len(rows[i]) for rows, _ in shares)
            first = [row + every * num for row, num in zip(first, nums, strict=True)]

    def _batch(self, draw: Draw, shares: list[Made], num_views: int) -> Batch:
        x = self._whole(self._deliver([labeled[0] for labeled, _ in shares]), len(draw.labeled))
        seen = [self._deliver([made[view] for _, made in shares]) for view in range(num_views)]
        u = [self._whole(view, len(draw.unlabeled)) for view in seen]
        return Batch(
            x=self.normalise(x),
            y=draw.y.to(self.device, non_blocking=True),
            u=_Made(self, u),
            index_u=draw.index_u.to(self.device, non_blocking=True),
        )

    def _deliver(self, parts: list[Tensor]) -> Tensor:
        """The parts of a batch on the device, as bytes: a fourth of what floats would take."""
        return torch.cat([part.to(self.device, non_blocking=True) for part in parts])

    def _whole(self, own: Tensor, num: int) -> Tensor:
        """A batch of so many images, of which this process has its share."""
        if self.world is None:
            return own
        whole = torch.zeros(num, *own.shape[1:], dtype=own.dtype, device=own.device)
        whole[self.world.rank :: self.world.size] = own
        return whole.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class FileSet(ImageSet):
    """An `ImageSet` of files; its tensors have the shapes and no pixels, on the device "meta"."""

    train_files: FileImages = field(kw_only=True)
    test_files: FileImages | None = field(kw_only=True)
    extra_files: FileImages | None = field(kw_only=True)  # of unknown class
    num_workers: int = field(kw_only=True)
    memory: Path | None = field(kw_only=True)  # folder that keeps the digests of the files
    strict: bool = field(kw_only=True, default=True)  # refuse damaged JPEGs

    def sha256(self) -> str:
        """Digest of the names below their folder and of the bytes of every file, in order."""
        parts = (
            ("train", self.train_files, self.train_labels),
            ("test", self.test_files, self.test_labels),
            ("unlabeled", self.extra_files, None),
        )
        digest, copies = hashlib.sha256(), Copies()
        for part, images, labels in parts:
            if images is not None:
                found = hashes(images, self.memory, self.strict)
                copies.add(part, images.paths, found, labels)
                digest.update(f"{len(images)}:".encode())
                for name, of_bytes in zip(images.names, found, strict=True):
                    digest.update(os.fsencode(name) + f"\0{of_bytes}\0".encode())
        copies.tell()
        return digest.hexdigest()

    def pools(self, test: Tensor, device: torch.device) -> tuple[type[Data], dict[str, Any]]:
        """All files in one row: training images, those without a class, a test part of its own."""
        paths = self.train_files.paths + (self.extra_files.paths if self.extra_files else [])
        if self.test_files is not None:
            test = torch.arange(len(paths), len(paths) + len(self.test_files))
            paths = paths + self.test_files.paths
        reader = Reader(paths, self.train.shape[-1], self.strict)
        workers = Workers(reader, self.num_workers, pin=device.type == "cuda")
        shape = self.train.shape[1:]
        return Files, {
            "images": torch.empty((len(paths), *shape), dtype=torch.uint8, device="meta"),
            "test_images": torch.empty((len(test), *shape), dtype=torch.uint8, device="meta"),
            "workers": workers,
            "test": test,
        }


Listed = tuple[FileImages, npt.NDArray[np.int64]]  # files and their classes


def file_set(
    train: Listed,
    class_names: tuple[str, ...],
    size: int,
    *,
    test: Listed | None = None,
    extra: FileImages | None = None,
    workers: int | None = None,
    apart: int = 0,
    memory: Path | None = None,
    strict: bool = True,
) -> FileSet:
    """Image files as a data set, at size×size pixels, normalised by the constants of ImageNet.

    Args:
        train: training images and their classes.
        class_names: of all classes.
        size: S, pixels of the views.
        test: the same for a test part of its own; None: it is held out of `train`.
        extra: images of unknown class, for the unlabeled pool.
        workers: processes that read images; None: one for each core.
        apart: see `ImageSet`.
        memory: see `hashes`.
        strict: see `hashes`.
    """
    files, labels = train

    def shapes(num: int) -> Tensor:
        return torch.empty((num, 3, size, size), dtype=torch.uint8, device="meta")

    return FileSet(
        train=shapes(len(files)),
        train_labels=labels,
        class_names=class_names,
        mean=MEAN,
        std=STD,
        test=shapes(len(test[0])) if test is not None else None,
        test_labels=test[1] if test is not None else None,
        extra_unlabeled=shapes(len(extra)) if extra is not None else None,
        apart=apart,
        train_files=files,
        test_files=test[0] if test is not None else None,
        extra_files=extra,
        num_workers=default_workers() if workers is None else workers,
        memory=memory,
        strict=strict,
    )
