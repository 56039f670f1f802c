"""A plug-in is a file: listed without importing it, found by name, path or module."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssl_selmix import algorithm, objectives
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import plugins

ROOT = Path(__file__).parents[2]
ONE = '''"""A method of mine, in one line.

More about it.
"""
from __future__ import annotations
from dataclasses import dataclass
from ssl_selmix.algorithm import Algorithm


class Mine(Algorithm):
    @dataclass
    class Config(Algorithm.Config):
        strength: float = 2.0
'''
TWO = ONE + "\n\nclass Other(Mine):\n    pass\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.startswith("mylab"):
            monkeypatch.delitem(sys.modules, name)
    return tmp_path


# Listing.


def test_shipped_plugins_have_a_line_each() -> None:
    algorithms, datasets = plugins.available("algorithm"), plugins.available("dataset")
    assert {"fixmatch", "selmix", "supervised"} <= algorithms.keys()
    assert {"digits", "image_folder"} <= datasets.keys()
    for entries in (algorithms, datasets, plugins.presets(), plugins.objectives()):
        assert all(entries.values())
        assert all("\n" not in line for line in entries.values())


def test_listed_names_are_those_of_the_files() -> None:
    for kind, name in plugins.FOLDERS.items():
        files = (ROOT / "ssl_selmix" / name).glob("*.py")
        assert plugins.available(kind).keys() == {path.stem for path in files}


def test_listed_objectives_exist() -> None:
    for name in plugins.objectives():
        objectives.get(name, 3)


def test_every_listed_algorithm_loads() -> None:
    for name in plugins.available("algorithm"):
        short, kind = algorithm.load(name)
        assert short == name and issubclass(kind, Algorithm)


def test_presets_are_read_by_name_and_by_path(folder: Path) -> None:
    for name in plugins.presets():
        text = (ROOT / "ssl_selmix" / "configs" / f"{name}.yaml").read_text()
        assert plugins.preset_text(name) == text
    (folder / "mine.yaml").write_text("seed: 3\n")
    assert plugins.preset_text("mine.yaml") == plugins.preset_text("./mine.yaml") == "seed: 3\n"
    with pytest.raises(ValueError, match=r"no preset file other\.yaml; check the path"):
        plugins.preset_text("other.yaml")
    with pytest.raises(ValueError, match="unknown preset 'digit'; did you mean digits"):
        plugins.preset_text("digit")


HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "albumentations", "timm", "tensorboard")
PROBE = f"""
import sys
import ssl_selmix.cli
heavy = lambda: [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy(), heavy()
ssl_selmix.cli.main(["list"])
assert not heavy(), heavy()
try:
    ssl_selmix.cli.main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not heavy(), heavy()
"""


def test_help_and_listing_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("fixmatch", "digits", "min_recall", "image_folder"):
        assert done.stdout.count(name) >= 2


# Names.


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("algorithm", "fixmach", "fixmatch"),
        ("algorithm", "sel_mix", "selmix"),
        ("dataset", "digit", "digits"),
        ("dataset", "imagefolder", "image_folder"),
    ],
)
def test_unknown_names_get_the_nearest(kind: str, name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {kind} '{name}'; did you mean {nearest}"):
        plugins.load_module(kind, name)


def test_names_like_no_other_get_all_of_them() -> None:
    known = ", ".join(plugins.available("algorithm"))
    with pytest.raises(ValueError, match=f"unknown algorithm 'zzzz'; known: {known}$"):
        plugins.load_module("algorithm", "zzzz")
    with pytest.raises(ValueError, match="unknown algorithm ''"):
        algorithm.load("")


# Loading from outside.


@pytest.mark.parametrize("name", ["./my_algo.py", "my_algo.py", "sub/my_algo.py"])
def test_algorithm_from_a_path(folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    (folder / name).write_text(ONE)
    short, kind = algorithm.load(name)
    assert (short, kind.__name__) == ("my_algo", "Mine")
    assert kind.Config().strength == 2.0  # type: ignore[attr-defined]
    assert algorithm.load(f"{name}:Mine")[1].__name__ == "Mine"


def test_absolute_path(folder: Path) -> None:
    (folder / "my_algo.py").write_text(ONE)
    assert algorithm.load(str(folder / "my_algo.py"))[0] == "my_algo"


def test_algorithm_from_a_module(folder: Path) -> None:
    (folder / "mylab").mkdir()
    (folder / "mylab" / "methods.py").write_text(TWO)
    short, kind = algorithm.load("mylab.methods:Other")
    assert (short, kind.__name__) == ("other", "Other")
    (folder / "alone.py").write_text(TWO)  # a name of shipped plug-ins would win
    assert algorithm.load("alone:Other")[0] == "other"
    with pytest.raises(ValueError, match="unknown algorithm 'alone'"):
        algorithm.load("alone")
    (folder / "mylab" / "single.py").write_text(ONE)
    assert algorithm.load("mylab.single")[0] == "single"


def test_dataset_from_a_path(folder: Path) -> None:
    (folder / "birds.py").write_text('"""Birds."""\nANSWER = 42\n')
    assert plugins.load_module("dataset", "./birds.py").ANSWER == 42


def test_two_algorithms_in_a_file_must_be_told_apart(folder: Path) -> None:
    (folder / "two.py").write_text(TWO)
    message = r"two\.py must define one Algorithm, it defines 2; name one as \./two\.py:CLASS"
    with pytest.raises(ValueError, match=message):
        algorithm.load("./two.py")
    assert algorithm.load("./two.py:Mine")[1].__name__ == "Mine"
    with pytest.raises(ValueError, match="one Algorithm named Third, it defines 0"):
        algorithm.load("./two.py:Third")


def test_imported_algorithms_do_not_count(folder: Path) -> None:
    head = "from ssl_selmix.algorithms.fixmatch import FixMatch\n"
    (folder / "child.py").write_text(f"{head}class Child(FixMatch):\n    pass\n")
    assert algorithm.load("./child.py")[1].__name__ == "Child"
    (folder / "none.py").write_text(head)
    with pytest.raises(ValueError, match="it defines 0"):
        algorithm.load("./none.py")


@pytest.mark.parametrize("stem", ["random", "abc", "torch"])
def test_file_named_like_a_module_does_not_replace_it(folder: Path, stem: str) -> None:
    before = sys.modules[stem]
    (folder / f"{stem}.py").write_text(ONE)
    assert algorithm.load(f"./{stem}.py")[0] == stem
    assert sys.modules[stem] is before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing.py", r"no file missing\.py; check the path"),
        ("sub/missing", r"no file sub/missing"),
        ("notes.txt/", "no file"),
        ("mylab.missing", r"cannot import mylab\.missing \(No module named .*PYTHONPATH"),
    ],
)
def test_places_that_do_not_exist(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm.load(name)


def test_file_that_is_no_python(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is no Python file; a plug-in ends in"):
        algorithm.load("sub/notes.txt")


def test_errors_inside_a_plugin_are_its_own(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(
        ValueError, match=r"cannot be imported: ZeroDivisionError.*line 1\)"
    ) as told:
        algorithm.load("./broken.py")
    assert isinstance(told.value.__cause__, ZeroDivisionError)  # whose traceback --debug shows


def test_files_that_are_no_plugins_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"broken\.py, line 1: .*; correct the file"):
        algorithm.load(str(tmp_path / "broken.py"))
    (tmp_path / "half.py").write_text("Config = int\n")
    with pytest.raises(ValueError, match="is no dataset: it lacks load"):
        plugins.dataset(str(tmp_path / "half.py"))
    with pytest.raises(ValueError, match="unknown algorithm"):
        algorithm.load(".foo")
