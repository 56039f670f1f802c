"""Validation images of natural tails: shares, limits, and a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_selmix import cli
from ssl_selmix.compare import reading
from ssl_selmix.data import manifest
from ssl_selmix.runs.folder import open_run
from ssl_selmix.runs.plan import Plan, Request, reopen
from ssl_selmix.splits import Counts, HeldOut, LongTailSplit, Split
from tests.helpers.images import photo_tree
from tests.helpers.runs import SMALL, train

SIZES = [1000, 90, 41, 12, 6]
LABELS = np.repeat(np.arange(5), SIZES)


def drawn(rule: Any, test: Any = None) -> Split:
    unlabeled = Counts(0, shape="unknown")
    held = LongTailSplit(Counts(0, shape="all"), unlabeled, validation=rule, test=test)
    return held.draw(LABELS, 5, seed=3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (4, [4, 4, 4, 4, 4]),
        ("4", [4, 4, 4, 4, 4]),
        (0.2, [200, 18, 8, 2, 1]),
        (".05", [50, 4, 2, 1, 1]),
        ("0.2,min=4", [200, 18, 8, 4, 4]),
        ("0.2,min=2,max=50", [50, 18, 8, 2, 2]),
        ("0.2, max=10", [10, 10, 8, 2, 1]),
        ("20,min=4", [20, 20, 20, 6, 4]),
        ("500,min=1", [500, 45, 20, 6, 3]),
    ],
)
def test_images_of_each_class(rule: Any, expected: list[int], tmp_path: Path) -> None:
    split = drawn(rule)
    assert split.counts["validation"] == expected
    assert np.bincount(LABELS[split.validation], minlength=5).tolist() == expected
    assert split.counts["labeled"] == [n - v for n, v in zip(SIZES, expected, strict=True)]
    assert not set(split.validation) & set(split.labeled)
    manifest.save(split, tmp_path / "manifest.json")
    assert manifest.load(tmp_path / "manifest.json").rule == split.rule


def test_test_images_are_held_out_alike() -> None:
    split = drawn("0.1,min=1", test="0.2,min=2,max=20")
    assert split.counts["test"] == [20, 18, 8, 2, 2]
    assert split.counts["validation"] == [100, 9, 4, 1, 1]
    assert not set(split.validation) & set(split.test)


def test_a_count_draws_what_it_always_drew() -> None:
    assert drawn("4").validation.tolist() == drawn(4).validation.tolist()
    assert HeldOut.of("validation", 20).of_class(3) == 20  # which the draw refuses


@pytest.mark.parametrize(
    "rule",
    [
        *("1.5", 0.0, 1.0, 1.5, -0.2, "20.5", "many", "", "20,", "20;min=4", "0.2,min=0"),
        *("20,min=30", "20,max=10", "0.2,min=9,max=3", "20,min=4,min=5", "min=4", "20,min=-1"),
        *("0.2,least=3", "2e1", float("nan"), "20,min=4,max=9"),
    ],
)
def test_what_is_no_number_of_images_is_refused(rule: Any) -> None:
    for part in ("validation", "test"):
        with pytest.raises(ValueError, match=f"{part}=.* is no number of images per class: give"):
            LongTailSplit(Counts(0, shape="all"), Counts(0), **{"validation": 1, part: rule})


def test_true_is_no_number_of_images() -> None:
    with pytest.raises(ValueError, match=r"validation must be a whole number .*, not True"):
        LongTailSplit(Counts(10), Counts(10), validation=True)


def test_a_share_that_leaves_no_labeled_image_is_refused() -> None:
    with pytest.raises(ValueError, match="class 4 has 6 images and the other parts take them all"):
        drawn("0.2,min=6")
    with pytest.raises(ValueError, match="validation=folder is for --dataset image_folder"):
        drawn("folder")


def test_existing_configurations_are_what_they_were() -> None:
    plan = Plan(Request(["supervised"], settings=["data.validation=20"]))
    assert plan.identity()["data"]["validation"] == 20
    assert type(plan.identity()["data"]["validation"]) is int
    share = Plan(Request(["supervised"], settings=["data.validation=0.25"]))
    assert share.identity()["data"]["validation"] == 0.25
    limited = Plan(Request(["supervised"], settings=["data.validation=20,min=4"]))
    assert limited.identity()["data"]["validation"] == "20,min=4"


def test_a_run_with_a_share_is_recorded_resumed_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "data.validation=0.04,min=3", "data.test=0.2")
    out = capsys.readouterr().out
    assert "recall is uncertain (95 %)" in out and "points)" in out
    counts = open_run(run).results.counts
    assert counts["validation"] == [7] * 10 and len(set(counts["test"])) > 1
    assert json.loads((run / "manifest.json").read_text())["rule"]["validation"] == "0.04,min=3"
    assert reopen(run).plain["data"]["validation"] == "0.04,min=3"
    words = ["data.validation=0.04,min=3", "data.test=0.2"]
    command = ["--algo", "supervised", "--out", str(run), *SMALL]
    assert cli.main([*command, *words, "--resume"]) == 0
    (found,), notes = reading.read([run])
    assert found.counts is not None and found.counts["validation"] == counts["validation"]
    assert not notes
    assert cli.main(["compare", str(run)]) == 0


@pytest.mark.parametrize("size", [32, 72])
def test_a_folder_of_validation_images(tmp_path: Path, size: int) -> None:
    root = photo_tree(tmp_path / "set", {"train": 9, "validation": 4, "test": 3}, "abc", (90, 76))
    words = ["--dataset", "image_folder", f"data.root={root}", f"data.size={size}"]
    words += ["data.labeled.shape=all", "data.labeled.largest=0", "data.unlabeled.largest=2"]
    words += ["data.unlabeled.rho=1", "data.workers=0", "data.cache=none"]
    run = train(tmp_path / "run", *words, "data.validation=folder")
    opened = open_run(run)
    assert opened.results.counts == {"validation": [4] * 3, "test": [3] * 3}
    assert opened.manifest["counts"]["labeled"] == [7] * 3
    assert min(opened.manifest["indices"]["validation"]) == 27  # after those of train
    if size == 32:
        assert cli.main(["export", str(run), "--state-dict", str(tmp_path / "x.pt")]) == 0
    (root / "validation" / "c").rename(root / "validation" / "d")
    command = ["--algo", "supervised", *SMALL, *words, "data.validation=folder"]
    assert cli.main([*command, "--out", str(tmp_path / "other")]) == 2
