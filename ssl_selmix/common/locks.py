"""Locks between processes: one at a time works in a folder, or makes a file.

A lock is an advisory one of the operating system on a file beside what it guards. It ends with the
last process that has it, however that process ends; what the file says is only told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from ssl_selmix.common.console import tell, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Busy(ValueError):
    """Another process works here."""


class _NoLocks(OSError):
    """The operating system, or the file system, as some of clusters, has no locks."""


@contextmanager
def locked(
    path: Path, what: str, *, remedy: str = "wait for it, or end it"
) -> Iterator[int | None]:
    """Hold the lock in the file at `path`, which is there as long as somebody holds it.

    Yields the file's descriptor; None, with a warning, where there are no locks. A program that is
    started with it (`pass_fds`) keeps the lock if this process is killed; a fork does not.

    Args:
        path: the file of the lock.
        what: what its holder does, as in `trains in runs/a`.
        remedy: what somebody can do who does not get it.

    Raises:
        Busy: another process holds it; names that process, and the remedy.
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held: AbstractContextManager[int | None] = nullcontext()
    try:
        held = _held(_taken(path, f"{what}; {remedy}", wait=False), path)
    except _NoLocks as error:
        warn(f"{path.parent} cannot be locked ({error.strerror}); start nothing else there")
    with held as file:
        yield file


@contextmanager
def in_turn(path: Path, told: str = "") -> Iterator[None]:
    """Hold the lock in the file at `path`, after a wait if another process has it.

    Where nothing can be locked it is not held: that costs work that is done twice, and no run.

    Args:
        path: the file of the lock.
        told: said before a wait, after the name of the process that is waited for.
    """
    held: AbstractContextManager[int | None] = nullcontext()
    with suppress(OSError):
        held = _held(_taken(path, told, wait=True), path)
    with held:
        yield


_ours: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def _held(file: int, path: Path) -> Iterator[int]:
    _ours.add(file)
    try:
        yield file
    finally:
        _ours.discard(file)
        with suppress(OSError):
            path.unlink()  # while the lock is held, so that nobody else can have it
        os.close(file)


def _let_go() -> None:
    """Forget the locks in a forked process: what reads images for a killed run holds nothing."""
    while _ours:
        os.close(_ours.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _taken(path: Path, told: str, *, wait: bool) -> int:
    """Descriptor of the file at `path`, locked."""
    if fcntl is None:
        raise _NoLocks(0, "this operating system has no locks", str(path))
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, path, told, wait)
            with suppress(FileNotFoundError):  # its holder removed it since it was opened
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path, told: str, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError as error:
        holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
        if not wait:
            raise Busy(f"{holder} {told}") from error
    except OSError as error:
        raise _NoLocks(error.errno, error.strerror, str(path)) from error
    if told:
        tell(f"{holder} {told}")
    fcntl.flock(file, fcntl.LOCK_EX)
