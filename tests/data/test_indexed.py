"""CIFAR by files of indices: the images that they name, and files that are none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix.data import ImageSet, indexed
from ssl_selmix.data.indexed import Indexed, select
from ssl_selmix.datasets import cifar10_indices, cifar100_indices, small_imagenet127
from ssl_selmix.splits import Counts
from tests.helpers.images import noise

LABELS = np.tile(np.arange(3), 20)


def whole() -> ImageSet:
    images, test = (torch.from_numpy(noise(n, 3, 8, 8, seed=n)) for n in (60, 6))
    fixed: dict[str, Any] = {"class_names": ("a", "b", "c"), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return ImageSet(images, LABELS, test=test, test_labels=LABELS[:6], **fixed)


def config(**changed: Any) -> Indexed:
    settings: dict[str, Any] = {"labeled_index": "labeled.txt", "validation": 2}
    return cifar10_indices.Config(**(settings | changed))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 labeled images of three classes and a pool of 30 in each format, unsorted."""
    monkeypatch.chdir(tmp_path)
    labeled = [3, 0, 1, 2, 6, 9, 12, 15, 4, 5, 7, 10]
    Path("labeled.txt").write_text("\n".join(map(str, labeled)) + "\n")
    Path("labeled.json").write_text(json.dumps(labeled))
    np.save("labeled.npy", np.array(labeled, dtype=np.int32))
    np.save("pool.npy", np.arange(16, 46)[::-1])
    np.save("held.npy", np.arange(48, 60))
    return tmp_path


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("kind", ["txt", "json", "npy"])
def test_images_are_those_of_the_files(kind: str) -> None:
    source, own = whole(), config(labeled_index=f"labeled.{kind}", unlabeled_index="pool.npy")
    found = select(source, own)
    labeled = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15]
    others = [8, 11, 13, 14, *range(46, 60)]
    assert torch.equal(found.train, source.train[labeled + others]) and found.apart == 18
    assert found.train_labels.tolist() == LABELS[labeled + others].tolist()
    assert found.extra_unlabeled is not None
    assert torch.equal(found.extra_unlabeled, source.train[16:46])
    split = own.draw(found.train_labels, 3, 0, apart=found.apart)
    assert split.labeled.tolist() == sorted(range(12), key=lambda i: (LABELS[labeled[i]], i))
    assert split.counts["validation"] == [2, 2, 2] and split.validation.min() >= 12


@pytest.mark.usefixtures("files")
def test_where_validation_images_come_from() -> None:
    listed = config(validation_index="held.npy", validation="folder")
    found = select(whole(), listed)
    assert found.apart == 12 and torch.equal(found.train[12:], whole().train[48:])
    split = listed.draw(found.train_labels, 3, 0, apart=12)
    assert sorted(split.validation.tolist()) == list(range(12, 24))
    own = select(whole(), config(validation_from="labeled", validation="1"))
    assert own.apart == 0 and len(own.train) == 12
    drawn = config(unlabeled_index="pool.npy", unlabeled=Counts(2))
    assert select(whole(), drawn).extra_unlabeled is None
    assert cifar100_indices.Config().validation == 5


def test_what_is_read_is_known() -> None:
    own = config(root="/d", unlabeled_index="pool.npy")
    assert cifar10_indices.files(own) == [
        *map(Path, ("/d/cifar-10-batches-py", "labeled.txt", "pool.npy"))
    ]
    assert cifar100_indices.files(cifar100_indices.Config())[0].name == "cifar-100-python"
    given = small_imagenet127.files(small_imagenet127.Config(root="/d"))
    assert len(given) == 12 and small_imagenet127.files(small_imagenet127.Config()) == []


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "1 2 x", r"x\.txt cannot be read \(invalid literal"),
        ("x.txt", "1 2 60", r"x\.txt, entry 3: 60 is no position among 60 train images; count fr"),
        ("x.txt", "1 -2", r"x\.txt, entry 2: -2 is no position"),
        ("x.txt", "4 5 4", r"x\.txt, entry 3: 4 is there twice; keep one"),
        ("x.txt", "", r"x\.txt holds no row of whole numbers"),
        ("x.txt", "1 99999999999999999999", r"x\.txt: 99999999999999999999 is no position"),
        ("x.json", "{}", r"x\.json is no list of whole numbers"),
        ("x.json", "[1.5]", r"x\.json is no list of whole numbers"),
        ("x.json", "[true]", r"x\.json is no list of whole numbers"),
        ("x.json", "[1", r"x\.json cannot be read"),
        ("x.json", "[" * 100_000, r"x\.json cannot be read"),
        ("x.pkl", "1", r"x\.pkl is none of \.npy, \.txt, \.json; convert it"),
        ("x.npy", "1", r"x\.npy cannot be read"),
    ],
)
def test_wrong_files(name: str, content: str, message: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        indexed.read(Path(name), 60)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("files")
def test_wrong_arrays_and_settings() -> None:
    for array, message in (
        (np.zeros((2, 2), np.int64), r"no row of whole numbers but \(2, 2\) of int64"),
        (np.array([0.5]), r"of float64"),
        (np.array([{}], dtype=object), "cannot be read"),
    ):
        np.save("x.npy", array, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            indexed.read(Path("x.npy"), 60)
    with pytest.raises(ValueError, match=r"^no file gone\.npy"):
        indexed.read(Path("gone.npy"), 60)
    with pytest.raises(ValueError, match=r"data\.labeled_index=FILE is missing"):
        select(whole(), config(labeled_index=""))
    np.save("held.npy", np.array([1, 50]))
    with pytest.raises(ValueError, match=r"held\.npy: image 1 is to train on as well"):
        select(whole(), config(validation_index="held.npy", validation="folder"))
    for wrong in ({"validation_index": "held.npy"}, {"validation": "folder"}):
        with pytest.raises(ValueError, match="set both or none"):
            config(**wrong)
