"""Tables of images: what they may look like, what is refused, and that they give a folder's run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.data import ImageSet, table
from ssl_selmix.data.files import FileSet
from ssl_selmix.datasets import image_folder
from ssl_selmix.datasets import table as plugin
from ssl_selmix.splits import Counts, LongTailSplit

Row = dict[str, str]
WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {}


def writer(suffix: str) -> Callable[[Callable[[Path, list[Row]], None]], None]:
    def keep(write: Callable[[Path, list[Row]], None]) -> None:
        WRITERS[suffix] = write

    return keep


@writer("csv")
def _(file: Path, rows: list[Row]) -> None:
    with file.open("w", newline="") as out:
        made = csv.DictWriter(out, list(rows[0]))
        made.writeheader()
        made.writerows(rows)


@writer("tsv")
def _(file: Path, rows: list[Row]) -> None:
    with file.open("w", newline="") as out:
        made = csv.DictWriter(out, list(rows[0]), delimiter="\t")
        made.writeheader()
        made.writerows(rows)


@writer("json")
def _(file: Path, rows: list[Row]) -> None:
    file.write_text(json.dumps({"images": rows}))


@writer("jsonl")
def _(file: Path, rows: list[Row]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")


@writer("parquet")
def _(file: Path, rows: list[Row]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), file)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small PNG files in train and test, and some without a class."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    from PIL import Image

    for part, num in (("train", 12), ("test", 3)):
        for name in "abc":
            (root / part / name).mkdir(parents=True)
            for i in range(num):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                image.save(root / part / name / f"{i:02}.png")
    (root / "unlabeled").mkdir()
    for i in range(9):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(root / "unlabeled" / f"{i}.png")
    return root


def rows_of(root: Path) -> list[Row]:
    """What a table of these folders says, in no particular order."""
    found = []
    for file in sorted(root.rglob("*.png"), reverse=True):
        part, *rest = file.relative_to(root).parts
        label = rest[0] if part != "unlabeled" else ""
        split = "train" if part == "unlabeled" else part
        found.append({"path": file.relative_to(root).as_posix(), "label": label, "split": split})
    return found


def load(file: Path, **settings: Any) -> ImageSet | FileSet:
    return plugin.load(plugin.Config(file=str(file), cache="none", **settings))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_images_of_the_folders(
    photos: Path, tmp_path: Path, suffix: str
) -> None:
    settings = {"labeled": Counts(0, shape="all"), "unlabeled": Counts(0, shape="unknown")}
    folder = image_folder.load(
        image_folder.Config(root=str(photos), validation=2, cache="none", **settings)  # type: ignore[arg-type]
    )
    file = tmp_path / f"labels.{suffix}"
    WRITERS[suffix](file, rows_of(photos))
    found = load(file, root=str(photos))
    assert found.sha256() == folder.sha256() and found.class_names == folder.class_names
    assert np.array_equal(found.train_labels, folder.train_labels)
    assert isinstance(found, ImageSet) and found.mean == folder.mean
    assert found.extra_unlabeled is not None and len(found.extra_unlabeled) == 9


def test_large_images_stay_files(photos: Path, tmp_path: Path) -> None:
    WRITERS["csv"](tmp_path / "labels.csv", rows_of(photos))
    found = load(tmp_path / "labels.csv", root=str(photos), size=80, workers=0)
    assert isinstance(found, FileSet)
    folder = image_folder.load(
        image_folder.Config(root=str(photos), validation=2, size=80, cache="none", workers=0)
    )
    assert isinstance(folder, FileSet) and found.train.names == folder.train.names


def test_a_run_on_a_table_is_that_on_the_folders(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS["csv"](tmp_path / "labels.csv", rows_of(photos))
    words = [
        *("--algo", "fixmatch", "--then", "selmix", "model.name=cnn-4", "pictures=false"),
        *("fixmatch.steps=2", "selmix.steps=2", "fixmatch.batch=4", "selmix.batch=4"),
        *("data.validation=2", "data.cache=none"),
    ]
    folder = [
        "--dataset",
        "image_folder",
        "--preset",
        "image_folder-as-found",
        f"data.root={photos}",
    ]
    listed = ["--dataset", "table", "data.file=labels.csv", f"data.root={photos}"]
    for name, source in (("folder", folder), ("listed", listed)):
        assert cli.main([*words, *source, "--out", name]) == 0
    weights = [
        torch.load(tmp_path / name / "2-selmix" / "model.pt", weights_only=True)
        for name in ("folder", "listed")
    ]
    one, other = (str(found["state"]["teacher"]) for found in weights)
    assert len(one) > 1000 and one == other
    manifests = [
        json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("folder", "listed")
    ]
    for key in ("indices_sha256", "images_sha256"):
        assert manifests[0][key] == manifests[1][key]


# What tables look like.


def read(tmp_path: Path, text: str, name: str = "t.csv", **columns: Any) -> table.Rows:
    (tmp_path / name).write_bytes(text.encode())
    return table.read(tmp_path / name, table.Columns(**columns))


def test_spreadsheets_marks_semicolons_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeffFilename;Class\r\n"a;1.jpg";x\r\n\r\n"b\n2.jpg";"y ""z"""\r\n'
    rows = read(tmp_path, text)
    assert rows.paths == ["a;1.jpg", "b\n2.jpg"] and rows.labels == ["x", 'y "z"']
    assert rows.numbers == [2, 4] and rows.parts == ["train", "train"] and not rows.split


def test_numbers_and_nothing_in_json(tmp_path: Path) -> None:
    records = [{"path": "a", "label": 3}, {"path": "b", "label": None}, {"path": "c", "label": 4.0}]
    rows = read(tmp_path, json.dumps(records), "t.json")
    assert rows.labels == ["3", "", "4"]


def test_annotators_vote(tmp_path: Path) -> None:
    text = "path,one,two,three\na,x,x,y\nb,x,y,\nc,,,\nd,,z,\n"
    rows = read(tmp_path, text, label=("one", "two", "three"))
    assert rows.labels == ["x", "", "", "z"] and rows.disagreements == [3]


def test_numeric_classes_are_in_the_order_of_numbers(photos: Path, tmp_path: Path) -> None:
    numbers = {"a": "10", "b": "2", "c": "0", "": ""}
    rows = [row | {"label": numbers[row["label"]]} for row in rows_of(photos)]
    WRITERS["csv"](tmp_path / "t.csv", rows)
    assert load(tmp_path / "t.csv", root=str(photos)).class_names == ("0", "2", "10")
    told = load(tmp_path / "t.csv", root=str(photos), classes=["10", "0", "2"])
    assert told.class_names == ("10", "0", "2")


WRONG = {
    "no rows": ("path,label\n", "has no row"),
    "empty file": ("", "has no row"),
    "no path column": ("url,label\nx,a\n", "data.path_column=NAME"),
    "no label column": ("path,colour\nx,a\n", "data.label_column=NAME"),
    "two columns": ("path,label,label\nx,a,b\n", "two columns 'label'"),
    "too many values": ("path,label\na,x,y\n", "row 2: 3 values for 2 columns"),
    "too few values": ("path,label\na\n", "row 2: 1 values for 2 columns"),
    "open quote": ('path,label\n"a,x\n', "check the quotes"),
    "empty path": ("path,label\n,x\n", "row 2: no path"),
    "unknown part": ("path,label,split\na,x,trian\n", "row 2: unknown split 'trian'"),
    "url": ("path,label\nhttp://x/a.jpg,x\n", "row 2.*URL"),
    "outside": ("path,label\n../../a.jpg,x\n", "row 2.*outside.*data.root"),
    "twice": ("path,label\na.jpg,x\n./a.jpg,y\n", "row 3.*is in row 2 as well"),
    "zero byte": ("path,label\na\0.jpg,x\n", "zero byte"),
    "one class": ("path,label\na.jpg,x\nb.jpg,x\n", "1 classes to train on"),
    "only in test": (
        "path,label,split\na,x,train\nb,y,train\nc,z,test\n",
        "row 4: the class 'z' of a test row, which no train row has",
    ),
    "test without label": (
        "path,label,split\na,x,train\nb,y,train\nc,,test\n",
        "row 4: a test image without a label",
    ),
    "look-alike classes": ("path,label\na,cat\nb,Cat\n", "look alike"),
    "no test": ("path,label\na,x\nb,y\n", "no row of the part test"),
    "no such image": (
        "path,label,split\na.jpg,x,train\nb.jpg,y,train\nc.jpg,y,test\n",
        "a.jpg.*(No such file|no readable image)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables_are_refused_in_a_line(tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}") as told:
        load(tmp_path / "t.csv")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", '{"a": 1, "b": 2}', "holds no list"),
        ("t.json", "[1, 2]", "row 1: '1' is no object"),
        ("t.json", "[" * 100_000, "is no JSON"),
        ("t.jsonl", '{"path": "a"\n', "row 1: no JSON"),
        ("t.jsonl", '{"path": ["a"], "label": 1}\n', "row 1: path is"),
        ("t.jsonl", '{"path": "a", "label": 1.5}\n', "row 1: label is 1.5"),
        ("t.xlsx", "", "no table by its name"),
        ("t.parquet", "nothing", "parquet"),
    ],
)
def test_other_wrong_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, name)


def test_latin_1_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\nä.jpg,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="no UTF-8 text"):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize("settings", [{"classes": ["a", "a"]}, {"classes": ["a", "d"]}])
def test_wrong_classes(photos: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    WRITERS["csv"](tmp_path / "t.csv", rows_of(photos))
    with pytest.raises(ValueError, match=r"data\.classes"):
        load(tmp_path / "t.csv", root=str(photos), **settings)


def test_no_file_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.file=FILE"):
        plugin.load(plugin.Config())
    with pytest.raises(ValueError, match=r"no file .*none\.csv"):
        load(tmp_path / "none.csv")


# Groups.


def split_of(groups: np.ndarray, labels: np.ndarray, **rules: Any) -> Any:
    rule = LongTailSplit(Counts(0, shape="all"), Counts(0, shape="unknown"), **rules)
    return rule.draw(labels, int(labels.max()) + 1, 0, groups=groups)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 600)
    labels = (groups % 3 + (rng.random(600) < 0.2)) % 3  # patients have mostly one class
    rule = LongTailSplit(Counts(0, shape="all"), Counts(0, shape="unknown"), 0.1, test=0.2)
    found = rule.draw(labels, 3, seed, groups=groups)
    members = [set(groups[part].tolist()) for part in (found.test, found.validation, found.labeled)]
    assert (
        not members[0] & members[1] and not members[0] & members[2] and not members[1] & members[2]
    )
    sizes = np.bincount(labels, minlength=3)
    assert np.bincount(labels[found.test], minlength=3).tolist() == [round(0.2 * n) for n in sizes]
    again = rule.draw(labels, 3, seed, groups=groups)
    assert np.array_equal(again.labeled, found.labeled)


def test_a_class_of_one_group_cannot_be_held_out() -> None:
    groups, labels = np.repeat([0, 1, 2, 3], 10), np.repeat([0, 0, 0, 1], 10)
    with pytest.raises(ValueError, match="class 1 has too few groups"):
        split_of(groups, labels, validation=2)


def test_a_group_in_train_and_test_of_the_table_is_refused(photos: Path, tmp_path: Path) -> None:
    rows = [row | {"patient": str(i % 5)} for i, row in enumerate(rows_of(photos))]
    WRITERS["csv"](tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match="of a test row is in row"):
        load(tmp_path / "t.csv", root=str(photos), group_column="patient")


def test_groups_reach_the_split(photos: Path, tmp_path: Path) -> None:
    rows = [row | {"patient": f"{row['split']}{i % 7}"} for i, row in enumerate(rows_of(photos))]
    WRITERS["csv"](tmp_path / "t.csv", rows)
    found = load(tmp_path / "t.csv", root=str(photos), group_column="patient")
    assert found.groups is not None and len(found.groups) == len(found.train_labels)


def test_a_validation_part_of_its_own(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    for row in [row for row in rows if row["split"] == "train" and row["label"]][::3]:
        row["split"] = "val"
    WRITERS["csv"](tmp_path / "t.csv", rows)
    found = load(tmp_path / "t.csv", root=str(photos), validation="folder")
    assert found.apart == 12


def test_paths_may_be_absolute_and_elsewhere(photos: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.copytree(photos, away)
    rows = [row | {"path": str(away / row["path"])} for row in rows_of(photos)]
    (tmp_path / "lists").mkdir()
    WRITERS["csv"](tmp_path / "lists" / "t.csv", rows)
    assert len(load(tmp_path / "lists" / "t.csv").train_labels) == 36
