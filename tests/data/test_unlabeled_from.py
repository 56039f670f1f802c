"""The pool of image_folder from patterns: `data.unlabeled_from`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_selmix import cli
from ssl_selmix.data import ImageSet
from ssl_selmix.data.files import FileSet
from ssl_selmix.datasets import image_folder
from ssl_selmix.splits import Counts
from tests.helpers.images import noise, noise_tree, write

WORDS = [
    *("--algo", "fixmatch", "model.name=cnn-4", "pictures=false", "fixmatch.steps=2"),
    *("fixmatch.batch=4", "--dataset", "image_folder", "data.root=p", "data.cache=none"),
]
AS_FOUND = ["--preset", "image_folder-as-found", "data.validation=1"]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders in p, a pool in p/unlabeled, and the same pool in shots and its folders."""
    monkeypatch.chdir(tmp_path)
    noise_tree(tmp_path / "p", {"train": 4, "test": 1})
    for name in ("0.png", "a/1.png", "a/b/2.png", "c.png"):
        write(tmp_path / "p" / "unlabeled" / name, noise(8, 8, 3, seed=900 + len(name)))
    shutil.copytree(tmp_path / "p/unlabeled", tmp_path / "shots")
    (tmp_path / "shots" / "notes.txt").write_text("x")
    (tmp_path / "shots" / "a" / "Thumbs.db").write_text("x")
    return tmp_path


def load(*patterns: str, **settings: Any) -> ImageSet | FileSet:
    pool = {"labeled": Counts(0, shape="all"), "unlabeled": Counts(0, shape="unknown")}
    return image_folder.load(
        image_folder.Config(
            root="p",
            cache="none",
            validation=1,
            unlabeled_from=list(patterns),
            **pool,  # type: ignore[arg-type]
            **settings,
        )
    )


@pytest.mark.parametrize(
    "patterns",
    [
        ["shots/**/*.png"],
        ["shots"],
        ["shots/**"],
        ["shots/*"],
        ["shots/a/**/*.png", "shots/[0c].png"],
        ["shots/c.png", "shots/*/*.png", "shots", "shots/0.png"],
    ],
)
def test_the_pool_is_that_of_the_folder_unlabeled(patterns: list[str], folders: Path) -> None:
    expected = load()
    assert load(*patterns).sha256() == expected.sha256()
    away = [str(folders / pattern) for pattern in patterns]
    assert load(*away).sha256() == expected.sha256()


def test_files_that_stay_files_have_digests_that_do_not_depend_on_the_place(folders: Path) -> None:
    first = load("shots", size=80, workers=0)
    digest = first.sha256()
    shutil.move(folders / "shots", folders / "deep")
    again = load("deep/**/*.png", size=80, workers=0)
    assert isinstance(first, FileSet) and isinstance(again, FileSet)
    assert first.extra_unlabeled is not None and again.extra_unlabeled is not None
    assert first.extra_unlabeled.names == again.extra_unlabeled.names
    assert again.sha256() == digest


def test_runs_without_it_record_what_they_did_and_resume(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*WORDS, *AS_FOUND, "--out", "old"]) == 0
    assert "unlabeled_from" not in Path("old/config.yaml").read_text()
    assert cli.main([*WORDS, *AS_FOUND, "--out", "old", "--resume", "data.unlabeled_from=[]"]) == 0
    told = ["--out", "new", "data.unlabeled_from=shots/**/*.png"]
    assert cli.main([*WORDS, *AS_FOUND, *told]) == 0
    written = yaml.safe_load(Path("new/config.yaml").read_text())
    assert written["data"]["unlabeled_from"] == ["shots/**/*.png"]
    one, other = (json.loads(Path(n, "manifest.json").read_text()) for n in ("old", "new"))
    assert one["images_sha256"] == other["images_sha256"]
    said = capsys.readouterr().out
    assert "p/unlabeled is not looked at" in said


@pytest.mark.parametrize("name", ["list.txt", "@list"])
def test_a_list_of_paths_is_the_pool(name: str, folders: Path) -> None:
    (folders / "lists").mkdir()
    lines = ["../shots/a/b/2.png", "../shots/c.png", "", f"{folders}/shots/a/1.png"]
    text = "\r\n".join(["\ufeff" + lines[0], *lines[1:]])
    (folders / "lists" / name.removeprefix("@")).write_text(text, encoding="utf-8")
    listed = f"@lists/{name[1:]}" if name[0] == "@" else f"lists/{name}"
    assert load(listed, "shots/0.png").sha256() == load().sha256()


def test_several_roots_are_one_folder(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load()
    for part in ("train/cat/3.png", "train/dog", "unlabeled/c.png", "test/dog"):
        (folders / "q" / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folders / "p" / part, folders / "q" / part)
    found = load(more_roots=["q"])
    assert found.class_names == whole.class_names and found.sha256() == whole.sha256()
    assert load("shots", more_roots=["q"]).sha256() == whole.sha256()
    words = ["data", "image_folder", "data.root=p", "data.more_roots=q", "--json", "a.json"]
    assert cli.main(words) == 0
    counts = json.loads(Path("a.json").read_text())["counts"]
    assert counts["train"] == {"cat": 4, "dog": 4} and counts["unlabeled"] == {"": 4}
    with pytest.raises(ValueError, match=r"images of q/train"):
        load("q/train/dog", more_roots=["q"])
    with pytest.raises(ValueError, match=r"no folder none; check data\.more_roots"):
        load(more_roots=["none"])
    (folders / "q/train/Cat").mkdir()
    with pytest.raises(ValueError, match="look alike"):
        load(more_roots=["q"])


LISTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("\n \n", "is empty"),
    "no file": ("shots/0.png\nnone.png\n", "line 2: no file none.png"),
    "a folder": ("shots\n", "line 1: no file"),
    "a URL": ("https://x.org/a.png\n", "line 1: .* is a URL"),
    "zero byte": ("a\0.png\n", "line 1: no file"),
    "latin-1": (b"\xe4.png\n", "no UTF-8 text"),
}


@pytest.mark.parametrize("case", LISTS)
def test_wrong_lists(case: str, folders: Path) -> None:
    text, message = LISTS[case]
    (folders / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as told:
        load("list.txt")
    assert "\n" not in str(told.value)


MISTAKES = {
    "no list": (["@none"], "the list none cannot be read"),
    "nothing": (["shots/**/*.jpg"], r"shots/\*\*/\*\.jpg matches no image; write it as in"),
    "no image": (["shots/*.txt"], "matches no image but shots/notes.txt"),
    "one of two": (["shots", "shoots"], "shoots matches no image"),
    "train": (["p/**/*.png"], "matches 8 images of p/train .*leave out that folder"),
    "test": (["p/test/*"], "matches 2 images of p/test"),
    "a URL": (["https://a/b.zip"], "is a URL, and nothing is fetched"),
    "empty": (["shots", " "], "is empty; name files"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_wrong_patterns(case: str, folders: Path) -> None:
    patterns, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message) as told:
        load(*patterns)
    assert "\n" not in str(told.value)


def test_a_pool_that_is_drawn_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "data.unlabeled_from=shots", "--out", "run"]) == 2
    assert "data.unlabeled.shape=unknown" in capsys.readouterr().err


def test_the_look_at_a_data_set_takes_it() -> None:
    words = ["data", "image_folder", "data.root=p", "data.unlabeled_from=shots"]
    shape = ["data.unlabeled.shape=unknown", "data.unlabeled.largest=0"]
    assert cli.main([*words, *shape, "--json", "a.json"]) == 0
    assert json.loads(Path("a.json").read_text())["counts"]["unlabeled"] == {"": 4}
