"""A process that starts the runs of a sweep as copies of itself.

Importing what trains takes seconds, ten steps on features take less than one. This process imports
once, reads the data sets, trains nothing, and forks for every run that it is asked for: a run finds
modules and images there and is otherwise a process of its own, which sees nothing of the run before
it. A fork is only sound in a process without running threads; so nothing is computed in any here.

    sweep ── request: words, environment, files ──▶ fork server ── fork ──▶ run
      ◀──────────────── a pipe for each run: its process, at last its exit code ──────┘

`python -m ssl_selmix.sweep.forkserver FD`, where FD is a socket; it ends when that is closed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import platform
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from ssl_selmix.common.imports import quick_imports

AHEAD = (
    *("ssl_selmix.runs.train", "ssl_selmix.training.flops"),
    *("torch.utils.tensorboard", "matplotlib"),
)
LIBRARIES = ("open_clip", "timm", "torchvision")  # of networks, if a run names one
HEADER = 8  # bytes before a request: its length
MOST_FILES = 3  # that come with one


class Request(NamedTuple):
    """A run: `python -m module words`, what its environment has otherwise, its open files.

    data: the data set to keep for it and others, its settings, and the library that its network is
    of; told: the pipe that it and this process write to; log: its output; lock: of its chain.
    """

    module: str
    words: list[str]
    env: dict[str, str]
    data: tuple[str, dict[str, Any], str] | None
    told: int
    log: int
    lock: int | None


def send(channel: socket.socket, files: Sequence[int], **request: Any) -> None:
    """Ask for a run; the files are those of a `Request`, in its order, the other values its own."""
    body = json.dumps(request).encode()
    socket.send_fds(channel, [len(body).to_bytes(HEADER, "big")], list(files))
    channel.sendall(body)


def receive(channel: socket.socket) -> Request | None:
    """The next request; None: there will be no other."""
    header, files, _, _ = socket.recv_fds(channel, HEADER, MOST_FILES)
    left = HEADER - len(header)
    body = b""
    while header and left:
        header += channel.recv(left)
        left = HEADER - len(header)
    length = int.from_bytes(header, "big")
    while len(body) < length and (part := channel.recv(length - len(body))):
        body += part
    if not header or len(body) < length:
        return None
    told, log, *lock = files
    return Request(**json.loads(body), told=told, log=log, lock=lock[0] if lock else None)


def tell(pipe: int, **said: Any) -> None:
    """Write a line to the pipe of a run, whose other end may be gone."""
    with suppress(OSError):
        os.write(pipe, json.dumps(said).encode() + b"\n")


def prepare() -> None:
    """Import what trains and what it would import on its way, and look up what does not change."""
    with quick_imports():
        for name in AHEAD:
            with suppress(ImportError):  # a run that needs it tells what is wrong
                import_module(name)
        from ssl_selmix.common import plugins
        from ssl_selmix.runs import environment

        for name in plugins.available("algorithm"):
            with suppress(Exception):
                plugins.load_module("algorithm", name)
        environment.commit()
        platform.platform(), platform.processor()
    gc.collect()
    gc.freeze()  # a collection in a run would copy every page that holds one of these objects


def keep(dataset: str, settings: dict[str, Any], library: str) -> None:
    """Keep a data set and a library for the runs; what fails here fails again where a run asks."""
    from ssl_selmix.runs import kept

    if library in LIBRARIES:
        with suppress(Exception):
            import_module(library)
    with suppress(Exception):
        kept.keep(dataset, settings)


class Server:
    """Forks for every request, and tells how each fork ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pipes: dict[int, int] = {}  # by process
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)

    def serve(self) -> Request | None:
        """Work until the other end of the channel is closed: None; in a fork: what it is to run."""
        signal.set_wakeup_fd(self._wakes)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        with selectors.DefaultSelector() as selector:
            for file in (self._channel.fileno(), self._woken):
                selector.register(file, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._woken in ready:
                    os.read(self._woken, 512)
                    self._reap()
                if self._channel.fileno() in ready:
                    request = receive(self._channel)
                    if request is None or self._forks(request):
                        return request

    def _reap(self) -> None:
        """Tell the exit codes of the forks that ended; -9 is SIGKILL."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if (pipe := self._pipes.pop(ended[0], None)) is not None:
                    tell(pipe, code=os.waitstatus_to_exitcode(ended[1]))
                    os.close(pipe)

    def _forks(self, request: Request) -> bool:
        """Fork; whether this is the fork."""
        if request.data is not None:
            keep(*request.data)
        try:
            if not (pid := os.fork()):
                self._become_one()
                return True
            self._pipes[pid] = request.told
        except OSError as error:  # no memory, or too many processes
            tell(request.told, error=error.strerror)
            os.close(request.told)
        for file in (request.log, request.lock):
            if file is not None:
                os.close(file)
        return False

    def _become_one(self) -> None:
        """Leave what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # a signal to the run reaches the processes that read its images
        self._channel.close()
        for file in (self._woken, self._wakes, *self._pipes.values()):
            os.close(file)


def run(request: Request) -> int:
    """What `python -m` does with the module and the words, in this process; its exit code."""
    tell(request.told, process=os.getpid())
    os.close(request.told)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((nothing, 0), (request.log, 1), (request.log, 2)):
        os.dup2(file, place)
    os.close(nothing)
    os.close(request.log)
    os.environ.update(request.env)
    sys.argv = [request.module, *request.words]
    # Of every process other random numbers, as where each imports these; those of `random` are.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    try:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """End this process as Python does, but without taking apart all that was imported.

    That would take longer than ten steps.
    """
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(file: int) -> None:
    """Serve the socket with this number; a fork runs what it was asked for."""
    prepare()
    request = Server(socket.socket(fileno=file)).serve()
    leave(0 if request is None else run(request))


if __name__ == "__main__":
    main(int(sys.argv[1]))
