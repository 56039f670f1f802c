"""The commands under `Which of these is yours?` in docs/howto/data.md run as they are written."""

import importlib.util
import io
import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ssl_selmix
from ssl_selmix import cli
from tests.helpers.images import noise, noise_tree, write

PAGE = Path(ssl_selmix.__file__).parents[1] / "docs" / "howto" / "data.md"
START = "python train.py --algo fixmatch --then selmix"
# What makes a run short: no command of the page needs it.
SMALL = [
    *("model.name=cnn-4", "fixmatch.steps=1", "selmix.steps=1", "fixmatch.batch=4"),
    *("selmix.batch=4", "pictures=false", "--out", "run"),
]
FEATURES = [*SMALL[1:], "data.labeled.largest=4", "data.labeled.rho=1"]
FEATURES += ["data.unlabeled.largest=4", "data.unlabeled.rho=1", "data.validation=2"]


def commands() -> dict[str, list[str]]:
    """Words of each command of the first table by its data set; those of the digits are none."""
    table = PAGE.read_text("utf-8").partition("Which of these is yours?")[2].partition("\n    ")[0]
    assert START in table
    found = {}
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) == 4 and (told := re.match(r" `(--dataset [^`]*)`", cells[2])):
            words = shlex.split(told[1])
            found[words[1] + ("-from" if "unlabeled_from" in told[1] else "")] = words
    assert "| none yet | nothing:" in table
    return found | {"digits": []}


COMMANDS = commands()


@pytest.fixture(autouse=True)
def yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data under the names that the page has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_SELMIX_CACHE", "none")
    root = noise_tree(tmp_path / "PATH", {"train": 10, "test": 2}, (12, 12, 3))
    rows = ["path,label,split"]
    for file in sorted(root.rglob("*.png")):
        part, label, _ = file.relative_to(root).parts
        rows.append(f"{file.relative_to(tmp_path)},{label},{part}")
    for i in range(6):
        write(root / "unlabeled" / f"{i}.png", noise(12, 12, 3, seed=500 + i))
        write(tmp_path / "shots" / "deep" / f"{i}.jpg", noise(12, 12, 3, seed=600 + i))
        rows.append(f"PATH/unlabeled/{i}.png,,train")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    arrays = {}
    for part, num in (("train", 150), ("val", 4), ("test", 4)):
        arrays[f"{part}_images"] = noise(num, 12, 12, 3, seed=num)
        arrays[f"{part}_labels"] = (np.arange(num, dtype=np.uint8) % 2)[:, None]
    _write_shards(root)
    if hf_installed():
        _save_set(root)
    np.savez("x.npz", **arrays)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=(num, 6)) for name, num in (("train", 30), ("test", 6))}
    labels = {f"{name}_labels": np.arange(len(x)) % 2 for name, x in made.items()}
    np.savez("FILE.npz", **made, **labels)  # type: ignore[arg-type]


def hf_installed() -> bool:
    """Whether there is the library, and not the folder of that name alone."""
    found = importlib.util.find_spec("datasets")
    return found is not None and found.origin is not None


def _write_shards(root: Path) -> None:
    Path("shards").mkdir()
    files = sorted((root / "train").rglob("*.png"))
    for number in range(4):
        with tarfile.open(f"shards/{number:03}.tar", "w") as shard:
            for file in files[number::4]:
                key = f"{file.parent.name}-{file.stem}"
                label = tarfile.TarInfo(f"{key}.cls")
                label.size = len(file.parent.name)
                shard.add(file, f"{key}.png")
                shard.addfile(label, io.BytesIO(file.parent.name.encode()))
    with tarfile.open("shards/000.tar", "a") as shard:  # images without a label
        for file in sorted((root / "unlabeled").glob("*.png")):
            shard.add(file, f"unlabeled-{file.name}")


def _save_set(root: Path) -> None:
    datasets: Any = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    parts = {}
    for part in ("train", "test", "unlabeled"):
        files = sorted((root / part).rglob("*.png"))
        labels = [None if part == "unlabeled" else file.parent.name for file in files]
        made = {"image": [file.read_bytes() for file in files], "label": labels}
        parts[part] = datasets.Dataset.from_dict(made)
    datasets.DatasetDict(parts).save_to_disk("FOLDER")


def test_six_and_more_are_told() -> None:
    own = {"image_folder", "image_folder-from", "table", "arrays", "features", "digits"}
    own |= {"hf", "webdataset"}
    assert own | {"cifar10"} == COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"cifar10"}))
def test_a_command_of_the_page_trains(name: str) -> None:
    if name == "hf" and not Path("FOLDER").is_dir():
        pytest.skip("the library datasets is not installed")
    words = [*shlex.split(START)[2:], *COMMANDS[name]]
    if name == "features":
        assert cli.main([*words, *FEATURES]) == 0
    else:
        assert cli.main([*words, *SMALL]) == 0
    written = json.loads(Path("run/results.json").read_text())
    assert len(written["stages"]) == 2 and Path("run/2-selmix/model.pt").is_file()


def test_cifar_without_its_files_says_where_they_belong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [*shlex.split(START)[2:], *COMMANDS["cifar10"], "data.download=false"]
    assert cli.main([*words, *SMALL]) == 2
    assert str(tmp_path / "data") in capsys.readouterr().err
