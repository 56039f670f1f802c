"""Opening somebody's run executes no code of the run's choosing, whatever its files name."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ssl_selmix import cli
from ssl_selmix.common.config import fingerprint
from ssl_selmix.deploy import estimate
from ssl_selmix.runs.folder import RunFolder, split_of
from ssl_selmix.runs.plan import reopen
from tests.helpers.runs import SMALL, train, unbound

OWN = "from ssl_selmix.datasets.digits import Config, load  # my digits\n"
METHOD = """
from ssl_selmix.algorithms.supervised import Supervised

class Mine(Supervised):
    pass
"""
OPENING = {
    "export": ["export", "RUN", "--state-dict", "x.pt"],
    "export, download": ["export", "RUN", "--pt2", "x.pt2", "data.download=true"],
    "estimate": ["estimate", "RUN"],
    "predict": ["predict", "RUN", "RUN"],
    "compare": ["compare", "RUN"],
    "init": ["--algo", "supervised", "--init", "RUN", "--out", "new", *SMALL],
    "resume": ["--algo", "supervised", "--resume", "--out", "RUN", *SMALL],
    "manifest": [
        *("--algo", "supervised", "data.manifest=RUN/manifest.json", "--out", "new"),
        *SMALL,
    ],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    return train(tmp_path_factory.mktemp("trust") / "run")


def trap(folder: Path, name: str) -> tuple[str, Path]:
    """A file that leaves a mark when it is executed, and the mark."""
    mark, file = folder / "EXECUTED", folder / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nConfig = load = f = None\n"
    )
    return str(file), mark


def disguise(folder: Path, dataset: str) -> None:
    """Let all files of a run tell of this data set."""
    told = json.loads((folder / "manifest.json").read_text()) | {"dataset": dataset}
    (folder / "manifest.json").write_text(json.dumps(told))
    results = json.loads((folder / "results.json").read_text())
    results |= {"dataset": dataset, "manifest_sha256": fingerprint(split_of(told))}
    (folder / "results.json").write_text(json.dumps(results))
    RunFolder(folder).check()


NAMED = {
    "the file of a data set": ("dataset: digits", "dataset: {file}"),
    "the module of a data set": ("dataset: digits", "dataset: traps.supervised"),
    "the file of an algorithm": ("- supervised\n", "- {file}\n"),
    "the module of an algorithm": ("- supervised\n", "- traps.supervised\n"),
    "the class of an algorithm": ("- supervised\n", "- traps.supervised:Supervised\n"),
    "a file that has the name of a section": ("- supervised\n", "- supervised\n- {file}\n"),
    "an objective": ("dataset: digits", "dataset: digits\nselmix:\n  objective: {file}:f"),
}


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("command", OPENING)
def test_no_command_executes_what_a_run_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)  # commands write here
    folder = unbound(Path(shutil.copytree(run, tmp_path / "somebodys")))
    file, mark = trap(folder, "traps/supervised.py")
    monkeypatch.syspath_prepend(str(folder))
    old, new = NAMED[named]
    config = folder / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new.format(file=file), 1))
    if "data set" in named:
        disguise(folder, str(RunFolder(folder).config["dataset"]))
    for path in (folder / "__init__.py", folder / "traps" / "__init__.py"):
        path.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    words = [
        word.replace("RUN", str(folder)).replace("OUT", str(tmp_path)) for word in OPENING[command]
    ]
    cli.main(words)
    assert not mark.exists()


def test_the_trap_works(run: Path, tmp_path: Path) -> None:
    folder = unbound(Path(shutil.copytree(run, tmp_path / "somebodys")))
    file, mark = trap(folder, "traps/supervised.py")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("dataset: digits", f"dataset: {file}"))
    disguise(folder, file)
    with pytest.raises(ValueError, match="is no dataclass"):
        reopen(folder, trust=[file])
    assert mark.exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a data set and with a method that are files of the user's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "birds.py").write_text(OWN)
    (folder / "mine.py").write_text(METHOD)
    words = ["--algo", str(folder / "mine.py"), "--dataset", str(folder / "birds.py")]
    settings = [word.replace("supervised.", "mine.") for word in SMALL]
    assert cli.main([*words, "--out", str(folder / "run"), *settings]) == 0
    return folder


def test_a_data_set_is_executed_once_it_is_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = own / "run", str(own / "birds.py")
    digest = hashlib.sha256((own / "birds.py").read_bytes()).hexdigest()
    assert cli.main(["estimate", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"SHA-256 {digest}, as the run recorded" in error and f"--trust {file}" in error
    assert cli.main(["estimate", str(run), "--trust", file]) == 0
    assert f"executing {file} (SHA-256 {digest}, as the run recorded)" in capsys.readouterr().err
    assert estimate.of_run(run, ["em"], trust=[file]).class_names == tuple("0123456789")
    assert cli.main(["estimate", str(run), "--trust", str(own / "mine.py")]) == 2


def test_an_export_without_trust_is_checked_on_random_images(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(own / "run"), "--state-dict", str(tmp_path / "a.pt")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "checked on random images alone" in out and "--trust" in out
    assert cli.main([*words, "--force", "--trust", str(own / "birds.py")]) == 0
    assert "of validation" in capsys.readouterr().out


def test_a_data_set_that_was_changed_since_is_refused(own: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(own, tmp_path / "own"))
    config = unbound(folder / "run") / "config.yaml"
    config.write_text(config.read_text().replace(str(own), str(folder)))
    disguise(folder / "run", str(folder / "birds.py"))
    file = folder / "birds.py"
    assert reopen(folder / "run", trust=[str(file)]).algorithms == []
    file.write_text(OWN + "# later\n")
    with pytest.raises(ValueError, match=r"is not the file that .* was trained with: its SHA-256"):
        reopen(folder / "run", trust=[str(file)])


def test_a_run_sets_nothing_that_is_the_machines(run: Path, tmp_path: Path) -> None:
    folder = unbound(Path(shutil.copytree(run, tmp_path / "somebodys")))
    with (folder / "config.yaml").open("a") as file:
        file.write("threads: 3\ndevice: nowhere\n")
    plan = reopen(folder)
    assert plan.run.threads == 0 and plan.run.device == "auto"
