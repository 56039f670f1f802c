"""Runs that are copies of one process are those that programs of their own would be."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ssl_selmix import cli
from ssl_selmix.sweep import forks, processes

# Says what it finds in the process that imports it, and changes all of it. A fork's log has the
# words of the run, its standard streams, and whatever a run before it could have left.
METHOD = """
import atexit, logging, os, random, sys, threading, warnings
import numpy, torch
from ssl_selmix.algorithms.supervised import Supervised

class Mine(Supervised):
    def forward(self, batch, ctx):
        losses, logs = super().forward(batch, ctx)
        return {key: 2 * loss for key, loss in losses.items()}, logs

def look_and_change():
    streams = [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)]
    print("found:", os.environ.get("LEFT"), os.getcwd(), os.getsid(0) == os.getpid(), streams,
          sys.argv[1:3], os.path.basename(sys.argv[0]), sys.stdin.read(), threading.active_count(),
          torch.get_num_threads(), torch.get_default_dtype(),
          torch.get_float32_matmul_precision(), torch.is_grad_enabled(),
          len(logging.root.handlers), len(os.listdir("/proc/self/fd")),
          [name for name in sys.modules if name.startswith("_plugin")])
    print("drawn:", random.random(), numpy.random.rand(), torch.initial_seed())
    print("parent:", len(os.listdir(f"/proc/{os.getppid()}/task")))
    print("ignored:", len(warnings.filters))  # modules change it, too
    print("to stderr", file=sys.stderr)
    os.environ["LEFT"] = "something"
    os.chdir(os.getcwd())
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    logging.basicConfig()
    warnings.simplefilter("always")
    atexit.register(print, "at the end")

if "train" in sys.argv:  # not the sweep, which imports it too
    look_and_change()
"""
SPEC = """
out: out
seeds: [0, 1]
settings:
  model.name: cnn-4
  data: {labeled.largest: 15, unlabeled.largest: 20, validation: 3, test: 3}
  threads: 1
  pictures: false
  algo: {steps: 3, batch: 4}
algorithms:
  mine: {algo: ./mine.py}
"""


def found(run: Path) -> tuple[dict[str, str], str, list[str]]:
    """What a run's method said, the digest of its weights, and the end of its log."""
    lines = (run / "log.txt").read_text().splitlines()
    told = {line.partition(": ")[0]: line for line in lines}
    weights = json.loads((run / "results.json").read_text())["stages"][0]["handed_on_sha256"]
    assert "to stderr" in lines
    return told, weights, lines[-2:]


@pytest.mark.slow
def test_a_run_sees_nothing_of_the_run_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # whose own threads fork well
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "mine.yaml").write_text(SPEC)
    assert cli.main(["sweep", "mine.yaml", "--jobs", "1"]) == 0
    words = ["mine.yaml", "--engine", "processes", "--out", "alone", "--only", "1"]
    assert cli.main(["sweep", *words]) == 0
    first, second, alone = (
        found(Path(out, "digits", "mine", seed))
        for out, seed in (("out", "seed-0"), ("out", "seed-1"), ("alone", "seed-1"))
    )
    assert first[0]["found"] == second[0]["found"] == alone[0]["found"]
    assert second[0]["parent"] == "parent: 1"  # what is computed in threads would hang in a fork
    assert first[0]["ignored"] == second[0]["ignored"]
    for drawn in zip(*(run[0]["drawn"].split()[1:] for run in (first, second, alone)), strict=True):
        assert len(set(drawn)) == 3
    assert second[1] == alone[1] != first[1]
    for out, run in (("out", second), ("alone", alone)):
        assert run[2] == [f"results: {out}/digits/mine/seed-1/results.json", "at the end"]


ENDS = """
import runpy, sys
from ssl_selmix.sweep import forkserver
def program(module, run_name, alter_sys):
    assert module == "ssl_selmix.cli" and run_name == "__main__"
    if sys.argv[1] == "raise":
        raise RuntimeError("a defect")
    if sys.argv[1] == "interrupt":
        raise KeyboardInterrupt
    if sys.argv[1] != "nothing":
        sys.exit({"none": None, "text": "a text", "three": 3}[sys.argv[1]])
runpy.run_module = program
forkserver.prepare = lambda: None
forkserver.keep = lambda *data: None
forkserver.main(int(sys.argv[1]))
"""


def test_exit_codes_are_those_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forks, "SERVER", (sys.executable, "-c", ENDS))
    children = forks.Forks()
    codes = {}
    with open("log", "wb") as log:
        for word in ("nothing", "none", "text", "three", "raise", "interrupt"):
            codes[word] = children.run([*processes.TRAIN, word], log, dict(os.environ), None)
    children.close()
    assert list(codes.values()) == [0, 0, 1, 3, 1, 1]
    said = Path("log").read_text()
    assert said.startswith("a text\nTraceback") and "RuntimeError: a defect\nTraceback" in said


def test_a_stopped_sweep_starts_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    children = forks.Forks()
    children.stop()
    with open("log", "wb") as log:
        assert children.run([*processes.TRAIN, "--help"], log, dict(os.environ), None) is None
    children.close()


def test_a_server_that_cannot_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forks, "SERVER", (sys.executable, "-c", "raise SystemExit(4)"))
    children = forks.Forks()
    with open("log", "wb") as log, pytest.raises(processes.Lost, match="runs ended with 4"):
        children.run([*processes.TRAIN, "train"], log, dict(os.environ), None)
    children.close()


NO_MORE = """
import os, sys
from ssl_selmix.sweep import forkserver
forkserver.prepare = lambda: None
forkserver.keep = lambda *data: None
def fork():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = fork
forkserver.main(int(sys.argv[1]))
"""


def test_no_room_for_another_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forks, "SERVER", (sys.executable, "-c", NO_MORE))
    children = forks.Forks()
    with open("log", "wb") as log, pytest.raises(OSError, match="temporarily unavailable"):
        for _ in range(2):  # the server lives on
            children.run([*processes.TRAIN, "train"], log, dict(os.environ), None)
    children.close()
