"""Worker processes that decode and augment the images of files, in advance and in order."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_selmix.images.decode import contents


class Request(NamedTuple):
    """Views of some images, which are every so many rows of their batch, from `first` on."""

    rows: list[int]
    views: tuple[tuple[str, int], ...]  # name and seed of each
    first: int
    every: int = 1


Job = tuple[Request, ...]
Made = list[list[Tensor]]  # of each request, each view: n×3×S×S uint8, channels last


class Reader:
    """Makes the views of a job."""

    def __init__(self, paths: Sequence[str], size: int, strict: bool = True) -> None:
        self._paths, self._size, self._strict = paths, size, strict

    def make(self, job: Job) -> Made:
        """The views of every request.

        Raises:
            ValueError: a file is damaged.
        """
        return [self._views(request) for request in job]

    def _views(self, request: Request) -> list[Tensor]:
        from ssl_selmix.augment import image
        from ssl_selmix.images.photo import Photo

        makers = image.views(self._size)
        shape = (len(request.rows), self._size, self._size, 3)
        made = [np.empty(shape, dtype=np.uint8) for _ in request.views]
        for i, row in enumerate(request.rows):
            path = self._paths[row]
            photo = Photo(contents(path), path, self._strict)
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


def start_worker(index: int) -> None:
    """Set up a process that decodes images."""
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
                worker_init_fn=start_worker,
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


def died(error: Exception) -> bool:
    """Whether a worker was killed or had no shared memory left, as opposed to a mistake in it."""
    text = str(error)
    return "DataLoader worker (pid" in text or "shared memory" in text


def check_settings(size: int | None, workers: int | None) -> None:
    """Refuse a size or a number of workers without meaning."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, not {workers}; 0 reads in this process")
