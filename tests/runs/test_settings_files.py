"""Presets name their data set; a configuration repeats its run, and executes no code unasked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ssl_selmix import cli
from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import command
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import checkpoint
from tests.helpers.runs import train

DATA = """
import torch
from ssl_selmix.data import ImageSet
from ssl_selmix.datasets import digits
Config, load = digits.Config, digits.load
print("executed")
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    words = ["--then", "cutmix", "cutmix.steps=3", "cutmix.batch=8", "seed=3", "views.lazy=true"]
    return train(folder, *words, "data.validation=0.2", "cutmix.keep=last")


def refusal(**options: Any) -> str:
    with pytest.raises(ValueError) as info:
        Plan(Request(**options))
    return str(info.value)


def model(run: Path, stage: str) -> str:
    return checkpoint.digest(checkpoint.load(run / stage / "model.pt")["teacher"])


@pytest.mark.parametrize("preset", plugins.presets())
def test_a_preset_alone_means_its_data_set_and_refuses_another(preset: str) -> None:
    dataset = plugins.preset_dataset(preset)
    if not dataset:  # it is about a network
        assert preset.startswith("pretrained-")
        assert Plan(Request(["supervised"], "stl10", preset)).request.dataset == "stl10"
        return
    assert dataset == preset.partition("-")[0]
    assert Plan(Request(["supervised"], preset=preset)).request.dataset == dataset
    assert Plan(Request(["supervised"], dataset, preset)).request.dataset == dataset
    other = "stl10" if dataset == "digits" else "digits"
    told = refusal(algorithms=["supervised"], dataset=other, preset=preset)
    assert told.startswith(f"preset {preset} is for --dataset {dataset}, which --dataset {other} ")


def test_a_preset_of_ones_own_may_name_a_data_set() -> None:
    Path("mine.yaml").write_text("dataset: stl10\nmodel: {name: cnn-4}\n")
    plan = Plan(Request(["supervised"], preset="mine.yaml"))
    assert plan.request.dataset == "stl10" and plan.config["model"].name == "cnn-4"
    Path("mine.yaml").write_text("model: {name: cnn-4}\n")
    for dataset in ("", "digits", "stl10"):
        plan = Plan(Request(["supervised"], dataset, "mine.yaml"))
        assert plan.request.dataset == (dataset or "digits")
    Path("mine.yaml").write_text("dataset: digit\n")
    told = refusal(algorithms=["supervised"], preset="mine.yaml")
    assert told == "unknown dataset 'digit'; did you mean digits?"
    Path("mine.yaml").write_text("algorithms: [supervised]\n")
    told = refusal(algorithms=["supervised"], preset="mine.yaml")
    assert "give the configuration of a run as --config mine.yaml" in told


def test_without_stages_a_preset_says_which_it_is_for() -> None:
    told = refusal(algorithms=[], preset="cifar10-lt")
    assert told.endswith("; preset cifar10-lt has settings of fixmatch, selmix")
    assert refusal(algorithms=[]).endswith("such as --algo fixmatch")


def test_a_run_that_was_made_with_a_preset_and_another_data_set_is_resumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Releases before this one took any; their runs go on, and no new one begins so."""
    Path("old.yaml").write_text("supervised: {steps: 4}\n")
    words = ["--preset", "old.yaml", "--dataset", "digits"]
    train(Path("run"), *words)
    Path("old.yaml").write_text("dataset: stl10\nsupervised: {steps: 4}\n")
    train(Path("run"), *words, "--resume")
    assert cli.main(["--algo", "supervised", *words, "--out", "new", "--resume"]) == 2
    assert "preset old.yaml is for --dataset stl10" in capsys.readouterr().err


def test_a_configuration_repeats_its_run_bit_for_bit(finished: Path) -> None:
    assert cli.main(["--config", str(finished / "config.yaml"), "--out", "again"]) == 0
    again = Path("again")
    for stage in ("1-supervised", "2-cutmix"):
        assert model(again, stage) == model(finished, stage)
    assert (again / "config.yaml").read_text() == (finished / "config.yaml").read_text()
    results = [json.loads((run / "results.json").read_text()) for run in (finished, again)]
    assert results[0]["run_id"] != results[1]["run_id"]
    assert results[0]["stages"][1]["test"] == results[1]["stages"][1]["test"]
    # The manifest's command asks for the same without the file.
    words = shlex.split(json.loads((again / "manifest.json").read_text())["command"])
    assert "--config" not in words
    args = command("train").parser().parse_intermixed_args(words[2:])
    request = Request([args.algo, *args.then], args.dataset, "none", settings=args.settings)
    plan = Plan(Request(config=finished, algorithms=[]))  # its folder will do
    assert Plan(request).identity() == plan.identity()


def test_the_command_line_beats_a_configuration(finished: Path) -> None:
    plan = Plan(Request([], config=finished, settings=["seed=4", "supervised.steps=5"]))
    assert (plan.run.seed, plan.config["supervised"].steps) == (4, 5)
    assert plan.config["views"].lazy and str(plan.out) == "runs/digits-supervised-cutmix-seed4"
    plan = Plan(Request(["supervised", "mixup"], config=finished))
    assert plan.stages == ["1-supervised", "2-mixup"] and plan.config["supervised"].steps == 12
    told = refusal(algorithms=[], dataset="stl10", config=finished)
    assert told.startswith(f"config {finished}/config.yaml is for --dataset digits, which --data")
    told = refusal(algorithms=[], preset="stl10-lt", config=finished)
    assert "preset stl10-lt contradicts" in told
    told = refusal(algorithms=[], config=finished, settings=["selmix.steps=3"])
    assert "add --then selmix" in told


def test_a_configuration_of_ones_own_may_be_a_few_lines() -> None:
    Path("mine.yaml").write_text("algorithms: fixmatch\nseed: 2\nfixmatch: {lr: 1e-3}\n")
    plan = Plan(Request([], config=Path("mine.yaml")))
    assert (plan.request.dataset, plan.stages) == ("digits", ["1-fixmatch"])
    assert (plan.run.seed, plan.config["fixmatch"].lr) == (2, 0.001)
    assert plan.config["fixmatch"].steps == 10_000  # the preset of the digits is not taken unasked
    plan = Plan(Request([], preset="digits", config=Path("mine.yaml")))
    assert plan.config["fixmatch"].steps == 1000 and plan.config["fixmatch"].lr == 0.001
    for text, part in (
        ("fixmatch: {stps: 3}", "unknown key 'fixmatch.stps'; did you mean fixmatch.steps"),
        ("fixmatch: [3", "no YAML"),
        ("- 3", "mapping"),
        ("seed: many", "seed must be a whole number"),
    ):
        Path("mine.yaml").write_text(text)
        told = refusal(algorithms=["fixmatch"], config=Path("mine.yaml"))
        assert "config mine.yaml" in told and part in told
    Path("mine.yaml").write_text("seed: 3\n")
    assert "no algorithm" in refusal(algorithms=[], config=Path("mine.yaml"))
    assert "no configuration nowhere" in refusal(algorithms=[], config=Path("nowhere"))


def test_a_changed_configuration_of_a_run_is_told(finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished, "copy")
    file = Path("copy/config.yaml")
    file.write_text(file.read_text().replace("seed: 3", "seed: 5"))
    assert "copy/config.yaml is damaged" in refusal(algorithms=[], config=file)
    shutil.copy(file, "mine.yaml")  # as a file of one's own it is what it says
    assert Plan(Request([], config=Path("mine.yaml"))).run.seed == 5


def test_code_that_a_configuration_names_is_executed_only_if_the_caller_names_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data.py").write_text(DATA)
    Path("goal.py").write_text("print('executed')\n\ndef first(c):\n    return c[0, 0]\n")
    Path("my.py").write_text(
        "from ssl_selmix.algorithms.supervised import Supervised\nprint('executed')\n\n\n"
        "class Mine(Supervised):\n    pass\n"
    )
    for text, name in (
        ("algorithms: [supervised]\ndataset: ./data.py", "./data.py"),
        ("algorithms: [./my.py]", "./my.py"),
        ("algorithms: [my.py:Mine]", "my.py"),
        ("algorithms: [supervised, selmix]\nselmix: {objective: './goal.py:first'}", "./goal.py"),
        ("algorithms: [supervised, selmix]\nselmix: {constraints: [goal.py:first]}", "goal.py"),
    ):
        Path("mine.yaml").write_text(text)
        told = refusal(algorithms=[], config=Path("mine.yaml"))
        assert told.startswith(f"config mine.yaml names {name} (SHA-256 ")
        assert told.endswith(f"look at it, then add --trust {name}")
        assert "executed" not in capsys.readouterr().out.split()
        plan = Plan(Request([], config=Path("mine.yaml"), trust=[name.removeprefix("./")]))
        capsys.readouterr()
        assert plan.config["supervised" if "supervised" in text else plan.algorithms[0][0]]
    Path("mine.yaml").write_text("algorithms: [./my.py]\ndataset: ./data.py")
    plan = Plan(Request(["./my.py"], "./data.py", config=Path("mine.yaml")))
    assert plan.stages == ["1-my"]
    Path("mine.yaml").write_text("algorithms: [./my.py]\ncode: {./my.py: 12ab}")
    told = refusal(algorithms=[], config=Path("mine.yaml"), trust=["./my.py"])
    assert "is not the file that the run was trained with" in told


def test_weights_and_manifest_of_a_configuration_are_those_of_its_run(finished: Path) -> None:
    words = [
        "--init",
        str(finished / "1-supervised" / "model.pt"),
        f"data.manifest={finished}/manifest.json",
    ]
    train(Path("second"), *words, "supervised.steps=2")
    plan = Plan(Request([], config=Path("second/config.yaml")))
    assert plan.request.init == finished / "1-supervised" / "model.pt"
    assert plan.config["data"].manifest == f"{finished}/manifest.json"
    identity = plan.identity()
    assert identity == Plan(Request([], config=Path("second"))).identity()
    Path("second/results.json").unlink()
    file = Path("second/config.yaml")
    text = file.read_text()
    for key, part in (("init", "has not the weights that"), ("data", "is not the split that")):
        digest = identity["init"]["sha256"]
        if key == "data":
            digest = identity["data"]["manifest"]["indices_sha256"]
        file.write_text(text.replace(digest, "0" * 64))
        with pytest.raises(ValueError, match=part):
            Plan(Request([], config=file)).identity()


def test_resume_says_that_a_new_run_begins(capsys: pytest.CaptureFixture[str]) -> None:
    told = "--resume: there is no run in this folder yet, a new one begins"
    train(Path("run"), "--resume")
    assert told in capsys.readouterr().out
    train(Path("run"), "--resume")
    assert told not in capsys.readouterr().out
