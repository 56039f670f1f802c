"""The command line: every mistake is one line and exit code 2, and asking for help is quick."""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ssl_selmix import __version__, cli
from ssl_selmix.common import plugins, processes
from ssl_selmix.common.arguments import duration
from tests.helpers.images import noise_tree

TINY = [
    *("fixmatch.steps=2", "fixmatch.batch=8", "selmix.steps=2", "selmix.batch=8"),
    *("model.name=cnn-4", "data.labeled.largest=15", "data.unlabeled.largest=20"),
    *("data.validation=3", "data.test=3", "pictures=false"),
]
BOTH = ["--algo", "fixmatch", "--then", "selmix", *TINY]
ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(words: Sequence[str]) -> int:
    """The exit code, as the shell would see it."""
    try:
        return cli.main(words)
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code


def mistake(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake is answered with."""
    capsys.readouterr()
    code = run(words)
    err = capsys.readouterr().err
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_a_network_for_other_images_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    told = mistake([*BOTH, "model.name=timm:vit_tiny_patch16_224"], capsys)
    assert "vit_tiny_patch16_224 cannot take images of 1×8×8 (Input height" in told
    assert "choose another network, or data.size" in told


def test_a_method_whose_file_raises_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("\nimport no_such_module\n")
    for words in (["--algo", str(mine)], [*BOTH, "--dataset", str(mine)]):
        told = mistake(words, capsys)
        assert f"{mine} cannot be imported: ModuleNotFoundError: " in told
        assert told.endswith("(mine.py, line 2)")


def test_a_mistake_that_a_method_of_ones_own_tells_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside the package, as far as the beginning of its path tells.
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "ssl_selmix" / "cli.py"))
    mine = tmp_path / "ssl_selmix_mine" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(
        "from ssl_selmix.algorithms.supervised import Supervised\n\n\nclass Mine(Supervised):\n"
        "    def forward(self, batch, context):\n        raise ValueError('too few')\n"
    )
    told = mistake(["--algo", str(mine), "mine.steps=2", "--out", str(tmp_path / "run")], capsys)
    assert told == "error: too few (mine.py, line 6)"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--algo", "fixmach"], ["unknown algorithm 'fixmach'", "fixmatch"]),
        (["--algo", "xyz"], ["unknown algorithm 'xyz'", "fixmatch", "selmix", "supervised"]),
        (["--algo", "fixmatch", "--then", "selmx"], ["unknown algorithm 'selmx'", "selmix"]),
        (["--algo", "./nothing.py"], ["nothing.py", "check the path"]),
        (["--algo", "no.such:Thing"], ["cannot import no.such", "PYTHONPATH"]),
        (["--algo", "fixmatch:Nothing"], ["Algorithm named Nothing", "defines 0"]),
        ([*BOTH, "--dataset", "digit"], ["unknown dataset 'digit'", "digits"]),
        ([*BOTH, "--preset", "digts"], ["unknown preset 'digts'", "digits"]),
        ([*BOTH, "--preset", "./no.yaml"], ["no preset file no.yaml"]),
        ([*BOTH, "selmix.objective=min_recal"], ["unknown objective 'min_recal'", "min_recall"]),
        ([*BOTH, "selmix.objective=./no.py:f"], ["no.py"]),
        ([*BOTH, "fixmatch.treshold=0.9"], ["'fixmatch.treshold'", "fixmatch.threshold"]),
        ([*BOTH, "tau=0.9"], ["unknown key 'tau'"]),
        ([*BOTH, "supervised.steps=3"], ["unknown key 'supervised.steps'"]),
        ([*BOTH, "data.root=/tmp"], ["unknown key 'data.root'"]),
        ([*BOTH, "fixmatch=3"], ["fixmatch is a group", "fixmatch.lr"]),
        ([*BOTH, "data.labeled=null"], ["data.labeled is a group", "data.labeled.largest"]),
        ([*BOTH, "fixmatch.lr=fast"], ["fixmatch.lr must be a decimal number", "not 'fast'"]),
        ([*BOTH, "fixmatch.batch=1.5"], ["fixmatch.batch must be a whole number", "not '1.5'"]),
        ([*BOTH, "fixmatch.steps="], ["fixmatch.steps must be a whole number", "not ''"]),
        (
            [*BOTH, "fixmatch.nesterov=maybe"],
            ["fixmatch.nesterov must be true or false", "'maybe'"],
        ),
        ([*BOTH, "fixmatch.steps=[1"], ["fixmatch.steps must be a whole number", "'[1'"]),
        ([*BOTH, "fixmatch"], ["'fixmatch' is no setting", "key=value"]),
        ([*BOTH, "=3"], ["'=3' is no setting"]),
        ([*BOTH, "model.name=${nowhere}"], ["nowhere"]),
        ([*BOTH, "fixmatch.steps=0"], ["fixmatch.steps must be", "not 0"]),
        ([*BOTH, "fixmatch.threshold=1.5"], ["fixmatch.threshold must be", "not 1.5"]),
        ([*BOTH, "selmix.policy=best"], ["selmix.policy must be one of", "selective"]),
        ([*BOTH, "selmix.temperature=.nan"], ["selmix.temperature must be", "nan"]),
        ([*BOTH, "selmix.step_size=-1"], ["step_size", "-1"]),
        ([*BOTH, "selmix.alpha=0.3"], ["min_recall has no option 'alpha'"]),
        ([*BOTH, "model.name=wrn-3-3"], ["wrn-3-3", "wrn-28-2"]),
        ([*BOTH, "model.name=resnet"], ["model.name 'resnet' is unknown"]),
        ([*BOTH, "seed=-1"], ["seed", "must be >= 0, not -1"]),
        ([*BOTH, "--seed", "-1"], ["seed", "must be >= 0, not -1"]),
        ([*BOTH, "--seed", "one"], ["--seed", "'one'"]),
        ([*BOTH, "device=gpu"], ["device 'gpu' cannot be used", "device=cpu"]),
        ([*BOTH, "fixmatch.select=recall"], ["unknown figure 'recall'", "mean_recall"]),
        ([*BOTH, "fixmatch.select=per_class_recall"], ["per_class_recall"]),
        ([*BOTH, "data.labeled.largest=9999"], ["class 0", "9999 labeled", "lower"]),
        ([*BOTH, "data.labeled.rho=100"], ["no labeled image", "lower rho"]),
        ([*BOTH, "data.labeled.rho=-1"], ["rho", "positive"]),
        ([*BOTH, "data.unlabeled.largest=0"], ["at least 1 image"]),
        ([*BOTH, "data.validation=0"], ["data.validation"]),
        ([*BOTH, "data.validation=-2"], ["validation", "-2"]),
        ([*BOTH, "data.test=0"], ["data.test"]),
        ([*BOTH, "data.test=null"], ["data.test"]),
        ([*BOTH, "--dataset", "image_folder"], ["data.root=PATH"]),
        ([*BOTH, "--dataset", "image_folder", "data.root=~nobody0/x"], ["~nobody0/x"]),
        ([*BOTH, "--dataset", "imagenet100", "data.root=~nobody0/x"], ["~nobody0/x"]),
        ([*BOTH, "fixmatch.prior_given=[1,2]"], ["prior_given", "set prior=given"]),
        (["estimate", "nowhere"], ["nowhere is no run"]),
        ([*BOTH, "--restart"], ["--restart", "--help"]),
        ([*BOTH, "--res"], ["--res"]),  # no abbreviations: --resume is a decision
        ([*BOTH, "--then"], ["--then"]),
        (TINY, ["--algo"]),
        (["fixmatch", "selmix"], ["fixmatch is no command", "train --algo fixmatch"]),
        (["train", "fixmatch"], ["'fixmatch' is no setting", "--algo fixmatch"]),
        (["train", "--algo", "fixmatch", "cifar10-lt"], ["key=value, or --preset cifar10-lt"]),
        (["tran", "--algo", "fixmatch"], ["unknown command 'tran'; did you mean train?"]),
        (["SWEEPS"], ["unknown command 'SWEEPS'; did you mean sweep?"]),
        (["pred", "run"], ["unknown command 'pred'", "predict"]),
        (["xyz"], ["unknown command 'xyz'; known: advise", "train"]),
        ([""], ["unknown command ''"]),
        (["digits"], ["--dataset digits", "--preset digits", "ssl-selmix sweep digits"]),
        (["cifar10-lt"], ["cifar10-lt is no command", "train --preset cifar10-lt"]),
        (["./mine.py"], ["./mine.py is no command", "--algo ./mine.py"]),
        (["finetune"], ["finetune is no command", "ssl_selmix.finetune"]),
        (["list", "fixmach"], ["unknown name 'fixmach'; did you mean fixmatch"]),
        (["list", "Digits"], ["unknown name 'Digits'; did you mean digits?"]),
        (["list", "data"], ["the settings of data", "cifar10_indices, digits"]),
        (["help", "Trian"], ["unknown command 'Trian'; did you mean train"]),
        (["help", "fixmach"], ["did you mean fixmatch"]),
        (["explain", "fixmatch.lrr"], ["unknown key 'fixmatch.lrr'; did you mean fixmatch.lr?"]),
        (["explain", "qqqqq"], ["unknown key 'qqqqq'; ssl-selmix list shows names"]),
        ([*BOTH, "lr=0.1"], ["unknown key 'lr'; did you mean fixmatch.lr or selmix.lr?"]),
        ([*BOTH[:2], "selmix.steps=3"], ["unknown key 'selmix.steps'", "add --then selmix"]),
        ([*BOTH, "--lr", "0.1"], ["; a setting is written lr=value, without dashes"]),
        ([*BOTH, "--batch-size=4"], ["a setting is written batch_size=4, without dashes"]),
        ([*BOTH, "--ouput", "run"], ["--ouput", "; did you mean --out?"]),
        (["compare", "run", "--markdwn", "x"], ["--markdwn", "did you mean --markdown?"]),
        (["check"], ["required: A", "ssl-selmix check --help"]),
        (["check", "fixmach"], ["unknown algorithm 'fixmach'", "fixmatch"]),
        (["check", "./nothing.py"], ["nothing.py", "check the path"]),
        (["check", "fixmatch", "lr=3"], ["lr=3", "ssl-selmix check --help"]),
    ],
    ids=lambda value: " ".join(value[-2:]) or "nothing" if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = mistake(words, capsys)
    for part in parts:
        assert part in message


def options() -> list[tuple[str, str]]:
    """Every option of every command that takes a word."""
    found = []
    for command, room in cli.ROOMS.items():
        parser = import_module(f"ssl_selmix.{room}.command").COMMANDS[command].parser()
        for action in parser._actions:
            if action.nargs != 0 and action.help != argparse.SUPPRESS:
                found.append((command, (action.option_strings or [""])[-1]))
    return found


REQUIRED = {"features": ["--out"]}


@pytest.mark.parametrize("given", ["", "  "])
def test_no_option_takes_an_empty_word(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(options()) > 50
    for command, option in options():
        needed = [word for name in REQUIRED.get(command, ()) for word in (name, "x")]
        words = [command, *([option] if option else []), given, *needed]
        told = mistake(words, capsys)
        named = any(
            word in told
            for word in ("an empty", "invalid", "is no", "are no numbers", "argument --rule")
        )
        assert named and (option or "argument") in told, (words, told)


@pytest.mark.parametrize("stage", ["fixmatch", "selmix"])
def test_divergence_is_one_line_and_the_last_good_weights_stay(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssl_selmix.training import checkpoint

    message = mistake([*BOTH, "--out", "run", f"{stage}.lr=1e20", "selmix.step=fixed"], capsys)
    assert "smaller lr" in message and "last.pt" in message
    (folder,) = Path("run").glob(f"?-{stage}")
    state = checkpoint.load(folder / "last.pt")
    assert state["step"] == 0
    net = {key: value for key, value in state["algorithm"].items() if key.startswith("net.")}
    assert net and all(value.isfinite().all() for value in net.values())


@pytest.mark.slow
def test_an_existing_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*BOTH, "--out", "run"]) == 0
    message = mistake([*BOTH, "--out", "run"], capsys)
    assert "run exists" in message and "--resume" in message and "--out" in message
    message = mistake([*BOTH, "--out", "run", "--resume", "selmix.steps=3"], capsys)
    assert "selmix.steps: 2 -> 3" in message


def test_an_output_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "file" in mistake([*BOTH, "--out", "file/run"], capsys)
    assert "file is a file" in mistake([*BOTH, "--out", "file"], capsys)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six grey training images and one test image of each of two classes."""
    return noise_tree(tmp_path / "images", {"train": 6, "test": 1}, (8, 8))


def folder_words(root: Path) -> list[str]:
    small = ["data.labeled.largest=2", "data.labeled.rho=1", "data.unlabeled.largest=2"]
    small += ["data.unlabeled.rho=1", "data.validation=1"]
    return [*BOTH[:8], "model.name=cnn-4", "--dataset", "image_folder", f"data.root={root}", *small]


@pytest.mark.slow
def test_mistakes_in_an_image_folder(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    words = folder_words(images)
    message = mistake([*words, "data.root=nowhere"], capsys)
    assert "no folder nowhere" in message
    message = mistake([*words, "data.labeled.largest=4"], capsys)
    assert "class 0 (cat) has 6 images, the split needs 7" in message
    assert "size" in mistake([*words, "data.size=0"], capsys)

    (images / "train" / "cow").mkdir()
    assert "cow" in mistake(words, capsys)  # train only
    (images / "test" / "cow").mkdir()
    message = mistake(words, capsys)
    assert "cow holds no image" in message
    for part in ("train", "test"):
        (images / part / "cow").rmdir()

    picture = images / "train" / "dog" / "3.png"
    picture.write_bytes(b"no picture")
    assert f"{picture} is no readable image" in mistake(words, capsys)
    Image.new("L", (9, 8)).save(picture)
    assert "data.size" in mistake(words, capsys)
    Image.new("L", (80, 80)).save(picture)
    assert "at most 64" in mistake(words, capsys)
    assert run([*words, "--out", "run", "data.size=8"]) == 0


@pytest.mark.slow
def test_debug_shows_the_traceback() -> None:
    words = [sys.executable, "train.py", "--algo", "fixmach", "--debug"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert "Traceback" in found.stderr and "unknown algorithm 'fixmach'" in found.stderr


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_selmix.runs import plan, train

    def broken(request: plan.Request) -> None:
        raise RuntimeError("a defect, no mistake of the user")

    monkeypatch.setattr(train, "run", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(BOTH)


def test_what_another_process_tells_is_not_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssl_selmix.runs import plan, train

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    told = "[pair.cc:534] Connection closed by peer [127.0.0.1]:3048"

    def alone(request: plan.Request) -> None:
        with processes.joined(torch.device("cpu")):
            raise RuntimeError(told)

    monkeypatch.setattr(train, "run", alone)
    assert cli.main(BOTH) == 1
    err = capsys.readouterr().err
    assert err == "error: another process of this run ended; see its message\n"
    told = "a defect, no mistake of the user"
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(BOTH)


def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssl_selmix.runs import plan, train

    def interrupted(plan: plan.Plan) -> None:
        raise KeyboardInterrupt

    # While images are loaded, in a folder that has nothing of a run yet, or has one.
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_data", interrupted)
        assert cli.main([*BOTH, "--out", "run"]) == 130
    told = "error: interrupted; nothing was saved yet; repeat the command\n"
    assert capsys.readouterr().err == told
    assert cli.main([*BOTH, "--out", "run"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(train, "load_data", interrupted)
    assert cli.main([*BOTH, "--out", "run", "--resume"]) == 130
    told = "error: interrupted; repeat the command with --resume to go on\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("saved", "advice"), [(False, "repeat the command"), (True, "--resume")])
def test_a_full_disk_is_told_with_what_to_do(
    saved: bool, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssl_selmix.runs import plan, train

    def full(plan: plan.Plan) -> None:
        if saved:
            (plan.out / "config.yaml").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device", "place")

    monkeypatch.setattr(train, "load_data", full)
    told = mistake([*BOTH, "--out", "run"], capsys)
    assert told.startswith("error: No space left on device (place); free some space")
    assert ("--resume" in told) == saved and advice in told


def test_the_words_of_a_library_are_not_passed_off_as_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ssl_selmix.runs import train

    def in_python(*_: object) -> None:
        json.loads("{")  # a ValueError of the standard library

    def in_c(*_: object) -> None:
        int("four")

    def as_ours(*_: object) -> None:
        raise ValueError("this is no library")

    for work, told in (
        (in_python, "error: json says JSONDecodeError: Expecting property name"),
        (in_c, "error: a library says ValueError: invalid literal for int()"),
        (as_ours, "error: this is no library"),
    ):
        monkeypatch.setattr(train, "load_data", work)
        found = mistake([*BOTH, "--out", "run"], capsys)
        assert found.startswith(told) and ("--debug" in found) == ("says" in found)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["threads=100000"], ["threads must be at most", "not 100000; lower it"]),
        (["threads=99999999999999999999"], ["threads"]),
        (["fixmatch.batch=10000000000"], ["fixmatch.batch=10000000000", "GiB", "lower it"]),
        (["fixmatch.mu=99999999999999999999"], ["mu"]),
    ],
)
def test_sizes_that_no_machine_has(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = mistake([*BOTH, *words, "--out", "run"], capsys)
    assert all(part in told for part in parts)


@pytest.mark.parametrize("time", ["3", "h", "", "0s", "1.5h", "1m1h", "1h 2m"])
def test_a_time_that_is_none(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no time; write it as in 3h50m" in mistake([*BOTH, "--for", time], capsys)


def test_times_in_seconds() -> None:
    found = [duration(text) for text in ("90s", "45m", "2h", "3h50m", "1d2h3m4s")]
    assert found == [90, 2700, 7200, 13800, 93784]


def test_settings_and_options_may_be_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fixmatch.steps=2", "--algo", "fixmatch", *TINY[1:2], "--seed", "3", *TINY[4:]]
    assert run([*words, "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["seed"] == 3 and results["protocol"]["steps"] == [2]


def test_train_is_the_command_that_may_be_left_out() -> None:
    assert run(["train", *BOTH[:2], *TINY[:2], *TINY[4:]]) == 0
    assert Path("runs/digits-fixmatch-seed0/results.json").is_file()


def test_a_preset_file_of_ones_own() -> None:
    Path("mine.yaml").write_text("fixmatch:\n  steps: 2\n  batch: 8\nmodel:\n  name: cnn-4\n")
    words = ["--algo", "fixmatch", "--preset", "mine.yaml", *TINY[5:], "--out", "run"]
    assert run(words) == 0
    assert json.loads(Path("run/results.json").read_text())["protocol"]["steps"] == [2]


def test_mistakes_in_a_preset_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    for text, part in (
        ("fixmatch: {stps: 3}", "fixmatch.steps"),
        ("fixmatch: [3", "no YAML"),
        ("- 3", "mapping"),
        ("fixmatch: {steps: many}", "must be a whole number"),
    ):
        Path("mine.yaml").write_text(text)
        message = mistake([*BOTH, "--preset", "mine.yaml"], capsys)
        assert "preset mine.yaml" in message and part in message


IMPORTS = """
import sys
from ssl_selmix.cli import main
try:
    main({words})
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {"torch", "torchvision", "numpy", "matplotlib", "sklearn", "omegaconf", "rich", "PIL"}
heavy |= {"albumentations", "scipy"}
print("HEAVY", sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *([], ["help"], ["--help"], ["list"], ["list", "presets"], ["--version"]),
        *([name, "--help"] for name in cli.ROOMS),
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = IMPORTS.replace("{words}", repr(words))
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "HEAVY []" in found.stdout


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"], ["help", "help"]])
def test_help_lists_all_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out = capsys.readouterr().out
    lines = out.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(cli.ROOMS)
    assert all(len(line.split()) > 3 for line in lines)


def test_help_of_a_command_and_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    for words, other in (
        (["help", "sweep"], ["sweep", "--help"]),
        (["help", "fixmatch"], ["list", "fixmatch"]),
        (["help", "fixmatch.lr"], ["explain", "fixmatch.lr"]),
        (["list", "preset"], ["list", "presets"]),
    ):
        shown = []
        for each in (words, other):
            assert run(each) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1] != ""
    names = ["--then", "selmix", "--algo", "fixmatch", "--dataset", "digits"]
    for words in (["--help", *names], ["train", *names, "-h"]):
        assert run(words) == 0
        out = capsys.readouterr().out
        assert "--dataset D" in out and "settings (data.KEY=VALUE)" in out
        assert "settings of fixmatch (" in out and "settings of selmix (" in out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    words = [sys.executable, "-m", "ssl_selmix", "list"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as made:
        assert made.stdout is not None and made.stderr is not None
        made.stdout.close()
        assert made.stderr.read() == b""
        assert made.wait() == 141


@pytest.mark.parametrize("words", [["--help"], ["list"], ["train", "--help"]])
def test_help_lists_all_there_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out = capsys.readouterr().out
    names = [*plugins.available("algorithm"), *plugins.available("dataset")]
    names += [*plugins.objectives(), *plugins.presets()]
    assert {"fixmatch", "digits", "min_recall"} <= set(names)
    assert all(f"  {name} " in out for name in names)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
