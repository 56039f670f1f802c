"""Locks: one at a time, named, released by any death, and leaving no file behind."""

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_selmix.common.locks import Busy, in_turn, locked

HOLD = """
import sys, time
from pathlib import Path
from ssl_selmix.common.locks import locked
with locked(Path(sys.argv[1]), "works"):
    print("held", flush=True)
    time.sleep(1000)
"""
TAKE_TURNS = """
import sys
from pathlib import Path
from ssl_selmix.common.locks import in_turn
log, lock = map(Path, sys.argv[1:])
for _ in range(50):
    with in_turn(lock):
        number = int(log.read_text())
        log.write_text(str(number + 1))
"""


def test_the_second_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / ".lock"
    with locked(lock, "trains here", remedy="wait") as file:
        assert isinstance(file, int)
        with pytest.raises(Busy) as told, locked(lock, "trains here", remedy="wait"):
            pass
    here = f"process {os.getpid()} on {socket.gethostname()}"
    assert str(told.value) == f"{here} trains here; wait"
    assert list(lock.parent.iterdir()) == []
    with locked(lock, "trains here"):
        pass


def test_any_death_releases_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    words = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy, match=f"process {holder.pid} on"), locked(lock, "works"):
            pass
        holder.send_signal(signal.SIGKILL)
    with locked(lock, "works"):
        pass


def test_a_fork_neither_keeps_nor_releases_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    fork = multiprocessing.get_context("fork")
    go_on = fork.Event()
    with locked(lock, "works"):
        child = fork.Process(target=go_on.wait)
        child.start()
        with pytest.raises(Busy), locked(lock, "works"):
            pass
    with locked(lock, "works"):  # though the child still lives
        assert child.is_alive()
        go_on.set()
        child.join()
        with pytest.raises(Busy), locked(lock, "works"):
            pass


def test_turns_do_not_overlap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("0")
    words = [sys.executable, "-c", TAKE_TURNS, str(log), str(tmp_path / ".lock")]
    for process in [subprocess.Popen(words) for _ in range(3)]:
        assert process.wait() == 0
    assert log.read_text() == "150"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_without_locks_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / ".lock", "works") as file:
        assert file is None
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().out
    with in_turn(tmp_path / ".lock"), in_turn(tmp_path / "no" / "folder"):
        pass
