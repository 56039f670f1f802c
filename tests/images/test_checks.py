"""Names of class folders, copies among the parts, folders of tools."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ssl_selmix.datasets import image_folder
from ssl_selmix.images.checks import Copies, check_class_names
from ssl_selmix.images.find import find, told
from ssl_selmix.images.folder import class_names, listing, unlabeled
from tests.helpers.images import noise, noise_tree, write

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return noise_tree(tmp_path / "images", {"train": 4, "test": 2})


def load(root: Path, size: int | None = None) -> None:
    config = image_folder.Config(root=str(root), size=size, cache="none", workers=0)
    image_folder.load(config).sha256()


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["caf\udce9", "tea"], r"class folder .*/caf\\xe9 has a name that is no UTF-8; rename it"),
        (["\x1b[31mcat", "dog"], r"'\\x1b\[31mcat' .* has the character U\+001B"),
        (["cat\n", "dog"], r"has the character U\+000A"),
        (["cat\u202e", "dog"], r"has the character U\+202E"),
        (["cat\u200b", "dog"], r"has the character U\+200B"),
        ([NFC, NFD], r"look alike \(in another Unicode normal form: 'caf\\xe9' and 'cafe\\u0301'"),
        (["Cat", "cat"], r"look alike \(in other case\)"),
        (["cat", "cat "], r"look alike \(with other spaces: 'cat' and 'cat '"),
        (["big cat", "big  cat"], r"look alike \(with other spaces"),
        (["a\u00a0b", "a b"], r"look alike \(with other spaces"),
        (["\ufb01sh", "fish"], r"look alike \(of other Unicode characters: '\\ufb01sh'"),
        (["stra\u00dfe", "strasse"], r"look alike \(of other Unicode characters"),
    ],
)
def test_names_that_nobody_can_tell_apart_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_class_names(Path("/x/train"), names)


def test_other_names_are_names() -> None:
    check_class_names(Path("x"), ["0", "-1", "a b", "\u732b", "\U0001f408", "b.c", "=1+1", NFD])


def test_a_class_folder_that_is_no_utf8_is_named(root: Path) -> None:
    os.rename(root / "train" / "cat", os.fsencode(root / "train") + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\xe9 has a name that is no UTF-8; rename it"):
        class_names(root / "train")


@pytest.mark.parametrize("size", [None, 72])
def test_train_and_test_may_not_differ_in_normal_form(root: Path, size: int | None) -> None:
    (root / "train" / "cat").rename(root / "train" / NFC)
    (root / "test" / "cat").rename(root / "test" / NFD)
    with pytest.raises(ValueError, match=r"look alike \(in another Unicode normal form"):
        load(root, size)


@pytest.mark.parametrize("size", [None, 72])
def test_copies_are_told_by_kind(
    root: Path, size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = root / "train", root / "test"
    load(root, size)
    assert warnings(capsys) == []
    shutil.copy(train / "cat" / "0.png", test / "cat" / "same.png")
    shutil.copy(train / "cat" / "1.png", test / "cat" / "same-2.png")
    shutil.copy(train / "dog" / "0.png", train / "dog" / "again.png")
    shutil.copy(train / "cat" / "3.png", train / "dog" / "other.png")
    load(root, size)
    told = "\n".join(warnings(capsys))
    assert "2 images are in train and in test, as byte-identical files; figures on test" in told
    assert f"(first: {train}/cat/0.png and {test}/cat/same.png)" in told
    assert "1 image is in train twice" in told and "training and validation" in told
    assert "1 image is in two classes, as byte-identical files; remove the wrong one" in told
    assert f"(first: {train}/cat/3.png and {train}/dog/other.png)" in told
    assert told.count("warning") == 3


def test_the_pool_without_labels_belongs_to_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    copies = Copies()
    copies.add("train", ["a", "b"], [b"1" * 16, b"2" * 16], np.array([0, 1]))
    copies.add("unlabeled", ["c", "d", "e"], [b"2" * 16, b"3" * 16, b"3" * 16])
    copies.add("test", [], [], np.array([], dtype=np.int64))
    copies.tell()
    assert warnings(capsys) == [
        "warning: 1 image is in train and in unlabeled, as byte-identical files; remove one of "
        "each (first: b and c)",
        "warning: 1 image is in unlabeled twice, as byte-identical files; remove one of each "
        "(first: d and e)",
    ]
    Copies().tell()


@pytest.mark.parametrize("tool", ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "#recycle"])
def test_folders_of_tools_are_left_out_and_told(
    root: Path, tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        write(root / part / tool / "0.png", noise(8, 8, 3, seed=7))
    write(root / "train" / "cat" / tool / "0.png" / "thumb.jpg", noise(8, 8, 3, seed=8))
    write(root / "unlabeled" / "x.png", noise(8, 8, 3, seed=9))
    write(root / "unlabeled" / tool / "x.png", noise(8, 8, 3, seed=9))
    assert class_names(root / "train") == ("cat", "dog")
    files, _ = listing(root / "train", ("cat", "dog"))
    assert len(files) == 8 and not any(tool in file for file in files)
    assert unlabeled(root) == [str(root / "unlabeled" / "x.png")]
    lines = [line for line in warnings(capsys) if "of tools" in line]
    inside = root / "train" / tool
    assert lines == [
        f"warning: {root}/train: left out 2 files or folders of tools (thumbnails and the like): "
        f"{tool} (first: {inside})",
        f"warning: {root}/unlabeled: left out 1 file or folder of tools (thumbnails and the like): "
        f"{tool} (first: {root / 'unlabeled' / tool})",
    ]


def test_hidden_folders_and_notes_of_tools_are_no_images(root: Path) -> None:
    write(root / "train" / ".ipynb_checkpoints" / "0.png", noise(8, 8, 3))
    (root / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "cat" / "._0.png").write_bytes(b"x")
    assert class_names(root / "train") == ("cat", "dog")
    assert len(listing(root / "train", ("cat", "dog"))[0]) == 8


def test_predict_leaves_out_what_tools_made(root: Path) -> None:
    write(root / "train" / "__MACOSX" / "cat" / "0.png", noise(8, 8, 3))
    write(root / "train" / "cat" / "@eaDir" / "0.png", noise(8, 8, 3))
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "train" / "dog" / name).write_bytes(b"x")
    found, left_out = find([root / "train"])
    assert found == listing(root / "train", ("cat", "dog"))[0]
    (line,) = told(left_out)
    first = root / "train" / "__MACOSX"
    assert line == (
        "left out 5 files or folders of tools (thumbnails and the like): __MACOSX, @eaDir, "
        f".DS_Store, Thumbs.db, desktop.ini (first: {first})"
    )
    inside = root / "train" / "cat" / "@eaDir"  # who names such a folder means it
    assert find([inside]) == ([str(inside / "0.png")], {})
