"""Worker processes that decode and augment the images of files, in advance and in order.

Why a DataLoader is not enough by itself: given whole steps, it would have two steps for each worker
in flight, and memory for all of them. Here a step is cut into one job for each worker, so that two
steps are in flight however many workers there are. Starting workers takes seconds, so they are kept
for the next stream of jobs. A DataLoader keeps them only if it is iterated again, over the sampler
that it was made with: what is exchanged is the iterator inside that sampler.

    run(jobs) ──▶ READING ──── all jobs are done, or the stream is closed ────▶ IDLE
                  ▲     │                                                         │
                  │     └── an error, or a worker died ──▶ dropped, and the       │
                  │                                        processes end          │
                  └────────────────────────── run(jobs) ──────────────────────────┘

One passage through READING is a turn. The end of a turn raises a count that the workers see, so
that they do not make what was asked for in advance by a stream that is over. A second stream beside
the first one (validation in the middle of training) finds none idle and gets workers of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_selmix.augment.augmix import AugMix
from ssl_selmix.common.processes import check_number
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

    def __init__(
        self, paths: Sequence[str], size: int, strict: bool = True, mix: AugMix | None = None
    ) -> None:
        """With `mix` strong views are its mixtures, else RandAugment's."""
        self._paths, self.size, self._strict, self._mix = paths, size, strict, mix

    def make(self, job: Job) -> Made:
        """The views of every request.

        Raises:
            ValueError: a file is damaged.
        """
        return [self._views(request) for request in job]

    def _views(self, request: Request) -> list[Tensor]:
        from ssl_selmix.augment import image
        from ssl_selmix.images.photo import Photo

        makers = image.views(self.size, self._mix)
        shape = (len(request.rows), self.size, self.size, 3)
        made = [np.empty(shape, dtype=np.uint8) for _ in request.views]
        for i, row in enumerate(request.rows):
            path = self._paths[row]
            photo = Photo(contents(path), path, self._strict)
            for (name, seed), out in zip(request.views, made, strict=True):
                out[i] = makers[name](photo, (seed, request.first + i * request.every))
        return [torch.from_numpy(array).permute(0, 3, 1, 2) for array in made]


class WorkerDied(ValueError):
    """A process that reads images was killed, or had no shared memory left; names the remedy."""


@contextmanager
def naming_deaths(workers: int) -> Iterator[None]:
    """Raise WorkerDied in the place of what torch raises when one of so many workers dies.

    Raises:
        WorkerDied: a worker was killed or had no shared memory, as opposed to a mistake in it.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)  # torch has no class for these
        if "DataLoader worker (pid" not in text and "shared memory" not in text:
            raise
        raise WorkerDied(
            f"a worker that reads images died ({text.splitlines()[0]}); memory, or the shared "
            f"memory in /dev/shm, is too small for data.workers={workers}; lower it"
        ) from error


class _NamesDeaths:
    """What answers the death of a child, in the words of `naming_deaths`."""

    def __init__(self, answer: Callable[[int, Any], Any], workers: int) -> None:
        self.answer, self.workers = answer, workers

    def __call__(self, number: int, frame: Any) -> None:
        with naming_deaths(self.workers):
            self.answer(number, frame)


def name_deaths_anywhere(workers: int) -> None:
    """From now on a death that interrupts training, wherever it is, raises WorkerDied.

    torch's answer to SIGCHLD, which it installs when the first workers start, raises in whatever
    line the main thread has reached.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() != threading.main_thread():
        return
    answer = signal.getsignal(signal.SIGCHLD)
    if isinstance(answer, _NamesDeaths):
        answer.workers = workers
    elif callable(answer):
        signal.signal(signal.SIGCHLD, _NamesDeaths(answer, workers))


class _Tasks(Dataset[Made | ValueError]):
    """The reader as it runs in one of so many workers."""

    def __init__(self, reader: Reader, workers: int) -> None:
        self._reader, self._workers = reader, workers
        # Shared by all processes: jobs of another turn are not made.
        self.turn = multiprocessing.Value("q", lock=False)

    def __getitem__(self, task: tuple[int, Job]) -> Made | ValueError:
        """The views, or what is wrong: of an exception a user would see two traces."""
        turn, job = task
        try:
            made = self._reader.make(job) if turn == self.turn.value else []
            # Shared here: in the thread of torch's queue a full /dev/shm would lose the job, and
            # training would wait for it for ever.
            with naming_deaths(self._workers):
                for view in (view for views in made for view in views):
                    view.share_memory_()
        except ValueError as error:
            return error
        return made


def start_worker(index: int) -> None:
    """Set up a process that decodes images."""
    import cv2

    # A worker is one of many: threads of its own would only be in the way of the others.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Ctrl-C, a closed terminal and a cluster's time limit reach every process; the one that trains
    # answers them, perhaps after some more steps, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        numbers = {signal.SIGTERM, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=_obey, args=(os.getppid(), numbers), daemon=True).start()


def _obey(parent: int, numbers: set[signal.Signals]) -> None:
    """End this process when its parent asks for it, and ignore everybody else."""
    while signal.sigwaitinfo(numbers).si_pid != parent:
        pass
    os._exit(0)


def _as_is(made: Made | ValueError) -> Made | ValueError:
    return made


class _NextTasks(Sampler[tuple[int, Job]]):
    """What the workers do next; exchanged when a stream begins."""

    def __init__(self) -> None:
        self.tasks: Iterator[tuple[int, Job]] = iter(())

    def __iter__(self) -> Iterator[tuple[int, Job]]:
        return self.tasks


class _Processes:
    """A DataLoader whose worker processes outlive a stream of jobs and take on the next."""

    def __init__(self, reader: Reader, workers: int, pin: bool) -> None:
        # Imported here once, instead of in every worker that is forked: it takes seconds.
        import ssl_selmix.augment.image  # noqa: F401

        self._tasks, self._next, self._num = _Tasks(reader, workers), _NextTasks(), workers
        with warnings.catch_warnings():
            # More workers than cores are the user's choice; torch would say so at every stream.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            self._loader: DataLoader[Made | ValueError] = DataLoader(
                self._tasks,
                sampler=self._next,
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

    def run(self, jobs: Iterator[Job]) -> Generator[Made, None, None]:
        turn = self._tasks.turn.value
        self._next.tasks = tasks = ((turn, job) for job in jobs)
        try:
            results = iter(self._loader)
            name_deaths_anywhere(self._num)
            for made in results:
                if isinstance(made, ValueError):
                    try:
                        raise made
                    finally:
                        del made  # or its trace, which has this frame, would be part of a circle
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
        self._idle: list[_Processes] = []

    @property
    def shares(self) -> int:
        """Into how many jobs a step is cut."""
        return max(1, self.num)

    def run(self, jobs: Iterator[Job]) -> Generator[Made, None, None]:
        """The results, in the order of the jobs, of which some are begun in advance.

        Streams may run side by side. Each has workers of its own, which are free for another when
        it is closed.

        Raises:
            WorkerDied: a worker was killed or had no shared memory left.
            ValueError: a file is damaged.
        """
        if not self.num:
            yield from map(self.reader.make, jobs)
            return
        processes = self._idle.pop() if self._idle else _Processes(self.reader, self.num, self._pin)
        try:
            with naming_deaths(self.num), closing(processes.run(jobs)) as results:
                yield from results
        except GeneratorExit:
            self._idle.append(processes)
            raise
        self._idle.append(processes)


def check_settings(size: int | None, workers: int | None) -> None:
    """Refuse a size or a number of workers without meaning."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, not {workers}; 0 reads in this process")
    check_number("workers", workers or 0)
