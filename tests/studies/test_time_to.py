"""Time to quality: all arms run, go on where they were killed, and are judged by what is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import time_to
from ssl_selmix.training import checkpoint
from tests.helpers.images import noise_tree


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """The study takes one thread; the next test wants the number it had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_rehearsal_takes_all_arms_and_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.name=cnn-4", "--rehearse", "--seeds", "0"]
    time_to.main([*words, "--out", str(tmp_path / "whole")])
    out = capsys.readouterr().out
    for arm in time_to.IMAGES[1:]:
        assert f"| {arm} | 1 | {3 if 'twice' in arm else 6} |" in out
    few = ["--arms", "lazy, teacher", "--out", str(tmp_path / "cut")]
    for _ in range(2):  # each ends after a turn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time_to.Run, "turn", _once(time_to.Run.turn))
            with pytest.raises(KeyboardInterrupt):
                time_to.main([*words, *few])
    time_to.main([*words, *few])
    one, other = (
        checkpoint.load(tmp_path / how / "digits" / "0-lazy, teacher.pt")
        for how in ("whole", "cut")
    )
    for run in (one, other):
        run["state"].pop("seconds")
        assert [row["step"] for row in run["rows"]] == [2, 4, 6]
    assert checkpoint.digest(one["state"]) == checkpoint.digest(other["state"])
    images = [row["images"] for row in one["rows"]]
    # Of each step at least 64 labeled images and 128 weak views pass.
    assert images[0] >= 2 * 192 and images == [row["images"] for row in other["rows"]]


def _once(turn: Any) -> Any:
    def ends(run: time_to.Run) -> None:
        turn(run)
        raise KeyboardInterrupt

    return ends


@pytest.mark.slow
def test_the_fields_step_is_an_arm_on_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise_tree(tmp_path / "photos", {"train": 14, "test": 3}, (16, 16, 3), "abc")
    words = ["--data", str(tmp_path / "photos"), "--steps", "4", "--every", "2"]
    words += ["data.labeled.largest=4", "data.labeled.rho=2", "data.unlabeled.largest=4"]
    words += ["data.unlabeled.rho=2", "data.validation=4", "model.name=cnn-4", "data.cache=none"]
    words += [
        "fixmatch.batch=4",
        "--seeds",
        "0",
        "--arms",
        "field",
        "joint",
        "--out",
        str(tmp_path),
    ]
    for _ in range(2):  # what has ended is only reported
        time_to.main(words)
        out = capsys.readouterr().out
    assert "| field | 1 | 4 |" in out and "| joint | 1 | 4 |" in out
    rows = [
        checkpoint.load(tmp_path / "photographs" / f"0-{arm}.pt")["rows"][-1]
        for arm in ("field", "joint")
    ]
    assert [row["images"] for row in rows] == [4 * 4 * 5, 4 * 4 * 5]


def test_a_recall_that_is_seen_once_is_not_held() -> None:
    rows = [{"mean": 0.6, "seconds": s} for s in (1, 2)]
    rows[1:1] = [{"mean": 0.5, "seconds": 1.5}]
    assert time_to.held(rows, "mean", 0.6) is None
    assert time_to.held([*rows, {"mean": 0.7}], "mean", 0.6) == rows[2]
