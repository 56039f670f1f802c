"""`ssl-selmix posthoc`: rules from files of scores and from runs, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli, posthoc
from ssl_selmix.decision import DecisionRule
from tests.helpers.runs import train


def scores(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(3).repeat(per_class)
    noise = generator.normal(size=(len(labels), 3))
    return noise + 1.5 * np.eye(3)[labels] + np.array([2.0, 1, 0]), labels


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Held-out scores, and those of other images."""
    names = np.array(["cat", "[dog]", "emu"])
    for name, seed in (("held.npz", 0), ("test.npz", 1)):
        z, y = scores(60, seed)
        np.savez(tmp_path / name, scores=z, labels=y, class_names=names)
    return tmp_path / "held.npz", tmp_path / "test.npz"


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["posthoc", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_file_of_scores_gives_the_rule_of_the_library(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, test = files
    out = tmp_path / "rule.npz"
    found = answer(capsys, held, "--test", test, "--out", out, "--objective", "g_mean")
    z, y = scores(60, 0)
    rule = posthoc(z, y, objective="g_mean")
    assert found["offsets"] == pytest.approx(rule.offsets.tolist())
    assert found["cross_fitted"]["g_mean"] == pytest.approx(rule.cross_fitted["g_mean"])
    assert found["optimism"]["objective"] == pytest.approx(rule.optimism["objective"])
    saved = DecisionRule.load(out)
    z, y = scores(60, 1)
    assert found["test_before"]["accuracy"] == pytest.approx((z.argmax(1) == y).mean())
    assert found["test_after"]["accuracy"] == pytest.approx((saved.predict(z) == y).mean())
    assert found["test_after"]["objective"] == pytest.approx(found["test_after"]["g_mean"])
    # The file is not overwritten without being asked.
    assert cli.main(["posthoc", str(held), "--out", str(out)]) == 2
    assert "add --force" in capsys.readouterr().err


def test_tables_show_columns_classes_and_notes(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("def first(c):\n    return c[0, 0] / c[0].sum() - 0.9\n")
    words = ["--rule", "gains", "--constraint", f"{own}:first", "--test", str(files[1])]
    assert cli.main(["posthoc", str(files[0]), *words, "--objective", "mean_recall"]) == 0
    shown = capsys.readouterr().out
    for part in ("cross-fitted", "test after", "slack first", "[dog]", "Solver: ", "interval"):
        assert part in shown
    assert "offset" not in shown.split("recall of each class")[1].split("emu")[0]


def test_probabilities_and_priors(
    tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    z, y = scores(60, 0)
    path, own = tmp_path / "probs.npz", tmp_path / "own.py"
    np.savez(path, probs=torch.from_numpy(z).softmax(1).numpy(), labels=y)
    own.write_text("def right(c):\n    return c.trace()\n")
    same, skewed = (
        answer(capsys, path, "--objective", f"{own}:right", *more)
        for more in ([], ["--prior", "0.05,0.05,0.9"])
    )
    assert same["class_names"] == ["0", "1", "2"]
    assert skewed["offsets"][2] - skewed["offsets"][0] > same["offsets"][2] - same["offsets"][0]
    assert cli.main(["posthoc", str(path), "--test", str(files[1])]) == 2
    assert "must hold probs of 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"score": np.ones((4, 2)), "labels": [0, 0, 1, 1]}, "unknown array 'score'"),
        ({"scores": np.ones((4, 2))}, "must hold labels and one of scores, logits, probs"),
        ({"scores": 1, "logits": 1, "labels": 1}, "one of scores, logits, probs, it holds scores"),
        ({"scores": np.ones((4, 2)), "labels": [0, 1, 1]}, "got (4, 2) and (3,)"),
        ({"scores": np.ones(4), "labels": [0, 0, 1, 1]}, "must be (images, classes)"),
        ({"scores": np.ones((4, 2)), "labels": [0.0, 0, 1, 1]}, "labels must be integers"),
        ({"scores": np.full((4, 2), "a"), "labels": [0, 0, 1, 1]}, "scores must be numbers"),
        ({"scores": np.array([[None, 1]] * 2), "labels": [0, 1]}, "an array of objects"),
        ({"scores": np.full((4, 2), np.nan), "labels": [0, 0, 1, 1]}, "scores must be finite"),
        ({"scores": np.ones((4, 2)), "labels": [0, 0, 1, 2]}, "labels must lie in 0..1"),
        ({"scores": np.ones((4, 2)), "labels": [0, 0, 0, 0]}, "every class needs a held-out"),
        ({"scores": np.ones((2, 2)), "labels": [0, 1], "class_names": ["a"]}, "must be 2 words"),
        ({"probs": np.ones((2, 2)), "labels": [0, 1]}, "probabilities must be >= 0 and sum to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_file_is_told_in_one_line(
    arrays: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    told(["posthoc", str(tmp_path / "wrong.npz")], words, capsys)


def told(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and part in err and err.count("\n") == 1


def test_other_mistakes(
    tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "one.npy", np.ones(3))
    held = str(files[0])
    for words, part in (
        ([str(tmp_path / "none.npz")], "no file"),
        ([str(tmp_path / "text.npz")], "is no .npz of plain arrays"),
        ([str(tmp_path / "one.npy")], "one array without a name"),
        ([held, "device=cpu"], "device=cpu is for the folder of a run"),
        ([held, "--objective", "h_mena"], "unknown objective 'h_mena'"),
        ([held, "--prior", "0.5,0.5"], "prior must be 3 positive numbers"),
        ([held, "--folds", "1"], "folds must be an integer >= 2"),
        ([str(tmp_path)], "is no run of ssl_selmix"),
    ):
        told(["posthoc", *words], part, capsys)


def test_a_run_is_judged_by_its_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "data.test=3")
    results = json.loads((run / "results.json").read_text())
    found = answer(capsys, run, "--objective", "min_ht_recall", "device=cpu")
    measured = results["stages"][-1]["validation"]
    assert found["before"]["per_class_recall"] == pytest.approx(measured["per_class_recall"])
    assert found["before"]["objective"] == pytest.approx(measured["min_ht_recall"])
    assert found["class_names"] == results["class_names"]
