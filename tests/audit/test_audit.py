"""The look at a data set: what it finds in folders, tables and arrays, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_selmix import cli
from ssl_selmix.audit import near

Found = dict[str, Any]


def picture(seed: int, side: int = 40) -> Image.Image:
    """Smooth, so that its hash is that of what it shows and not of noise."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return noise.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clean folders of two classes."""
    monkeypatch.chdir(tmp_path)
    seed = 0
    for part, num in (("train", 6), ("test", 2), ("unlabeled", 3)):
        for name in ("cat", "dog") if part != "unlabeled" else ("",):
            folder = tmp_path / "p" / part / name
            folder.mkdir(parents=True)
            for i in range(num):
                picture(seed := seed + 1).save(folder / f"{i}.png")
    return tmp_path / "p"


def look(*words: str, code: int) -> Found:
    assert cli.main(["data", *words, "--json", "found.json"]) == code
    found: Found = json.loads(Path("found.json").read_text())
    return found


def of_kind(found: Found, kind: str) -> Found:
    (one,) = [finding for finding in found["findings"] if finding["kind"] == kind]
    return dict(one)


def folders(root: Path, code: int = 1) -> Found:
    return look("image_folder", f"data.root={root}", code=code)


def test_clean_folders_have_nothing_to_mend(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = folders(root, code=0)
    assert found["counts"] == {
        "train": {"cat": 6, "dog": 6},
        "test": {"cat": 2, "dog": 2},
        "unlabeled": {"": 3},
    }
    assert found["images"] == 19 and found["sizes"] == {"40×40": 19}
    assert found["modes"] == {"RGB": 19} and found["findings"] == []
    said = capsys.readouterr().out
    assert "nothing to mend" in said and re.search(r"cat +6 +2 +0", said)


def test_copies_near_copies_and_two_labels(root: Path) -> None:
    shutil.copy(root / "train/cat/0.png", root / "test/cat/9.png")
    shutil.copy(root / "train/cat/1.png", root / "train/dog/9.png")
    shutil.copy(root / "train/cat/2.png", root / "unlabeled/9.png")
    image = Image.open(root / "train/dog/3.png")
    image.resize((50, 50)).point(lambda v: min(255, v + 5)).save(root / "test/dog/8.jpg")
    found = folders(root)
    texts = {f["text"]: f for f in found["findings"] if f["kind"] == "copies"}
    (test,) = [f for text, f in texts.items() if "in train and in test" in text]
    assert test["mend"] and [Path(n).name for n in test["examples"][0]] == ["0.png", "9.png"]
    (pool,) = [f for text, f in texts.items() if "in unlabeled" in text]
    assert not pool["mend"] and pool["count"] == 1
    both = of_kind(found, "two_labels")["examples"][0]
    assert [Path(n).parent.name for n in both] == ["cat", "dog"]
    close = of_kind(found, "near_copies")
    assert "in train and in test" in close["text"] and not close["mend"]
    assert [Path(n).name for n in close["examples"][0]] == ["3.png", "8.jpg"]


def test_unreadable_files_of_tools_and_other_kinds(root: Path) -> None:
    (root / "train/cat/bad.png").write_bytes(b"no image")
    (root / "train/dog/empty.jpg").write_bytes(b"")
    (root / "train/dog/notes.txt").write_text("x")
    (root / "train/@eaDir").mkdir()
    picture(99).convert("L").save(root / "test/dog/grey.png")
    Image.new("RGB", (30, 20), "red").save(root / "test/cat/red.png")
    found = folders(root)
    bad = of_kind(found, "unreadable")
    assert bad["mend"] and [Path(name).name for name, _ in bad["examples"]] == [
        "bad.png",
        "empty.jpg",
    ]
    assert "the file is empty" in bad["examples"][1][1]
    left_out = " ".join(f["text"] for f in found["findings"] if f["kind"] == "left_out")
    assert "@eaDir" in left_out and "notes.txt" in left_out
    assert of_kind(found, "flat")["examples"] == [[str(root / "test/cat/red.png")]]
    assert of_kind(found, "corrected")["count"] == 1
    assert found["sizes"]["30×20"] == 1 and found["modes"]["L"] == 1


def test_names_and_classes_that_do_not_fit(root: Path) -> None:
    shutil.copytree(root / "train/cat", root / "train/Cat")
    (root / "train/empty").mkdir()
    (root / "test/owl").mkdir()
    picture(77).save(root / "test/owl/0.png")
    found = folders(root)
    assert "in other case" in of_kind(found, "class_names")["examples"][0][0]
    assert of_kind(found, "only_in_test")["examples"] == [["owl"]]
    assert of_kind(found, "not_in_test")["examples"] == [["Cat"], ["empty"]]
    assert of_kind(found, "empty_class")["examples"] == [["empty"]]


def test_groups_of_a_table_in_two_parts(root: Path) -> None:
    rows = ["path,label,split,patient"]
    for i, file in enumerate(sorted(root.glob("t*/*/*.png"))):
        part, label, _ = file.relative_to(root).parts
        rows.append(f"{file.relative_to(root)},{label},{part},p{i % 5}")
    rows.append("unlabeled/0.png,,train,p9")
    (root / "t.csv").write_text("\n".join(rows))
    words = ("table", f"data.file={root / 't.csv'}", "data.group_column=patient")
    shared = of_kind(found := look(*words, code=1), "groups")
    assert shared["count"] == 4 and shared["examples"][0][0].startswith("group p")
    assert found["counts"]["unlabeled"] == {"": 1}
    assert look(*words[:2], code=0)["findings"] == []


def test_arrays_and_shipped_data_sets(root: Path) -> None:
    files = sorted(root.glob("train/*/*.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = np.repeat([0, 1], 6)
    labels[3] = -1
    held = images[:4].copy()
    np.savez("x.npz", train_images=images, train_labels=labels, val_images=held, val_labels=[0] * 4)
    found = look("arrays", "data.file=x.npz", "data.classes=[cat,dog]", code=1)
    assert found["counts"]["train"] == {"cat": 5, "dog": 6}
    assert found["counts"]["unlabeled"] == {"": 1}
    (first, *_) = [f for f in found["findings"] if "in train and in validation" in f["text"]]
    assert first["examples"][0] == ["train[0]", "validation[0]"]
    assert look("digits", code=0)["images"] == 1797


def test_images_of_one_colour_and_none_that_can_be_read(root: Path) -> None:
    files = sorted(root.glob("*/*/*.png")) + sorted(root.glob("unlabeled/*.png"))
    for i, file in enumerate(files):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(file)
    found = folders(root, code=0)
    assert of_kind(found, "flat")["count"] == 19 and len(found["findings"]) == 1
    for file in files:
        file.write_bytes(b"none")
    words = ["data", "image_folder", f"data.root={root}", "--html", "a.html", "--json", "a.json"]
    assert cli.main(words) == 1
    found = json.loads(Path("a.json").read_text())
    assert of_kind(found, "unreadable")["count"] == 19 and found["sizes"] == {}


def test_the_page_is_whole_and_escapes_names(root: Path) -> None:
    odd = root / "train" / '<img src=x onerror="1">&'
    shutil.move(root / "train/dog", odd)
    (odd / "\udcff<b>.png").write_bytes((odd / "0.png").read_bytes())
    assert cli.main(["data", "image_folder", f"data.root={root}", "--html", "a.html"]) == 1
    page = Path("a.html").read_bytes().decode()
    assert "<img src=x" not in page and "<b>" not in page and "&lt;img src=x" in page
    assert page.count('src="data:image/png;base64,') == 6 + 7 + 3
    assert not re.search(r"https?://|<script[^>]|<link", page) and page.count("<script>") == 1


def test_hashes_survive_what_copies_go_through() -> None:
    def small(image: Image.Image) -> Any:
        return np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))

    images = [picture(i, 64) for i in range(60)]
    again = [image.resize((48, 48)) for image in images]
    plain = [Image.new("RGB", (64, 64), "blue")] * 3
    found = near.pairs(np.stack([small(image) for image in [*images, *again, *plain]]))
    assert found.tolist() == [[i, i + 60] for i in range(60)]


MISTAKES = {
    "no root": (["image_folder"], "data.root=PATH"),
    "no folder": (["image_folder", "data.root=none"], "no folder none/train"),
    "no train": (["image_folder", "data.root=p/train"], "no folder p/train/train"),
    "no image": (["image_folder", "data.root=bare"], "holds no image"),
    "no file of a table": (["table"], "data.file=FILE"),
    "no table": (["table", "data.file=none.csv"], "no file none.csv"),
    "no column": (["table", "data.file=t.csv"], "none of them is path"),
    "no group": (["table", "data.file=u.csv", "data.group_column=x"], "unknown column 'x'"),
    "no arrays": (["arrays"], "data.file=FILE"),
    "no npz": (["arrays", "data.file=x.npz"], "no file x.npz"),
    "unknown data set": (["image_foldr"], "image_folder"),
    "a method": (["fixmatch"], "fixmatch"),
    "unknown key": (["image_folder", "data.rot=p"], "data.root"),
    "another's key": (["image_folder", "seed=1"], "data.seed"),
    "no setting": (["image_folder", "p"], "'p' is no setting"),
    "no folder of the page": (["digits", "--html", "none/a.html"], "no folder .*none for a.html"),
    "a folder as the file": (["digits", "--json", "p"], "p"),
    "features": (["features", "data.root=f.npz"], "no images to look at"),
    "no data set": ([], "DATASET"),
    "unknown option": (["digits", "--hmtl", "x"], "--html"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_a_line(
    case: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = MISTAKES[case]
    (root.parent / "bare" / "train").mkdir(parents=True)
    Path("t.csv").write_text("url,label\na,b\n")
    Path("u.csv").write_text("path,label\na,b\n")
    np.savez("f.npz", train=np.ones((4, 2), np.float32), train_labels=[0, 1, 0, 1])
    settings = ["data.test=1", "data.labeled.largest=1"] if words[:1] == ["features"] else []
    try:
        code = cli.main(["data", *words, *settings])
    except SystemExit as end:
        code = int(str(end.code))
    told = capsys.readouterr().err.strip()
    assert code == 2 and re.search(message, told) and "\n" not in told, told
