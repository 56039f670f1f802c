"""Runs that are asked to end: saved after the step, told how to go on, and ending bit-identical."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssl_selmix import cli
from ssl_selmix.common import stopping
from ssl_selmix.common.locks import locked
from ssl_selmix.runs.record import LOCK
from ssl_selmix.training import checkpoint
from ssl_selmix.training.engine import Trainer
from tests.runs.test_stages import TWO_STAGES, assert_same_run, finished, killed_at, train

__all__ = ["finished"]
PLACES = [("1-fixmatch", 2), ("1-fixmatch", 3), ("2-selmix", 10), ("2-selmix", 12)]


@contextmanager
def at_step(stage: str, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of a step, after its arithmetic."""
    step_once = Trainer.step_once

    def step_and_act(self: Trainer, batches: Any) -> None:
        step_once(self, batches)
        if (self.data.stage, self.step) == (stage, step):
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step_once", step_and_act)
        yield


def means(folder: Path) -> list[dict[str, Any]]:
    """The rows of training in the logs, without what depends on time."""
    logs = sorted(folder.glob("*/metrics.jsonl"))
    found = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in found]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), PLACES)
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_saves_after_the_step(
    stage: str,
    step: int,
    name: str,
    code: int,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with at_step(stage, step, lambda: os.kill(os.getpid(), getattr(signal, name))):
        assert cli.main([*TWO_STAGES, "--out", str(folder)]) == code
    told = capsys.readouterr().err
    assert told == (
        f"ended by {name} after step {step} of {stage}; repeat the command with --resume to go on\n"
    )
    assert checkpoint.load(folder / stage / "between.pt")["step"] == step
    train(folder, "--resume")
    assert_same_run(folder, finished)
    assert means(folder) == means(finished)


@pytest.mark.slow
def test_the_time_of_for_is_up(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, now = tmp_path / "run", [0.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    words = [*TWO_STAGES, "--out", str(folder), "--for", "2h"]
    with at_step("2-selmix", 4, lambda: now.append(now.pop() + 1e12)):
        assert cli.main(words) == 75
    told = capsys.readouterr().err
    assert re.fullmatch(r"the time is up after step 4 of 2-selmix; repeat .* --resume .*\n", told)
    now[0] = 0.0
    assert cli.main([*words, "--resume"]) == 0
    assert_same_run(folder, finished)


@pytest.mark.slow
def test_checkpoints_by_minutes_lose_less_and_change_nothing(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    often = "checkpoint_minutes=0.0000001"
    with killed_at("2-selmix", 9):
        train(folder, often)
    assert checkpoint.load(folder / "2-selmix" / "between.pt")["step"] == 8
    train(folder, "--resume", "checkpoint_minutes=0")
    assert_same_run(folder, finished)
    assert means(folder) == means(finished)


@pytest.mark.slow
def test_a_damaged_checkpoint_between_validations_is_left_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with at_step("1-fixmatch", 5, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert cli.main([*TWO_STAGES, "--out", str(folder)]) == 143
    (folder / "1-fixmatch" / "between.pt").write_bytes(b"no checkpoint")
    train(folder, "--resume")
    out = " ".join(capsys.readouterr().out.split())
    assert "between.pt is damaged" in out and "using last.pt instead" in out
    assert_same_run(folder, finished)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_in_the_folder_is_refused(
    resume: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = [*TWO_STAGES, "--out", str(folder), *(["--resume"] if resume else [])]
    with locked(folder / LOCK, f"trains in {folder}", remedy="wait"):
        assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: process {os.getpid()} on ") and len(told.splitlines()) == 1
    assert f"trains in {folder}; wait for it, end it, or use another --out" in told
    assert list(folder.iterdir()) == []


def test_a_run_that_began_nothing_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "fixmatch", "--dataset", "image_folder", "data.root=none", "--out"]
    assert cli.main([*words, "new/run"]) == 2 and not Path("new").exists()
    Path("mine").mkdir()
    assert cli.main([*words, "mine"]) == 2 and Path("mine").is_dir()
    assert cli.main([*words, "mine/run"]) == 2 and not list(Path("mine").iterdir())
