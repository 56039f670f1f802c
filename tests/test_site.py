"""The site: its blocks run as they are written, and its reference has everything that there is."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.common import plugins
from ssl_selmix.runs import reference
from studies import flipped_digits
from tests.helpers.images import noise, write

ROOT = Path(ssl_selmix.__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in path.parts
}
BLOCK = re.compile(r"^<!-- ci: (\w+)(?: (\S+))? -->\n```(\w+)\n(.*?)^```$", re.S | re.M)
# What makes a run short, by the first word of the command.
SHORT = {
    "train": ["model.name=cnn-4", "fixmatch.steps=1", "fixmatch.batch=4", "pictures=false"],
    "sweep": ["model.name=cnn-4", "algo.steps=1", "algo.batch=4", "pictures=false"],
}


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """File name, language and text of the marked blocks of a page."""
    for _, file, language, text in BLOCK.findall(PAGES[page]):
        yield file, language, text


def run(line: str) -> None:
    """A command of a page, shorter."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "ssl-selmix"
    then = [words[i + 1] for i, word in enumerate(words) if word == "--then"]
    short = SHORT.get(words[0], [])
    short = [*short, *(["selmix.steps=1", "selmix.batch=4"] if "selmix" in then else [])]
    steps = {word for word in words if word.startswith(("fixmatch.steps=", "model.name="))}
    short += ["then.steps=1"] if words[0] == "sweep" else []
    words = [*(word for word in words if word not in steps), *short]
    assert cli.main(words) == 0, line


def work_through(page: str) -> None:
    """Run the marked blocks of a page one after another, as a reader does."""
    names: dict[str, object] = {}
    for file, language, text in blocks(page):
        if file:
            Path(file).write_text(text.replace("seeds: 0-2", "seeds: 0"))
        elif language == "python":
            exec(compile(text, page, "exec"), names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run(line)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_SELMIX_CACHE", "none")
    return tmp_path


def test_start_mend(capsys: pytest.CaptureFixture[str]) -> None:
    work_through("docs/start/mend.md")
    out = capsys.readouterr().out
    assert "worst class before:" in out and "SelMix, then posthoc" in out
    assert Path("rule.npz").is_file()


@pytest.mark.slow
def test_start_compare(capsys: pytest.CaptureFixture[str]) -> None:
    work_through("docs/start/compare.md")
    assert "fixmatch + crt" in capsys.readouterr().out
    assert Path("report.html").is_file()


def test_start_train(here: Path) -> None:
    rows = ["path,label,patient"]
    for i in range(60):
        write(here / "photos" / f"{i}.png", noise(12, 12, 3, seed=i))
        rows.append(f"photos/{i}.png,{('nevus', 'melanoma', '')[i % 3]},p{i}")
    Path("labels.csv").write_text("\n".join(rows))
    work_through("docs/start/train.md")
    assert len(Path("predictions.csv").read_text().splitlines()) == 61


def test_howto_resume() -> None:
    work_through("docs/howto/resume.md")
    assert Path("runs/a/results.json").is_file()


def test_every_marked_block_is_run() -> None:
    run_here = {"start/mend", "start/compare", "start/train", "howto/resume"}
    marked = {page for page in PAGES if BLOCK.search(PAGES[page])}
    assert marked == {f"docs/{page}.md" for page in run_here} | {"README.md"}
    found = [text for page in PAGES for text in re.findall(r"<!-- ci:", PAGES[page])]
    assert len(found) == sum(len(BLOCK.findall(text)) for text in PAGES.values())


def keys() -> set[str]:
    """All settings, also those that a sweep's file writes for a stage of any name."""
    found = {entry.key for _, entry in reference.everything()}
    inner = {key.partition(".")[2] for key in found}
    return found | {
        f"{stage}.{key}" for key in inner for stage in ("METHOD", "ALGORITHM", "algo", "then")
    }


def test_every_setting_that_a_page_names_exists() -> None:
    sections = [*plugins.available("algorithm"), "data", "model", "views", "METHOD", "algo", "then"]
    named = re.compile(rf"(?<![\w./-])((?:{'|'.join(sections)})\.[a-z_]+(?:\.[a-z_]+)?)=")
    # A data set of a study has settings of its own.
    studied = {f"data.{field.name}" for field in dataclasses.fields(flipped_digits.Config)}
    known = keys() | studied | {"METHOD.key", "data.key"}
    wrong = {
        f"{page}: {key}"
        for page, text in PAGES.items()
        for key in named.findall(text)
        if key not in known and page != "docs/howto/extending.md"
    }
    assert not wrong


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_setting_and_command(generated: ModuleType) -> None:
    parts = re.findall(r"^<!-- site: ([\w-]+) ?(.*?) -->$", "\n".join(PAGES.values()), re.M)
    assert {name for name, _ in parts} == set(generated.MAKERS)
    text = "\n".join(generated.made(*part) for part in parts)
    shared = {entry.name for entry in reference.entries("", ssl_selmix.algorithm.Algorithm.Config)}
    own = {e.key for _, e in reference.everything() if e.name not in shared}
    assert {key for key in own if f"| `{key}` |" not in text} == set()
    for name in cli.ROOMS:
        assert f"## ssl-selmix {name}\n" in text
    assert "| `per_class_recall` | list of: share, 0 to 1 or null | always |" in text
    with pytest.raises(ValueError, match="no part 'x' of the reference"):
        generated.made("x")


def test_the_readme_fits_a_screen_or_two() -> None:
    assert len(PAGES["README.md"].splitlines()) < 110
    assert np.all([door in PAGES["README.md"] for door in ("compare.md", "mend.md", "train.md")])
