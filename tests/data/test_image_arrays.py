"""Arrays of images: what they may look like, what is refused, and that they give a folder's run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ssl_selmix import cli
from ssl_selmix.data import ImageSet
from ssl_selmix.datasets import arrays as plugin
from ssl_selmix.datasets import image_folder

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def given() -> Arrays:
    """Three classes of 16×16 RGB images with MedMNIST's keys and its labels N×1."""
    rng = np.random.default_rng(0)
    found: Arrays = {}
    for part, num in (("train", 12), ("val", 2), ("test", 3)):
        found[f"{part}_images"] = rng.integers(0, 256, (3 * num, 16, 16, 3), dtype=np.uint8)
        found[f"{part}_labels"] = np.repeat(np.arange(3, dtype=np.uint8), num)[:, None]
    return found


def save(folder: Path, arrays: Arrays, name: str = "x.npz") -> Path:
    np.savez(folder / name, **arrays)  # type: ignore[arg-type]
    return folder / name


def load(file: Path, **settings: Any) -> ImageSet:
    return plugin.load(plugin.Config(file=str(file), **settings))


def as_folders(root: Path, arrays: Arrays) -> Path:
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        labels = arrays[f"{name}_labels"].reshape(-1)
        for i, (image, label) in enumerate(zip(arrays[f"{name}_images"], labels, strict=True)):
            folder = root / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:03}.png")
    return root


def test_a_run_on_arrays_is_that_on_folders_of_the_same_images(
    given: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, given)
    root = as_folders(tmp_path / "folders", given)
    words = [
        *("--algo", "fixmatch", "--then", "selmix", "model.name=cnn-4", "pictures=false"),
        *("fixmatch.steps=2", "selmix.steps=2", "fixmatch.batch=4", "selmix.batch=4"),
        *("data.validation=folder", "data.labeled.largest=6", "data.labeled.rho=2"),
        *("data.labeled.shape=long_tail", "data.unlabeled.shape=long_tail"),
        *("data.unlabeled.largest=6", "data.unlabeled.rho=1"),
    ]
    folder = ["--dataset", "image_folder", f"data.root={root}", "data.cache=none"]
    arrays = ["--dataset", "arrays", "data.file=x.npz"]
    for name, source in (("folder", folder), ("arrays", arrays)):
        assert cli.main([*words, *source, "--out", name]) == 0
    weights = [
        torch.load(tmp_path / name / "2-selmix" / "model.pt", weights_only=True)["state"]["teacher"]
        for name in ("folder", "arrays")
    ]
    assert str(weights[0]) == str(weights[1]) and len(str(weights[0])) > 1000
    one, other = (
        json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("folder", "arrays")
    )
    for key in ("indices_sha256", "images_sha256"):
        assert one[key] == other[key]


@pytest.mark.parametrize("size", [None, 8])
def test_grey_images_become_those_of_the_folder(tmp_path: Path, given: Arrays, size: int) -> None:
    grey = {k: a[..., 0] if "images" in k else a for k, a in given.items()}
    folder = image_folder.load(
        image_folder.Config(
            root=str(as_folders(tmp_path / "f", grey)), cache="none", validation="folder", size=size
        )
    )
    for name, arrays in (("a", grey), ("b", grey | {"val_images": grey["val_images"][:, None]})):
        found = load(save(tmp_path, arrays, f"{name}.npz"), validation="folder", size=size)
        assert found.sha256() == folder.sha256() and found.mean == folder.mean
        assert found.apart == 6 and found.class_names == ("0", "1", "2")


def test_layouts_and_kinds_of_file_are_told_apart(given: Arrays, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    first = load(save(tmp_path, given)).sha256()
    channels_first = given | {
        k: np.ascontiguousarray(a.transpose(0, 3, 1, 2)) for k, a in given.items() if "images" in k
    }
    assert load(save(tmp_path, channels_first, "b.npz")).sha256() == first
    strided = given | {"train_images": np.asfortranarray(given["train_images"])}
    assert load(save(tmp_path, strided, "c.npz")).sha256() == first
    plain = {k: np.ascontiguousarray(a) for k, a in channels_first.items()}
    safetensors.save_file(plain, tmp_path / "d.safetensors")
    assert load(tmp_path / "d.safetensors").sha256() == first
    np.save(tmp_path / "e.npy", given["train_images"])
    labels = given["train_labels"].reshape(-1)
    rows = [f"{'abc'[k]},{'test' if i % 4 == 3 else 'train'}" for i, k in enumerate(labels)]
    (tmp_path / "e.csv").write_text("\n".join(["label,part", *rows]))
    found = load(tmp_path / "e.npy")
    assert found.class_names == ("a", "b", "c") and len(found.train) == 27
    assert found.test is not None and len(found.test) == 9


def test_images_without_a_class_are_the_pool(given: Arrays, tmp_path: Path) -> None:
    labels = given["train_labels"].astype(np.int64)
    labels[::5] = -1
    more = {"unlabeled_images": given["val_images"], "train_labels": labels}
    found = load(save(tmp_path, given | more), classes=["cat", "dog", "owl"])
    assert found.class_names == ("cat", "dog", "owl") and len(found.train) == 28
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == 8 + 6
    pixels = found.extra_unlabeled.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels[:8], given["train_images"][::5])
    assert (found.train_labels >= 0).all()


def test_copies_in_two_parts_are_told(
    given: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = given["test_images"].copy()
    copied[4] = given["train_images"][13]
    load(save(tmp_path, given | {"test_images": copied}))
    said = " ".join(capsys.readouterr().out.split())
    assert "in train and in test, as byte-identical images" in said
    assert "train[13] and test[4]" in said


IMAGES = np.zeros((36, 16, 16, 3), np.uint8)
WRONG: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "float images": ({"train_images": IMAGES / 255.0}, {}, "float64.*multiplying by 255"),
    "wide integers": ({"train_images": IMAGES.astype(np.int64)}, {}, r"int64.*np\.uint8"),
    "objects": ({"train_images": np.array([{}, 1])}, {}, "Python objects"),
    "two dimensions": ({"train_images": IMAGES[:, :, 0, 0]}, {}, "36×16; images are N×H×W"),
    "two channels": ({"train_images": IMAGES[..., :2]}, {}, "36×16×16×2; images are"),
    "alpha": ({"train_images": np.zeros((36, 16, 16, 4), np.uint8)}, {}, "transparency"),
    "videos": ({"train_images": IMAGES[None]}, {}, "1×36×16×16×3; images are"),
    "no image": ({"train_images": IMAGES[:0]}, {}, "no image; leave it out"),
    "large": ({"train_images": np.zeros((36, 80, 65), np.uint8)}, {}, "65×80.*data.size=64"),
    "large size": ({}, {"size": 96}, r"size=96.*1\.\.64.*image_folder"),
    "small": ({f"{p}_images": IMAGES[:n, :3] for p, n in (("train", 36), ("test", 9))}, {}, "than"),
    "other size in test": ({"test_images": IMAGES[:9, :12]}, {}, "test images.*data.size"),
    "several labels": ({"train_labels": np.zeros((36, 14), int)}, {}, "36×14, several labels"),
    "too few labels": ({"train_labels": np.zeros(35, int)}, {}, "35 and train_images 36×16"),
    "float labels": ({"train_labels": np.zeros(36)}, {}, "float64; labels are whole numbers"),
    "one class": ({"train_labels": np.zeros(36, int)}, {}, "1 classes to train on"),
    "a gap": ({"train_labels": np.arange(36) % 2 * 2}, {}, "no train image of the class '1'"),
    "label below": ({"train_labels": np.arange(36) % 4 - 2}, {}, "run from -2 to 1"),
    "class of test alone": ({"test_labels": np.arange(9) % 4}, {}, "run from 0 to 3"),
    "test without class": ({"test_labels": np.arange(9) % 4 - 1}, {}, "test image 0 has no class"),
    "too few names": ({}, {"classes": ["a", "b"]}, "there are 2 classes"),
    "names twice": ({}, {"classes": ["a", "b", "a"]}, "'a' is named twice"),
    "alike names": ({}, {"classes": ["a", "A", "b"]}, "look alike"),
    "names as numbers": ({"class_names": np.arange(3)}, {}, "one row of texts"),
    "the same part twice": ({"x_train": IMAGES}, {}, "both train_images and x_train"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_refused_in_a_line(given: Arrays, tmp_path: Path, case: str) -> None:
    changed, settings, message = WRONG[case]
    file = save(tmp_path, given | changed)
    with pytest.raises(ValueError, match=message) as told:
        load(file, **settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("left_out", "settings", "message"),
    [
        ("train_images", {}, "train_labels and no train_images|no images to train on"),
        ("train_labels", {}, "no train_labels"),
        ("test_labels", {}, "test has no labels; add test_labels"),
        ("test_images", {"validation": 1}, "test_labels and no test_images"),
        ("val", {"validation": "folder"}, "no val_images"),
        ("test", {}, r"no test_images.*data\.test=0\.2"),
    ],
)
def test_missing_arrays(
    given: Arrays, tmp_path: Path, left_out: str, settings: dict[str, Any], message: str
) -> None:
    file = save(tmp_path, {k: a for k, a in given.items() if not k.startswith(left_out)})
    with pytest.raises(ValueError, match=message):
        load(file, **settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"data\.file=FILE"),
        ("none.npz", r"no file .*none\.npz; check data\.file"),
        ("x.pkl", "is none of .npz"),
        ("bad.npz", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name) if name else plugin.load(plugin.Config())
