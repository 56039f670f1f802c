"""Help, completion and `explain`: examples that hold, lines that fit, names that are complete."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssl_selmix import cli
from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import ROOMS, command
from ssl_selmix.runs import completion, reference
from ssl_selmix.runs.plan import Plan, Request


def shown(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = cli.main(words)
    except SystemExit as exit:
        code = int(exit.code or 0)
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ROOMS)
def test_help_begins_with_examples_and_fits_into_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown([name, "--help"], capsys)
    assert not [line for line in text.splitlines() if len(line) > 80]
    head = text.partition("\nusage: ")[0]
    assert "\nexamples:\n  # " in head and text.count("\nusage: ") == 1
    if name not in ("list", "explain", "completion", "check", "train"):
        assert text.count(":\n  -") >= 2  # the options stand in groups
    assert "show this help message and exit" not in text
    for action in command(name).parser()._actions:
        assert action.help, action


@pytest.mark.parametrize("name", ROOMS)
def test_the_examples_are_commands_that_exist(name: str) -> None:
    for line, told in command(name).parser().examples:
        words = shlex.split(line.replace("\\\n", " ").partition(" > ")[0])
        if words[0] == "eval":
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        assert words[0] == "ssl-selmix" and told
        asked = command(words[1]).parser().parse_intermixed_args(words[2:])
        if words[1] == "train" and asked.algo and not asked.config:
            Plan(
                Request(
                    [asked.algo, *asked.then],
                    asked.dataset or "",
                    asked.preset,
                    settings=asked.settings,
                )
            )


def test_the_first_screen_has_a_line_for_each_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(["help"], capsys)
    assert not [line for line in text.splitlines() if len(line) > 80]
    assert text.index("examples:") < text.index("usage:") < text.index("commands:")
    assert len(text.partition("\nalgorithms:")[0].splitlines()) < 40  # names grow with plug-ins


def test_what_goes_into_a_pipe_has_a_line_for_each_name(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(["list", "algorithms"], capsys).splitlines()
    assert len(lines) == len(plugins.available("algorithm")) + 1


def test_explain_tells_type_rule_default_symbol_source_and_paper() -> None:
    lines = reference.explain("fixmatch.lambda_u").splitlines()
    assert lines[:2] == ["fixmatch.lambda_u", "  lambda_u, weight of the unlabeled loss"]
    for line in (
        "  may be: number >= 0",
        "  default: 1.0",
        "  symbol: lambda_u",
        "  declared by: FixMatch.Config in ssl_selmix/algorithms/fixmatch.py",
        "  method: Sohn et al., NeurIPS 2020; with the logit-adjusted labeled loss of the SelMix "
        "baseline.",
    ):
        assert line in lines
    assert "symbol" not in reference.explain("selmix.policy")
    assert "ssl_selmix/data/extraction.py" in reference.explain("features.dtype")


@pytest.mark.parametrize(
    ("meaning", "symbol"),
    [
        ("eta, learning rate", "eta"),
        ("N1 of the labeled, M1 of the unlabeled images", "N1"),
        ("T_proto, of the similarities", "T_proto"),
        ("q, class frequencies there", "q"),
        ("a; None: see shrinkage_by", "a"),
        ("of the means", ""),
        ("a name, or a function", ""),
        ("bias; norm", ""),
        ("eta is no symbol here", ""),
    ],
)
def test_a_symbol_is_what_a_meaning_begins_with(meaning: str, symbol: str) -> None:
    assert reference.Entry("a.b", "1", "number", meaning).symbol == symbol


# Completion


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "bash"
    file.write_text(completion.script("bash"))
    return file


TYPED = {
    "ssl-selmix tr": ["train"],
    "ssl-selmix train --al": ["--algo"],
    "ssl-selmix train --algo fixm": ["fixmatch"],
    "ssl-selmix train --algo fixmatch --then selmix selmix.rate": ["selmix.rate="],
    "ssl-selmix train --then selmix selmix.rate=": ["auto", "relative", "absolute"],
    "ssl-selmix train --then selmix selmix.objective=min_h": ["min_ht_recall"],
    "ssl-selmix train --algo fixmatch selmix.rate": [],  # selmix is no stage of it
    "ssl-selmix train --dataset table data.gro": ["data.group_column="],
    "ssl-selmix train --dataset digits data.gro": [],
    "ssl-selmix train --preset cifar100-lt-crest": ["cifar100-lt-crest"],
    "ssl-selmix data image_folder data.unlabeled_": ["data.unlabeled_from="],
    "ssl-selmix train --config f": ["fixmatch-is-a-file"],
    "ssl-selmix data image_folder data.root=f": ["fixmatch-is-a-file"],
    "ssl-selmix posthoc --rule ": ["offsets", "gains", "mixture"],
    "ssl-selmix explain fixmatch.thre": ["fixmatch.threshold"],
    "ssl-selmix completion ": ["bash", "zsh", "fish"],
}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_options_names_keys_and_values(bash: Path, tmp_path: Path) -> None:
    (tmp_path / "fixmatch-is-a-file").touch()
    typed = list(TYPED)
    program = [f"source {bash}", "compopt() { :; }"]  # compopt works within a completion alone
    program += [
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; _ssl_selmix; "
        'echo "${COMPREPLY[*]}"'
        for line in typed
    ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(program)], capture_output=True, text=True, cwd=tmp_path
    )
    assert not done.stderr
    found = dict(zip(typed, map(str.split, done.stdout.splitlines()), strict=True))
    assert found == TYPED


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_has_all_names_and_is_one_for_its_shell(shell: str, tmp_path: Path) -> None:
    text = completion.script(shell)
    names = [*ROOMS, *plugins.available("algorithm"), *plugins.presets(), *plugins.objectives()]
    names += [f"{entry.key}=" for _, entry in reference.everything()]
    assert not [name for name in names if name not in text]
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


def test_completion_imports_nothing_to_complete(bash: Path) -> None:
    assert sys.executable not in bash.read_text() and "python" not in bash.read_text()
