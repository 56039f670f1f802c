"""What comes from outside never commands the terminal; paths with ~ mean the home folder."""

import io
import sys
from pathlib import Path

import pytest
from rich.table import Table

from ssl_selmix import cli
from ssl_selmix.common.console import Terminal
from ssl_selmix.common.names import printable
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import manifest
from ssl_selmix.images.folder import class_names
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.sweep import spec

EVIL = "\x1b]0;owned\x07\x1b[2Jcat\r\u202egpj\x9b31m\udce9\x00"


@pytest.mark.parametrize("text", ["", "cat", "caf\u00e9 \u2192", "\u732b\n\tx", "a\u0301"])
def test_usual_text_stays(text: str) -> None:
    assert printable(text) == text


def test_what_would_command_is_spelled_out() -> None:
    assert printable(EVIL) == r"\x1b]0;owned\x07\x1b[2Jcat\r\u202egpj\x9b31m\udce9\x00"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_shows_it_wherever_it_stands(terminal: bool) -> None:
    file = io.StringIO()
    out = Terminal(file=file, force_terminal=terminal, width=200, color_system=None)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL, style="red")
    for what in (EVIL, table):
        out.print(what, markup=False, highlight=False)
    said = file.getvalue()
    assert not {"\x07", "\x9b", "\u202e", "\udce9", "\x00"} & set(said)
    assert "\x1b]" not in said and "\x1b[2J" not in said and r"\x1b]0;owned" in said


def test_an_error_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--algo", f"{EVIL}.py"], ["--algo", "fixmatch", f"device={EVIL[:-1]}"]):
        assert cli.main(words) == 2
        assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "words", [["train", "--help"], ["list"], ["sweep", "--help"], ["-x\udce9"]]
)
def test_a_terminal_that_is_no_utf8_gets_what_it_can_show(
    encoding: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, name, stream)
    try:
        code = cli.main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == (2 if words[0].startswith("-x") else 0)


# ~


def test_the_home_folder_is_meant_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/a") == tmp_path / "a" and expanded("a/~") == Path("a/~")
    plan = Plan(Request(["fixmatch"], init=Path("~/w.pt"), out=Path("~/runs")))
    assert (plan.out, plan.request.init) == (tmp_path / "runs", tmp_path / "w.pt")
    (tmp_path / "mine.yaml").write_text("fixmatch: {steps: 7}\n")
    mine = Plan(Request(["fixmatch"], preset="~/mine.yaml"))
    assert mine.config["fixmatch"].steps == 7
    (tmp_path / "s.yaml").write_text("out: ~/table\nalgorithms: [fixmatch]\n")
    assert spec.read("~/s.yaml").out == tmp_path / "table"
    (tmp_path / "m.json").write_text("{}")
    for there in (lambda: manifest.read("~/m.json"), lambda: class_names(expanded("~/no"))):
        with pytest.raises(ValueError, match=str(tmp_path) + "|m.json"):
            there()
    assert cli.main(["predict", "~/no-run", "x.png"]) == 2
    assert not list(tmp_path.glob("~*"))


@pytest.mark.parametrize("words", [["--out", "~nobody-of-this-name/x"], ["--init", "~nobody-x"]])
def test_a_home_of_nobody_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--algo", "fixmatch", *words])
    assert "names no user's home folder" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("word", ["--preset", "sweep"])
def test_a_file_that_is_no_utf8_is_named(
    encoding: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# \u00e9t\u00e9\nalgorithms: [fixmatch]\n", encoding=encoding)
    words = ["sweep", str(file)] if word == "sweep" else ["--algo", "fixmatch", word, str(file)]
    assert cli.main(words) == 2
    assert "mine.yaml is no UTF-8 text" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("fixmatch: {steps: 7}\n", encoding="utf-8-sig")
    plan = Plan(Request(["fixmatch"], preset=str(tmp_path / "mine.yaml")))
    assert plan.config["fixmatch"].steps == 7
