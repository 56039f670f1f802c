"""Images that stay in their files and stream through a DataLoader: for what does not fit in memory.

The interface is that of `Data`, so an algorithm cannot tell the difference. Every step is cut into
as many jobs as there are workers, and each worker decodes and augments its share of every step, two
steps ahead of training. The random numbers of a view come from (seed, stage, purpose, step, row):
the number of workers changes nothing but the time.

Shapes: N images, S×S pixels of a view, B labeled and M unlabeled images of a batch.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_selmix.algorithm import Batch, Views
from ssl_selmix.data import Data, Draw, ImageSet, seed_of
from ssl_selmix.datasets_io import BROKEN_FILE, contents
from ssl_selmix.distributed import World
from ssl_selmix.log import warn

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in units of 0..255
MOST_WORKERS = 16  # of the default; more are taken if asked for


class Request(NamedTuple):
    """Views of some images, which are every so many rows of their batch, from `first` on."""

    rows: list[int]
    views: tuple[tuple[str, int], ...]  # name and seed of each
    first: int
    every: int = 1


Job = tuple[Request, ...]
Made = list[list[Tensor]]  # of each request, each view: n×3×S×S uint8, channels last


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder, in a fixed order."""

    root: Path
    names: tuple[str, ...]  # relative to the root, with forward slashes

    @classmethod
    def below(cls, root: Path, files: Sequence[str]) -> FileImages:
        """These files, whose paths begin with the root."""
        return cls(root, tuple(Path(file).relative_to(root).as_posix() for file in files))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[str]:
        """Where the files are."""
        return [f"{self.root}/{name}" for name in self.names]


class Reader:
    """Makes the views of a job."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        self._paths, self._size = paths, size

    def make(self, job: Job) -> Made:
        """The views of every request.

        Raises:
            ValueError: a file is damaged.
        """
        return [self._views(request) for request in job]

    def _views(self, request: Request) -> list[Tensor]:
        from ssl_selmix.augment import image

        makers = image.views(self._size)
        shape = (len(request.rows), self._size, self._size, 3)
        made = [np.empty(shape, dtype=np.uint8) for _ in request.views]
        for i, row in enumerate(request.rows):
            path = self._paths[row]
            photo = image.Photo(contents(path), path)
            for (name, seed), out in zip(request.views, made, strict=True):
                out[i] = makers[name](photo, (seed, request.first + i * request.every))
        return [torch.from_numpy(array).permute(0, 3, 1, 2) for array in made]


class _Tasks(Dataset[Made | str]):
    """The reader as it runs in a worker."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        # Counts the streams. Shared: what was begun in advance for a stream that is over is left.
        self.turn = multiprocessing.Value("q", lock=False)

    def __getitem__(self, task: tuple[int, Job]) -> Made | str:
        """The views, or what is wrong with a file: of an exception a user would see two traces."""
        turn, job = task
        try:
            made = self._reader.make(job) if turn == self.turn.value else []
        except ValueError as error:
            return str(error)
        for views in made:
            for view in views:
                # Here, for in the thread of torch's queue a full /dev/shm would lose the job, and
                # training would wait for it for ever.
                view.share_memory_()
        return made


def _start_worker(index: int) -> None:
    import cv2

    # A worker is one of many: threads of its own would only be in the way of the others.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C reaches every process; the one that trains answers it and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(made: Made | str) -> Made | str:
    return made


class _Queue(Sampler[tuple[int, Job]]):
    """What the workers do next; exchanged when a stream begins."""

    def __init__(self) -> None:
        self.tasks: Iterator[tuple[int, Job]] = iter(())

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        return self.tasks


class _Crew:
    """A DataLoader whose worker processes outlive a stream of jobs and take on the next."""

    def __init__(self, reader: Reader, workers: int, pin: bool) -> None:
        # Here once, instead of in every worker that is forked: it takes seconds.
        import ssl_selmix.augment.image  # noqa: F401

        self._tasks, self._queue = _Tasks(reader), _Queue()
        with warnings.catch_warnings():
            # More workers than cores are the user's choice; torch would say so at every stream.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            self._loader: DataLoader[Made | str] = DataLoader(
                self._tasks,
                sampler=self._queue,
                batch_size=None,  # a job is a batch already
                collate_fn=_as_is,
                num_workers=workers,
                prefetch_factor=2,
                persistent_workers=True,
                pin_memory=pin,
                worker_init_fn=_start_worker,
                # Without one, starting workers would advance the generator that dropout draws from.
                generator=torch.Generator(),
            )

    def run(self, jobs: Iterator[Job]) -> Iterator[Made]:
        turn = self._tasks.turn.value
        self._queue.tasks = tasks = ((turn, job) for job in jobs)
        try:
            for made in self._loader:
                if isinstance(made, str):
                    raise ValueError(made)
                yield made
        finally:
            self._tasks.turn.value += 1
            # The loader keeps its sampler's iterator, and that the data whose workers these are. In
            # such a circle they would not be stopped in order, and be waited for in vain.
            tasks.close()


class Workers:
    """Processes that make views, started when first needed and kept for the next stream."""

    def __init__(self, reader: Reader, num: int, pin: bool) -> None:
        self.reader, self.num = reader, num
        self._pin = pin
        self._idle: list[_Crew] = []

    @property
    def shares(self) -> int:
        """Into how many jobs a step is cut."""
        return max(1, self.num)

    def run(self, jobs: Iterator[Job]) -> Iterator[Made]:
        """The results, in the order of the jobs, of which some are begun in advance.

        Streams may run side by side: validation, say, in the middle of training. Each has workers
        of its own, which are free for another when it is closed.

        Raises:
            ValueError: a file is damaged, or a worker died.
        """
        if not self.num:
            yield from map(self.reader.make, jobs)
            return
        crew = self._idle.pop() if self._idle else _Crew(self.reader, self.num, self._pin)
        try:
            with closing(crew.run(jobs)) as results:  # type: ignore[type-var]
                yield from results
        except RuntimeError as error:
            if not died(error):
                raise
            raise ValueError(
                f"a worker that reads images died ({str(error).splitlines()[0]}); memory, or the "
                f"shared memory in /dev/shm, is too small for data.workers={self.num}; lower it"
            ) from error
        except GeneratorExit:
            self._idle.append(crew)
            raise
        self._idle.append(crew)


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

    def sha256(self) -> str:
        """Digest of the names below their folder and of the bytes of every file, in order."""
        parts = (self.train_files, self.test_files, self.extra_files)
        digest = hashlib.sha256()
        for images in parts:
            if images is not None:
                digest.update(f"{len(images)}:".encode())
                for name, of_bytes in zip(images.names, hashes(images, self.memory), strict=True):
                    digest.update(os.fsencode(name) + f"\0{of_bytes}\0".encode())
        return digest.hexdigest()

    def pools(self, test: Tensor, device: torch.device) -> tuple[type[Data], dict[str, Any]]:
        """All files in one row: training images, those without a class, a test part of its own."""
        paths = self.train_files.paths + (self.extra_files.paths if self.extra_files else [])
        if self.test_files is not None:
            test = torch.arange(len(paths), len(paths) + len(self.test_files))
            paths = paths + self.test_files.paths
        reader = Reader(paths, self.train.shape[-1])
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
    )


def died(error: Exception) -> bool:
    """Whether a worker was killed or had no shared memory left, as opposed to a mistake in it."""
    text = str(error)
    return "DataLoader worker (pid" in text or "shared memory" in text


def default_workers() -> int:
    """One for each core that this process may use, up to a number that feeds any one device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MOST_WORKERS, cores or 1)


def check_settings(size: int | None, workers: int | None) -> None:
    """Refuse a size or a number of workers without meaning."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, not {workers}; 0 reads in this process")


def hashes(images: FileImages, memory: Path | None) -> list[str]:
    """SHA-256 of the bytes of every file, in order; files that were not seen before are checked.

    Reading all of ImageNet-100 at every start would take minutes. So what was found is kept in the
    folder `memory`, and taken again while size, modification and change time of a file are what
    they were.

    Raises:
        ValueError: a file is missing or damaged.
    """
    place = hashlib.sha256(str(images.root.resolve()).encode()).hexdigest()[:16]
    record = memory / f"file-hashes-{place}.json" if memory is not None else None
    known = _read_hashes(record)
    paths = images.paths
    stamps = [_stamp(path) for path in paths]
    new = [
        i
        for i, (name, stamp) in enumerate(zip(images.names, stamps, strict=True))
        if known.get(name, [None])[:-1] != stamp
    ]
    try:
        with ThreadPoolExecutor(default_workers()) as threads:
            for i, digest in zip(new, threads.map(_digest, [paths[i] for i in new]), strict=True):
                known[images.names[i]] = [*stamps[i], digest]
    finally:  # a damaged file, or Ctrl-C, must not cost what was read before
        if new and record is not None:
            _remember(record, known)
    return [str(known[name][-1]) for name in images.names]


def _remember(record: Path, known: dict[str, list[Any]]) -> None:
    # Of several runs that start together, each writes a file of its own before it is renamed.
    partial = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text(json.dumps(known))
        partial.replace(record)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        warn(f"digests of files are not remembered ({error}); every start reads all of them")


def _read_hashes(path: Path | None) -> dict[str, list[Any]]:
    try:
        known = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(
        isinstance(entry, list) and len(entry) == 4 for entry in known.values()
    )
    return known if sound else {}


def _stamp(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno not in BROKEN_FILE:
            raise  # of the machine
        raise ValueError(
            f"{path} is no readable image ({error.strerror}); remove or replace it"
        ) from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _digest(path: str) -> str:
    from ssl_selmix.augment import image

    content = contents(path)
    image.Photo(content, path)
    return hashlib.sha256(content).hexdigest()
