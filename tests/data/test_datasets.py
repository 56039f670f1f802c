"""Data sets: the digits as they are, and folders of images as users have them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix.data import ImageSet, assemble
from ssl_selmix.datasets import digits, image_folder
from ssl_selmix.images import folder
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, noise_tree, seed_of, write

# Digits.


@pytest.fixture(scope="module")
def loaded() -> ImageSet:
    return digits.load(digits.Config())


def test_digits_are_all_there(loaded: ImageSet) -> None:
    assert loaded.train.shape == (1797, 1, 8, 8) and loaded.train.dtype == torch.uint8
    counts = np.bincount(loaded.train_labels).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert loaded.class_names == tuple("0123456789")
    assert loaded.test is None and loaded.test_labels is None


def test_digits_are_those_that_scikit_learn_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    found = [digits.load(digits.Config())]
    monkeypatch.setattr(digits, "find_spec", lambda name: None)  # as if its file were elsewhere
    found.append(digits.load(digits.Config()))
    expected = load_digits()
    for one in found:
        pixels = torch.from_numpy(expected.images * (255 / 16)).round().to(torch.uint8)
        assert torch.equal(one.train[:, 0], pixels)
        assert np.array_equal(one.train_labels, expected.target)
        assert one.train_labels.dtype == np.int64
        assert one.class_names == tuple(map(str, expected.target_names))


def test_digits_use_the_whole_range(loaded: ImageSet) -> None:
    assert (int(loaded.train.min()), int(loaded.train.max())) == (0, 255)
    levels = torch.unique(loaded.train)
    assert torch.equal(levels, (torch.arange(17) * 255 / 16).round().to(torch.uint8))


def test_digits_are_normalised_by_their_own_mean_and_deviation(loaded: ImageSet) -> None:
    pixels = loaded.train.double()
    assert loaded.mean == pytest.approx([float(pixels.mean())], abs=0.1)
    assert loaded.std == pytest.approx([float(pixels.std())], abs=0.1)


def test_digits_are_never_mirrored(loaded: ImageSet) -> None:
    assert not loaded.weak.flip and not loaded.strong.weak.flip


def test_default_split_of_the_digits(loaded: ImageSet) -> None:
    split = digits.Config().draw(loaded.train_labels, 10, seed=0)
    labeled, unlabeled = (
        np.bincount(loaded.train_labels[i]) for i in (split.labeled, split.unlabeled)
    )
    assert (labeled[0], labeled[-1], unlabeled[0], unlabeled[-1]) == (30, 2, 60, 4)
    assert (len(split.validation), len(split.test)) == (200, 500)


# Folders.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three images to train on and two to test on, 6 wide and 5 high."""
    return noise_tree(tmp_path, {"train": 3, "test": 2}, (5, 6, 3))


def load(root: Path, size: int | None = None) -> ImageSet:
    found = image_folder.load(image_folder.Config(root=str(root), size=size))
    assert isinstance(found, ImageSet)
    return found


def test_folder_is_read_in_sorted_order(root: Path) -> None:
    found = load(root)
    assert found.class_names == ("cat", "dog")
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test is not None and found.test_labels is not None
    assert found.test_labels.tolist() == [0, 0, 1, 1]
    assert found.train.shape == (6, 3, 5, 6) and found.test.shape == (4, 3, 5, 6)
    assert found.train.dtype == torch.uint8
    expected = torch.from_numpy(noise(5, 6, 3, seed=seed_of("train", 1, 1))).permute(2, 0, 1)
    assert torch.equal(found.train[4], expected)


def test_constants_are_those_of_the_training_images(root: Path) -> None:
    found = load(root)
    values = found.train.double().transpose(0, 1).flatten(1)
    assert found.mean == pytest.approx(values.mean(1).tolist())
    assert found.std == pytest.approx(values.std(1).tolist())


def test_images_of_one_colour_can_be_normalised(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        write(path, np.full((5, 6, 3), 7, dtype=np.uint8))
    assert load(root).std == (1, 1, 1)


def test_jpeg_is_read(root: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 6, dtype=np.uint8)[None, :, None], (5, 6, 3))
    write(root / "train" / "cat" / "0.jpg", smooth)
    write(root / "train" / "cat" / "00.JPEG", smooth)
    found = load(root)
    assert len(found.train) == 8
    difference = found.train[0].int() - torch.from_numpy(smooth.copy()).permute(2, 0, 1).int()
    assert int(difference.abs().max()) < 16


def test_resizing_makes_squares_of_unequal_images(root: Path) -> None:
    write(root / "train" / "dog" / "0.png", noise(9, 3, 3))
    write(root / "test" / "dog" / "0.png", noise(100, 70, 3))
    found = load(root, size=7)
    assert found.test is not None
    assert found.train.shape == (6, 3, 7, 7) and found.test.shape == (4, 3, 7, 7)


def test_resizing_to_the_same_size_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x.png", noise(4, 4, 3))
    same, *_ = folder.decode(str(tmp_path / "x.png"), 4)
    assert np.array_equal(same, folder.decode(str(tmp_path / "x.png"), None)[0])


def test_unequal_sizes_name_both_files_and_the_remedy(root: Path) -> None:
    write(root / "train" / "dog" / "1.png", noise(5, 7, 3))
    message = r"dog/1\.png is 7×5 pixels and .*cat/0\.png 6×5; set data\.size=32"
    with pytest.raises(ValueError, match=message):
        load(root)


def test_test_images_of_another_size(root: Path) -> None:
    for path in (root / "test").rglob("*.png"):
        write(path, noise(6, 6, 3))
    with pytest.raises(ValueError, match=r"\(5, 6\) and test images \(6, 6\).*data\.size"):
        load(root)


def test_images_too_small_to_be_shifted(root: Path) -> None:
    with pytest.raises(ValueError, match=r"more than 4 pixels a side.*not 4; set data\.size=32"):
        load(root, size=4)


def test_images_too_large_for_the_pool(root: Path) -> None:
    write(root / "train" / "cat" / "0.png", noise(3, 65, 3))
    with pytest.raises(
        ValueError, match=r"cat/0\.png is 65×3 pixels.*at most 64; set data\.size=64"
    ):
        load(root)


@pytest.mark.parametrize("size", [0, -1])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be at least 1 pixel, not {size}"):
        image_folder.Config(size=size)


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_in_one_part_only(root: Path, part: str) -> None:
    write(root / part / "eel" / "0.png", noise(5, 6, 3))
    with pytest.raises(ValueError, match=r"must hold the same classes; only one of them has eel"):
        load(root)


@pytest.mark.parametrize("part", ["train", "test"])
def test_missing_part(root: Path, part: str) -> None:
    (root / part).rename(root / "elsewhere")
    with pytest.raises(ValueError, match=rf"no folder .*{part}; data\.root must hold"):
        load(root)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs data\.root=PATH"):
        image_folder.load(image_folder.Config())


def test_a_single_class_is_no_classification(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "dog").rename(root / f"dog-{part}")
    with pytest.raises(ValueError, match="holds 1 class folders; at least 2"):
        load(root)


def test_default_counts_are_those_of_the_paper() -> None:
    config = image_folder.Config()
    assert (config.labeled, config.unlabeled) == (Counts(1500, 100.0), Counts(3000, 100.0))


# Images as they are found: no drawn tail, and a folder without labels.


def as_found(root: Path, **more: Any) -> image_folder.Config:
    return image_folder.Config(
        root=str(root),
        labeled=Counts(0, shape="all"),
        unlabeled=Counts(0, shape="unknown"),
        validation=1,
        **more,
    )


@pytest.fixture
def found(root: Path) -> Path:
    """Also two more cats, and three images in `unlabeled`, one of them in a folder of its own."""
    for i in (3, 4):
        write(root / "train" / "cat" / f"{i}.png", noise(5, 6, 3, seed=i))
    for i, place in enumerate(("x.png", "deep/y.png", "z.png")):
        write(root / "unlabeled" / place, noise(5, 6, 3, seed=1000 + i))
    (root / "unlabeled" / "notes.txt").write_text("no image")
    return root


def test_a_folder_without_labels_is_the_pool(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = as_found(found)
    images = image_folder.load(config)
    assert "left out 1 file without a known image suffix" in capsys.readouterr().out
    assert images.extra_unlabeled is not None and len(images.extra_unlabeled) == 3
    expected = torch.from_numpy(noise(5, 6, 3, seed=1001)).permute(2, 0, 1)  # deep/y.png is first
    assert isinstance(images.extra_unlabeled, torch.Tensor)
    assert torch.equal(images.extra_unlabeled[0], expected)
    split = config.draw(images.train_labels, 2, seed=0)
    assert split.counts["labeled"] == [4, 2] and split.counts["unlabeled"] == [0, 0]
    data, diagnostics = assemble(images, split, seed=0, device=torch.device("cpu"))
    assert data.task.labeled_counts.tolist() == [4, 2] and len(data.unlabeled) == 3
    assert diagnostics.labels.tolist() == [-1, -1, -1]
    # Without the shape the folder is not looked at.
    assert load(found).extra_unlabeled is None


def test_test_images_may_be_held_out_of_train(found: Path) -> None:
    (found / "test").rename(found / "elsewhere")
    config = as_found(found, test=1)
    images = image_folder.load(config)
    assert images.test is None
    split = config.draw(images.train_labels, 2, seed=0)
    assert split.counts["labeled"] == [3, 1] and split.counts["test"] == [1, 1]


def test_a_pool_that_is_not_there_is_told(found: Path) -> None:
    for file in found.glob("unlabeled/**/*.png"):
        file.unlink()
    with pytest.raises(ValueError, match="unlabeled holds no image"):
        image_folder.load(as_found(found))
    shutil.rmtree(found / "unlabeled")
    with pytest.raises(ValueError, match=r"no folder .*unlabeled; data\.unlabeled\.shape=unknown"):
        image_folder.load(as_found(found))
    write(found / "unlabeled" / "wide.png", noise(5, 9, 3))
    with pytest.raises(ValueError, match=r"unlabeled images \(5, 9\) pixels; set data\.size"):
        image_folder.load(as_found(found))


def test_files_without_labels_are_streamed_too(found: Path) -> None:
    write(found / "unlabeled" / "deep" / "y.png", np.full((5, 6, 3), 200, dtype=np.uint8))
    images = image_folder.load(as_found(found, size=80, workers=0))
    assert images.extra_unlabeled is not None and len(images.extra_unlabeled) == 3
    assert images.image_shape == (3, 80, 80)
    split = as_found(found).draw(images.train_labels, 2, seed=0)
    data, _ = assemble(images, split, seed=0, device=torch.device("cpu"))
    assert data.unlabeled.tolist() == [8, 9, 10] and len(data.test_labels) == 4
    assert bool((data.take(torch.tensor([8])) == 200).all())
    tests = torch.cat(list(data.test_batches()))
    assert torch.equal(tests, torch.cat(list(data.plain(torch.arange(11, 15)))))
    before = images.sha256()
    write(found / "unlabeled" / "z.png", noise(5, 6, 3, seed=7))
    assert image_folder.load(as_found(found, size=80, workers=0)).sha256() != before
