"""Small ImageNet-127 in pickled batches, as CoSSL's script writes them; pickles that are code."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix.common import plugins
from ssl_selmix.data import batches
from ssl_selmix.datasets import small_imagenet127
from ssl_selmix.runs.plan import Plan, Request
from tests.helpers.images import noise

NUM = 127


def old(content: dict[str, Any]) -> bytes:
    """As the numpy before 2 wrote it."""
    return pickle.dumps(content, 2).replace(b"numpy._core", b"numpy.core")


def write(root: Path, side: int = 8) -> np.ndarray:
    """Ten train files and one of test images; 12 of every class, 24 of class 0, in mixed order."""
    labels = np.random.default_rng(0).permutation(np.r_[np.tile(np.arange(NUM), 12), [0] * 12])
    for i, part in enumerate(np.array_split(labels, 10)):
        data = noise(len(part), 3 * side * side, seed=i)
        content = {"data": data, "mean": data.mean(0), "labels": (part + 1).tolist()}
        path = root / f"train_data_batch_{i + 1}"
        path.write_bytes(old(content) if i % 2 else pickle.dumps(content, 4))
    test = {"data": noise(NUM, 3 * side * side, seed=99), "labels": list(range(1, NUM + 1))}
    (root / "val_data").write_bytes(pickle.dumps(test, 5))
    return labels


@pytest.mark.filterwarnings("error")
def test_small_imagenet127(tmp_path: Path) -> None:
    labels = write(tmp_path)
    found = small_imagenet127.load(small_imagenet127.Config(root=str(tmp_path)))
    assert np.array_equal(found.train_labels, labels) and found.image_shape == (3, 8, 8)
    first = pickle.loads((tmp_path / "train_data_batch_1").read_bytes())["data"]
    assert np.array_equal(found.train[0].numpy(), first[0].reshape(3, 8, 8))  # red, green, blue
    last = pickle.loads((tmp_path / "train_data_batch_10").read_bytes())["data"]
    assert np.array_equal(found.train[-1].flatten().numpy(), last[-1])
    assert found.test is not None and len(found.test) == NUM and found.class_names[5] == "5"
    words = [f"n{k:08} word {k}" for k in range(NUM)]
    (tmp_path / "synset_words_up_down_127.txt").write_text("\n".join(words) + "\n")
    named = small_imagenet127.load(small_imagenet127.Config(root=str(tmp_path)))
    assert named.class_names[5] == "word 5"
    (tmp_path / "synset_words_up_down_127.txt").write_text("\n".join(words[:-1]))
    with pytest.raises(ValueError, match="has 126 names, 126 of them different"):
        small_imagenet127.load(small_imagenet127.Config(root=str(tmp_path)))


def test_the_split_is_that_of_the_protocol(tmp_path: Path) -> None:
    labels = write(tmp_path)
    config = small_imagenet127.Config(root=str(tmp_path), validation=2)
    split = config.draw(labels, NUM, 0)
    assert split.counts["labeled"] == [round(2.4), *[round(1.2)] * (NUM - 1)]
    # The pool is every train image but those for validation.
    assert split.counts["unlabeled"] == [22, *[10] * (NUM - 1)]
    assert np.isin(split.labeled, split.unlabeled).all()


@pytest.mark.parametrize("algorithm", ["fixmatch", "simpro"])
def test_presets(algorithm: str) -> None:
    preset = f"small_imagenet127-{algorithm}"
    plan = Plan(Request([algorithm], "small_imagenet127", preset))
    assert plan.config[algorithm].steps == 250_000
    assert plan.config["model"].name == "resnet-50"
    assert plan.config["data"].labeled.share == 0.1 and plan.config["data"].labeled_in_pool
    assert "P-IN127" in plugins.preset_text(preset)


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": Code(), "labels": [1]}, r"names (posix|nt)\.mkdir, which is no part of an array"),
        ({"data": np.array([Code()], dtype=object), "labels": [1]}, r"\.mkdir, which is no part"),
        ({"data": torch.zeros(1, 12)}, r"names torch.*, which is no part"),
        ({"data": np.zeros((1, 12), np.uint8)}, "holds no data and labels"),
        ([1, 2], "holds no data and labels"),
        ({"data": np.zeros((1, 12)), "labels": [1]}, r"data is no array N×\(3·S·S\) of uint8"),
        ({"data": np.zeros((1, 2, 12), np.uint8), "labels": [1]}, "data is no array"),
        ({"data": np.zeros((1, 11), np.uint8), "labels": [1]}, "rows of 11 values, which are no"),
        ({"data": np.zeros((2, 12), np.uint8), "labels": [1]}, r"2 images and labels \(1,\)"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [0.5]}, "and labels .* of float64"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [0]}, "labels from 0 to 0, and they are"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [900]}, "ImageNet's own classes, which"),
    ],
)
def test_wrong_batches(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "batch"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        batches.read([file], NUM)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04\x95", b"cnumpy\nndarray\n."])
def test_damaged_batches(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"batch (cannot be read|is damaged|holds no data)"):
        batches.read([tmp_path / "batch"], NUM)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path)
    content = {"data": noise(1, 48), "labels": [1]}
    (tmp_path / "train_data_batch_7").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"batch_7 has images of 4 pixels and train_data_batch_1 "):
        small_imagenet127.load(small_imagenet127.Config(root=str(tmp_path)))
    (tmp_path / "val_data").unlink()
    with pytest.raises(ValueError, match=r"^no file .*/val_data; put train_data_batch_1 to"):
        small_imagenet127.load(small_imagenet127.Config(root=str(tmp_path)))
    with pytest.raises(ValueError, match=r"needs data\.root=PATH; put"):
        small_imagenet127.load(small_imagenet127.Config())
