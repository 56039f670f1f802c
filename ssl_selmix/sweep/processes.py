"""Starts the runs of a sweep in processes of this machine, chain by chain."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import IO

import torch

from ssl_selmix.common.figures import percent
from ssl_selmix.common.locks import Busy, locked
from ssl_selmix.runs.folder import RunFolder
from ssl_selmix.sweep.runs import FINISHED, Run, is_finished

FAILED, BLOCKED, BUSY = "failed", "blocked", "busy"
GRACE = 10.0  # seconds between asking a process to end and ending it
POLL = 0.1  # seconds between two looks at a process
TRAIN = (sys.executable, "-u", "-m", "ssl_selmix.cli")  # -u: the log's last line is the last said


@dataclass(frozen=True)
class Job:
    """What is left of a chain, in order; `home` is the folder of the chain's first run."""

    home: Path
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: Run
    state: str  # finished, failed, blocked (its base failed) or busy (another process has it)
    said: str
    seconds: float = 0.0


Tell = Callable[[Outcome], None]


class Lost(Exception):
    """A run ended because the process that had started it did; says how that ended."""

    def __init__(self, code: int) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        super().__init__(f"{_MEMORY if code == -9 else ''}the process that starts the runs {how}")


_MEMORY = "perhaps for want of memory (lower --jobs): "


class Children:
    """Processes that are ended with this one."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(
        self, words: Sequence[str], log: IO[bytes], env: Mapping[str, str], lock: int | None
    ) -> int | None:
        """Exit status of a process; None if it was stopped."""
        with self._guard:
            if self._stopping:
                return None
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C is for the sweep, which tells its children
                pass_fds=() if lock is None else (lock,),
            )
            self._running.add(child)
        try:
            while child.poll() is None:  # `wait` would not notice that Ray cancels the task
                time.sleep(POLL)
        except BaseException:
            self.stop()
            raise
        finally:
            with self._guard:
                self._running.discard(child)
        return None if self._stopping else child.returncode

    def stop(self) -> None:
        """End all of them, and let no other start; a run may end at any moment and be resumed."""
        with self._guard:
            self._stopping = True
            left = list(self._running)
        for child in left:
            _signal(child, signal.SIGTERM)
        for child in left:
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)

    def close(self) -> None:
        """Nothing will be run any more."""


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)  # with the workers that load its images
    except ProcessLookupError:
        pass


def work(job: Job, children: Children, env: Mapping[str, str], tell: Tell) -> list[Outcome]:
    """Run what is left of a chain; what starts from a run that failed is blocked."""
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    lost: set[Path] = set()
    try:
        with locked(job.home / ".lock", f"works in {job.home}") as lock:
            for run in job.runs:
                if run.base in lost:
                    outcome: Outcome | None = Outcome(run, BLOCKED, f"starts from {run.base}")
                else:
                    outcome = _train(run, children, env, lock)
                if outcome is None:
                    break
                if outcome.state != FINISHED:
                    lost.add(run.folder)
                note(outcome)
    except Busy as error:
        for run in job.runs:
            note(Outcome(run, BUSY, str(error)))
    except OSError as error:  # of this chain's lock; the other chains go on
        for run in job.runs[len(outcomes) :]:
            note(Outcome(run, FAILED, f"{error.strerror} ({error.filename})"))
    return outcomes


def _train(
    run: Run, children: Children, env: Mapping[str, str], lock: int | None
) -> Outcome | None:
    words = run.command()
    log = run.folder / "log.txt"
    since = time.perf_counter()
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(['ssl-selmix', *words])}\n".encode())
            file.flush()
            code = children.run([*TRAIN, *words], file, env, lock)
        if code is None:
            return None
        seconds = time.perf_counter() - since
        if code == 0 and is_finished(run.folder):
            return Outcome(run, FINISHED, _figures(run.folder), seconds)
        return Outcome(run, FAILED, _last_words(log, code), seconds)
    except OSError as error:
        return Outcome(run, FAILED, f"{error.strerror} ({error.filename})")
    except Lost as error:
        return Outcome(run, FAILED, str(error), time.perf_counter() - since)


def _figures(folder: Path) -> str:
    """On validation: a look at a running sweep must not choose by test images."""
    found = RunFolder(folder).stages[-1].validation
    mean, worst = percent(found.mean_recall), percent(found.min_recall)
    return f"validation: mean recall {mean}, worst class {worst}"


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    why = _MEMORY if code == -signal.SIGKILL else ""
    return f"{why}ended by {signal.Signals(-code).name} after: {last}" if code < 0 else last


@contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """Also a closed terminal or a cluster's time limit ends the children before this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def by_processes(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    tell: Tell,
    start: Callable[[], Children] | None = None,
) -> list[Outcome]:
    """Work on the chains in as many processes at a time as there are places (environments).

    Args:
        jobs: the chains.
        places: environments, of each at most one process at a time.
        tell: called with every run that ended.
        start: makes what starts processes; None: each is a program.
    """
    children = (start or Children)()
    free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for place in places:
        free.put(place)

    def one(job: Job) -> list[Outcome]:
        place = free.get()
        try:
            return work(job, children, {**os.environ, **place}, tell)
        finally:
            free.put(place)

    pool = ThreadPoolExecutor(len(places))
    try:
        with ended_like_interrupted():
            return [outcome for found in pool.map(one, jobs) for outcome in found]
    except BaseException:
        children.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        children.close()


def places(count: int, threads: int, gpus: Sequence[str], cores: int) -> list[dict[str, str]]:
    """Environments for processes side by side: a GPU each in turn, and a share of the cores."""
    share = {} if threads else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    found = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)]
    return [place | share for place in found]


def default_jobs(devices: set[str], threads: int, gpus: Sequence[str], cores: int) -> int:
    """One process per GPU, or as many as the threads of each leave room for."""
    if gpus or devices - {"auto", "cpu"}:
        return max(1, len(gpus))
    return max(1, cores // (threads or cores))


def devices_of(runs: Sequence[Run]) -> set[str]:
    """What runs ask for with `device`.

    Raises:
        ValueError: there is no such device on this machine.
    """
    found = {str(run.settings.get("device", "auto")) for run in runs}
    for name in found - {"auto"}:
        try:
            missing = torch.device(name).type == "cuda" and not torch.cuda.is_available()
        except RuntimeError:
            missing = True
        if missing:
            raise ValueError(f"device={name} cannot be used on this machine; try device=cpu")
    return found


def visible_gpus(devices: set[str]) -> list[str]:
    """The GPUs to share out among runs that take any; none if none does."""
    if not devices & {"auto", "cuda"} or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def cores() -> int:
    """The cores that this process may use."""
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1
