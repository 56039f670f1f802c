"""Images that are in two parts of a split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.data import ImageSet, copies
from ssl_selmix.data.features import FeatureSet, Rows
from ssl_selmix.splits import Counts, LongTailSplit, Split
from tests.helpers.images import noise, noise_tree, write


def split(**parts: list[int]) -> Split:
    """One image of two classes in each part, but for those that are told."""
    rule = LongTailSplit(Counts(1), Counts(1), 1, test=1)
    drawn = rule.draw(np.array([0, 1] * 4), 2, 0)
    own = {name: np.array(index, dtype=np.int64) for name, index in parts.items()}
    return Split(**{**vars(drawn), **own})


PARTS = {"labeled": [0, 1], "unlabeled": [2, 3], "validation": [4, 5], "test": [6, 7]}


def source(same: dict[int, int], extra: bool = False, test: bool = False) -> ImageSet:
    images = torch.from_numpy(noise(8, 3, 8, 8))
    for copy, original in same.items():
        images[copy] = images[original]
    settings: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "class_names": ("a", "b")}
    if extra:
        settings["extra_unlabeled"] = images[[6, 4]]
    if test:
        settings |= {"test": images[[1, 7]], "test_labels": np.array([0, 1])}
    return ImageSet(images, np.array([0, 1] * 4), **settings)


def test_of_every_two_parts() -> None:
    assert copies.of_parts(source({}), split(**PARTS)) == {}
    found = copies.of_parts(source({6: 0, 7: 4, 5: 1, 3: 1, 2: 0}), split(**PARTS))
    assert found == {
        "test in labeled": {"images": 1, "first": [6, 0]},
        "test in unlabeled": {"images": 1, "first": [6, 2]},
        "test in validation": {"images": 1, "first": [7, 4]},
        "validation in labeled": {"images": 1, "first": [5, 1]},
        "validation in unlabeled": {"images": 1, "first": [5, 3]},
        "unlabeled in labeled": {"images": 2, "first": [2, 0]},
    }
    line = copies.told(found)
    assert "1 test image(s) in labeled" in line and "unlabeled image" not in line


def test_images_of_unknown_class_and_a_test_part_of_its_own() -> None:
    found = copies.of_parts(source({}, extra=True), split(**PARTS))
    assert found == {
        "test in unlabeled": {"images": 1, "first": [6, 8]},
        "validation in unlabeled": {"images": 1, "first": [4, 9]},
    }
    found = copies.of_parts(source({}, test=True), split(**PARTS | {"test": []}))
    assert found == {"test in labeled": {"images": 1, "first": [0, 1]}}


def test_a_line_is_for_what_flatters_alone() -> None:
    found = copies.of_parts(source({2: 0}), split(**PARTS))
    assert list(found) == ["unlabeled in labeled"] and copies.told(found) == ""
    joined = split(**PARTS | {"unlabeled": [0, 1, 2]})
    joined.rule.labeled_in_pool = True
    assert copies.of_parts(source({}), joined) == {}


def test_features() -> None:
    features = torch.arange(32.0).reshape(8, 4)
    features[5] = features[0]
    rows = Rows(features[:4], features[4:])
    found = copies.of_parts(FeatureSet(rows, np.array([0, 1] * 4), ("a", "b")), split(**PARTS))
    assert found == {"validation in labeled": {"images": 1, "first": [5, 0]}}


@pytest.mark.parametrize("size", [[], ["data.size=72", "data.workers=0"]])
def test_a_run_records_and_tells_them(
    size: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    noise_tree(tmp_path / "p", {"train": 4, "test": 2}, (16, 16, 3))
    for seed, place in enumerate(("train/cat/9.png", "unlabeled/1.png", "unlabeled/2.png"), 900):
        write(tmp_path / "p" / place, noise(16, 16, 3, seed=seed))
    words = [
        *("--algo", "fixmatch", "model.name=cnn-4", "fixmatch.steps=1", "fixmatch.batch=4"),
        *("--dataset", "image_folder", "--preset", "image_folder-as-found", "data.root=p"),
        *("data.validation=1", "data.cache=none", "pictures=false", *size),
    ]
    (tmp_path / "p/test/cat/9.png").write_bytes((tmp_path / "p/train/cat/9.png").read_bytes())
    assert cli.main([*words, "--out", "run"]) == 0
    found = json.loads(Path("run/manifest.json").read_text())["copies"]
    (pair,) = [key for key in found if key.startswith("test in")]
    assert found[pair] == {"images": 1, "first": [2, 4]} and str(tmp_path) not in str(found)
    said = capsys.readouterr().out
    assert said.count("the same image is in two parts: 1 test image(s) in") == 1
    assert cli.main([*words, "--out", "run", "--resume"]) == 0  # whose copies are not looked for
    assert "in two parts" not in capsys.readouterr().out
