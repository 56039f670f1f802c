"""Sets of the library `datasets`: what is taken and refused, and that they give a folder's run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.common import plugins
from ssl_selmix.data import ImageSet, arrow
from ssl_selmix.data.files import FileSet
from ssl_selmix.datasets import hf as plugin
from ssl_selmix.datasets import image_folder
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, noise_tree, write

COMMON = [
    *("--algo", "fixmatch", "--then", "selmix", "model.name=cnn-4", "pictures=false"),
    *("fixmatch.steps=1", "selmix.steps=1", "fixmatch.batch=4", "selmix.batch=4"),
    *("data.validation=2", "data.cache=none"),
]


@pytest.fixture(scope="module")
def datasets() -> Any:
    """The library, which the extra `hf` brings."""
    found = pytest.importorskip("datasets")
    if not hasattr(found, "load_from_disk"):  # the folder of that name at the root of a checkout
        pytest.skip("the library datasets is not installed")
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = noise_tree(tmp_path_factory.mktemp("hf") / "p", {"train": 10, "test": 3}, (16, 16, 3))
    for i in range(9):
        write(root / "unlabeled" / f"{i}.png", noise(16, 16, 3, seed=900 + i))
    return root


def part_of(datasets: Any, files: Sequence[Path], labels: Sequence[Any]) -> Any:
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    images = [str(file) for file in files]
    return datasets.Dataset.from_dict({"image": images, "label": list(labels)}, features=kinds)


@pytest.fixture(scope="module")
def saved(datasets: Any, photos: Path) -> Path:
    """The folders as `save_to_disk` writes them, in the order of file names alone."""
    parts = {}
    for part in ("train", "test", "unlabeled"):
        files = sorted((photos / part).rglob("*.png"), key=lambda file: file.name)
        labels = [None if part == "unlabeled" else file.parent.name for file in files]
        parts[part] = part_of(datasets, files, labels)
    whole = datasets.DatasetDict(parts)
    folder = photos.parent / "saved"
    datasets.disable_progress_bars()
    whole.save_to_disk(str(folder), num_shards={"train": 2, "test": 1, "unlabeled": 1})
    return folder


def load(root: Path, **settings: Any) -> ImageSet | FileSet:
    return plugin.load(plugin.Config(root=str(root), **{"cache": "none"} | settings))


def of_folder(photos: Path, **settings: Any) -> ImageSet | FileSet:
    drawn = {"labeled": Counts(0, shape="all"), "unlabeled": Counts(0, shape="unknown")}
    return image_folder.load(
        image_folder.Config(root=str(photos), validation=2, cache="none", **drawn, **settings)  # type: ignore[arg-type]
    )


def test_a_saved_set_gives_the_images_of_the_folders(photos: Path, saved: Path) -> None:
    found, folder = load(saved), of_folder(photos)
    assert isinstance(found, ImageSet) and found.class_names == folder.class_names
    assert np.array_equal(found.train_labels, folder.train_labels)
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == 9
    assert found.sha256() == folder.sha256() and found.mean == folder.mean


def test_large_images_are_read_from_the_arrow_files(photos: Path, saved: Path) -> None:
    found, folder = load(saved, size=72, workers=0), of_folder(photos, size=72, workers=0)
    assert isinstance(found, FileSet)
    index = torch.arange(5)
    ours, theirs = (source.pools(torch.device("cpu"))[0].take(index) for source in (found, folder))
    assert torch.equal(ours, theirs) and found.sha256() == folder.sha256()


def test_a_run_on_a_saved_set_is_that_on_the_folders(
    photos: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = ["image_folder", "--preset", "image_folder-as-found", f"data.root={photos}"]
    for name, source in {"folder": folder, "saved": ["hf", f"data.root={saved}"]}.items():
        assert cli.main([*COMMON, "--dataset", *source, "--out", name]) == 0
    one, other = (
        torch.load(f"{name}/2-selmix/model.pt", weights_only=True)["state"]["teacher"]
        for name in ("folder", "saved")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    manifests = [json.loads(Path(n, "manifest.json").read_text()) for n in ("folder", "saved")]
    for key in ("indices_sha256", "images_sha256"):
        assert manifests[0][key] == manifests[1][key]


def test_the_audit_looks_into_a_saved_set(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "hf", f"data.root={saved}"]) == 0
    assert "dog" in capsys.readouterr().out


def test_paths_parquet_and_other_columns(datasets: Any, photos: Path, tmp_path: Path) -> None:
    files = sorted((photos / "train").rglob("*.png"))
    names = [str(int(file.parent.name == "dog")) for file in files]
    raw = datasets.Dataset.from_dict(
        {"photo": [file.read_bytes() for file in files], "kind": names, "label": names}
    )
    raw.to_parquet(str(tmp_path / "raw.parquet"))
    home = str(tmp_path / "cache")
    settings: dict[str, Any] = {"image_column": "photo", "label_column": "kind", "test": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
        found = load(tmp_path / "raw.parquet", classes=["cat", "dog"], **settings)
        part_of(datasets, files, [file.parent.name for file in files]).to_parquet(
            str(tmp_path / "paths.parquet")  # which has the paths alone
        )
        named = load(tmp_path / "paths.parquet", test=1)
    assert isinstance(found, ImageSet) and isinstance(named, ImageSet)
    assert found.class_names == named.class_names == ("cat", "dog")
    assert torch.equal(found.train, named.train) and len(found.train) == 20


def test_other_names_of_splits(datasets: Any, photos: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.test_split: unknown split 'tests'.*test"):
        load(saved, test_split="tests")
    found = load(saved, train_split="test", test_split="train", unlabeled=Counts(2))
    assert isinstance(found, ImageSet) and len(found.train) == 6
    part_of(datasets, [photos / "train/cat/0.png"], ["cat"]).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(ValueError, match="has no test images"):
        load(tmp_path / "one")
    odd = datasets.DatasetDict({"all": datasets.load_from_disk(str(tmp_path / "one"))})
    odd.save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(ValueError, match=r"none is called train; .*data\.train_split"):
        load(tmp_path / "odd")


def test_streams_are_refused_with_the_reason(datasets: Any, saved: Path) -> None:
    stream = datasets.load_from_disk(str(saved))["train"].to_iterable_dataset()
    with pytest.raises(ValueError, match="by their number from the whole set"):
        arrow.read("x", {"train": stream}, {}, arrow.Columns())


COLUMNS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no image column": ({"x": [1], "label": [1]}, {}, r"data\.image_column=NAME"),
    "no label column": ({"image": [b"x"], "colour": [1]}, {}, r"data\.label_column=NAME"),
    "unknown image column": ({"image": [b"x"], "label": [1]}, {"image_column": "y"}, "unknown col"),
    "unknown label column": ({"image": [b"x"], "label": [1]}, {"label_column": "y"}, "unknown col"),
    "numbers": ({"image": [[1, 2]], "label": [1]}, {}, r"no image; cast the column"),
    "several labels": ({"image": [b"x"], "label": [[1, 2]]}, {}, "one whole number or text"),
    "shares": ({"image": [b"x"], "label": [0.5]}, {}, "one whole number or text"),
    "no bytes": ({"image": [None, b"x"], "label": [0, 1]}, {}, "a row has no image"),
    "a URL": ({"image": ["https://x.org/a.png"], "label": [1]}, {}, "is a URL"),
    "no such file": ({"image": ["none.png"], "label": [1]}, {}, r"no image .*none\.png"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_wrong_columns_are_refused_in_a_line(datasets: Any, tmp_path: Path, case: str) -> None:
    content, settings, message = COLUMNS[case]
    datasets.Dataset.from_dict(content).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=message) as told:
        load(tmp_path / "d", **settings)
    assert "\n" not in str(told.value)


def test_no_set_two_sets_and_no_folder(datasets: Any, tmp_path: Path) -> None:
    for settings in ({}, {"name": "a", "root": "b"}):
        with pytest.raises(ValueError, match="one of them"):
            plugin.load(plugin.Config(**settings))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.revision"):
        plugin.load(plugin.Config(root="x", revision="main"))
    with pytest.raises(ValueError, match="no folder"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="no folder here"):
        plugin.load(plugin.Config(root="s3://x/y"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read by datasets"):
        load(tmp_path / "bad")


def test_the_hub_by_name(datasets: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def given(*words: Any, **named: Any) -> Any:
        asked.append((words, named["revision"]))
        return datasets.load_from_disk(str(saved))

    monkeypatch.setattr(datasets, "load_dataset", given)
    name, words = plugins.parted("hf:me/cats:plain")
    assert (name, words) == ("hf", ["data.name=me/cats:plain"])
    found = plugin.load(plugin.Config(name="me/cats:plain", revision="v1", cache="none"))
    assert len(found.train) == 20 and asked == [(("me/cats", "plain"), "v1")]


def test_without_a_network_or_the_library(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def offline(*words: Any, **named: Any) -> Any:
        raise ConnectionError("Couldn't reach 'me/cats' on the Hub\n(offline)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert cli.main(["train", *COMMON, "--dataset", "hf:me/cats", "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert "load_dataset('me/cats').save_to_disk(FOLDER)" in told and "data.root=FOLDER" in told
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert cli.main(["train", *COMMON, "--dataset", "hf:me/cats", "--out", "run"]) == 2
    assert "pip install ssl-selmix[hf]" in capsys.readouterr().err
