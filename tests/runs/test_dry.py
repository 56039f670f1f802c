"""A dry run tells what a run would be, refuses what it would refuse, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_selmix import cli

WORDS = [
    *("--algo", "supervised", "--then", "selmix", "--then", "posthoc", "model.name=cnn-4"),
    *("supervised.steps=300", "supervised.batch=8", "supervised.evaluate_every=100"),
    *("selmix.steps=40", "selmix.batch=4", "pictures=false", "--dry-run"),
]


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(WORDS) == 0
    assert not list(tmp_path.iterdir())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    told = "\n".join(lines)
    for part in (
        "images 1×8×8, 10 classes",
        "labeled 106 (30 22 16 12 9 6 4 3 2 2)",
        "unlabeled 216 (60 44 32 24 18 13 9 7 5 4)",
        "validation 200 (20 20",
        "test 500 (50 50",
        "1-supervised: 300 steps of 8 images, ",
        "a validation every 100 steps, ",
        "2-selmix: 40 steps of 8 images, ",
        "3-posthoc: no step",
        "together about ",
        "would be runs/digits-supervised-selmix-posthoc-seed0, which is free",
    ):
        assert part in told, part
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    for words, code, said in (
        (["--out", "run"], 0, "would be run, which exists: add --resume"),
        (["data.labeled.largest=9999"], 2, "class 0 (0) has"),
        (["lr=3"], 2, "did you mean supervised.lr?"),
    ):
        assert cli.main([*WORDS[:2], *WORDS[6:10], "--dry-run", *words]) == code
        found = capsys.readouterr()
        assert said in found.out + found.err
