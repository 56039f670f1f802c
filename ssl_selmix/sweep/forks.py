"""Runs as copies of a process that has imported all that they need: see `forkserver`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ssl_selmix.sweep import forkserver
from ssl_selmix.sweep.processes import GRACE, POLL, TRAIN, Children, Lost

SERVER = (sys.executable, "-u", "-m", forkserver.__name__)


Data = tuple[str, Mapping[str, Any], str]


def possible() -> bool:
    """Whether a process can be copied: elsewhere libraries are known to break in the copy."""
    return sys.platform == "linux"


class _Fork:
    """A run that was asked for: its process, once there is one, and whether it ended."""

    def __init__(self, pipe: int) -> None:
        self.process: int | None = None
        self.ended = threading.Event()
        self._pipe = pipe

    def lines(self) -> Any:
        """What is told of it, until it ended or nobody is left to tell it."""
        with open(self._pipe, encoding="utf-8") as told:
            yield from map(json.loads, told)

    def signal(self, number: int) -> bool:
        """Send a signal to it and to the processes that read its images; whether it is there."""
        if self.process is None:
            return False
        try:
            os.killpg(self.process, number)
        except ProcessLookupError:
            return False
        return True

    def end(self) -> None:
        """End it, which has no parent any more that could tell that it ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            limit = time.monotonic() + GRACE
            there = self.signal(number)
            while there and time.monotonic() < limit:
                time.sleep(POLL)
                there = self.signal(0)


class Forks(Children):
    """Starts runs by a fork server, which is started when first needed, and anew if it died.

    Args:
        data: of each run by its folder the data set that it reads, its settings, and the library
            that its network is of.
    """

    def __init__(self, data: Mapping[str, Data] | None = None) -> None:
        super().__init__()
        self._data = dict(data or {})
        self._forks: set[_Fork] = set()
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._env: dict[str, str] = {}

    def run(
        self, words: Sequence[str], log: IO[bytes], env: Mapping[str, str], lock: int | None
    ) -> int | None:
        """Exit status of a run; None if it was stopped.

        Raises:
            Lost: the fork server ended before the run.
            OSError: there is no memory for another process.
        """
        if tuple(words[: len(TRAIN)]) != TRAIN:
            return super().run(words, log, env, lock)
        with self._guard:
            if self._stopping:
                return None
            fork, server = self._ask(words[len(TRAIN) :], log.fileno(), env, lock)
            self._forks.add(fork)
        try:
            code = self._wait(fork)
        finally:
            fork.ended.set()
            with self._guard:
                self._forks.discard(fork)
        if code is None and not self._stopping:
            self._data = {}  # perhaps there is no room for them
            raise Lost(server.wait())
        return None if self._stopping else code

    def _wait(self, fork: _Fork) -> int | None:
        """The exit code of a run; None if nobody is left to tell it."""
        for said in fork.lines():
            if "error" in said:
                raise OSError(0, said["error"], "another process")
            if "code" in said:
                return int(said["code"])
            with self._guard:
                fork.process = said["process"]
                stopping = self._stopping
            if stopping:
                fork.signal(signal.SIGTERM)
        fork.end()
        return None

    def _ask(
        self, words: Sequence[str], log: int, env: Mapping[str, str], lock: int | None
    ) -> tuple[_Fork, subprocess.Popen[bytes]]:
        if self._server is None or self._server.poll() is not None:
            self._start(env)
        assert self._server is not None and self._channel is not None
        read, write = os.pipe()
        changed = {key: value for key, value in env.items() if self._env.get(key) != value}
        files = [write, log, *([] if lock is None else [lock])]
        try:
            forkserver.send(
                self._channel,
                files,
                module=TRAIN[-1],
                words=list(words),
                env=changed,
                data=self._data.get(words[words.index("--out") + 1]) if "--out" in words else None,
            )
        except OSError:  # it has just ended, which the pipe tells
            pass
        finally:
            os.close(write)
        return _Fork(read), self._server

    def _start(self, env: Mapping[str, str]) -> None:
        self.close()
        self._env = dict(env)  # a library may read some of it only when it is imported
        own, other = socket.socketpair()
        with other:
            self._server = subprocess.Popen(
                [*SERVER, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._env,
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C is for the sweep
            )
        self._channel = own

    def stop(self) -> None:
        """End all runs, and let no other start; a run may end at any moment and be resumed."""
        super().stop()
        with self._guard:
            left, server = list(self._forks), self._server
        for fork in left:
            fork.signal(signal.SIGTERM)
        if server is not None and any(fork.process is None for fork in left):
            server.kill()  # it still imports; a fork of this moment is ended by who waits for it
        limit = time.monotonic() + GRACE
        for fork in left:
            if not fork.ended.wait(max(0.0, limit - time.monotonic())):
                fork.signal(signal.SIGKILL)

    def close(self) -> None:
        """Let the server end, which has no run any more."""
        if self._channel is not None:
            self._channel.close()
        if self._server is not None:
            self._server.wait()
        self._server = self._channel = None
