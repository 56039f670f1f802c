"""Whole runs: what they leave on disk, and that no interruption can be seen in the result."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.data import manifest as manifests
from ssl_selmix.runs.command import COMMANDS
from ssl_selmix.runs.inputs import reload
from ssl_selmix.runs.plan import Plan, Request, reopen
from ssl_selmix.training import checkpoint
from tests.helpers.images import noise_tree
from tests.helpers.runs import unbound

SETTINGS = [
    *("fixmatch.steps=6", "fixmatch.evaluate_every=3", "fixmatch.batch=8"),
    *("selmix.steps=12", "selmix.evaluate_every=10", "selmix.batch=8", "selmix.lr=0.01"),
    *("selmix.keep=last", "model.name=cnn-4"),
    *("data.labeled.largest=15", "data.unlabeled.largest=20"),
    *("data.validation=3", "data.test=3", "pictures=false"),
]
TWO_STAGES = ["--algo", "fixmatch", "--then", "selmix", *SETTINGS]
STAGE_FILES = {"last.pt", "previous.pt", "best.pt", "model.pt", "metrics.jsonl"}
FIGURES = {
    *("mean_recall", "min_recall", "min_ht_recall", "g_mean", "h_mean", "min_coverage"),
    *("accuracy", "ece", "classwise_ece", "per_class_recall", "per_class_coverage"),
    "reliability",
}
TIMES = {"steps_per_second", "images_per_second"}
ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages that nothing disturbed; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([*TWO_STAGES, "--out", str(folder)]) == 0
    return folder


class Killed(BaseException):
    """Stands for the end of the process; no handler of the package may catch it."""


@contextmanager
def killed_at(stage: str, step: int) -> Iterator[None]:
    """End the run after this step of this stage, before anything is saved."""
    from ssl_selmix.training.engine import Trainer

    step_once = Trainer.step_once

    def step_and_die(self: Trainer, batches: Any) -> None:
        step_once(self, batches)
        if (self.data.stage, self.step) == (stage, step):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "step_once", step_and_die)
        yield


def train(folder: Path, *words: str, base: Sequence[str] = TWO_STAGES) -> dict[str, Any]:
    assert cli.main([*base, "--out", str(folder), *words]) == 0
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def refusal(folder: Path, *words: str, base: Sequence[str] = TWO_STAGES) -> str:
    """The message of a run that must be refused."""
    with pytest.raises((ValueError, OSError)) as caught:
        cli.main([*base, "--out", str(folder), "--debug", *words])
    return str(caught.value)


def weights(folder: Path) -> dict[str, str]:
    """Digest of every checkpoint of a run but for the wall time in it."""
    found = {}
    for path in sorted(folder.glob("*/*.pt")):
        state = checkpoint.load(path)
        state.pop("seconds", None)
        found[str(path.relative_to(folder))] = checkpoint.digest(state)
    return found


def rows(stage: Path, without: set[str] = TIMES) -> list[dict[str, Any]]:
    lines = (stage / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def forget_run_id(results: dict[str, Any]) -> str:
    """Take the run's identity out of its results; every place must have the same one."""
    found: str = results.pop("run_id")
    for stage in results["stages"]:
        if "started_from" in stage:
            assert stage["started_from"].pop("run_id") == found
    return found


def assert_same_run(folder: Path, expected: Path) -> None:
    """Same weights, rows and figures, and nothing left lying about."""
    assert weights(folder) == weights(expected)
    for stage in ("1-fixmatch", "2-selmix"):
        assert rows(folder / stage) == rows(expected / stage)
    results = [json.loads((f / "results.json").read_text()) for f in (folder, expected)]
    ids = [forget_run_id(result) for result in results]
    assert len(set(ids)) == 2  # two trainings, however equal
    for result in results:  # of files that have the identity and the wall time
        assert len({*result.pop("files"), result.pop("sha256")}) == 4
        assert all(stage.pop("log_sha256") for stage in result["stages"])
    for result in results:
        for stage_result in result["stages"]:
            assert stage_result.pop("seconds") > 0
    assert results[0] == results[1]
    names = [
        {str(p.relative_to(f)) for p in f.rglob("*") if "tfevents" not in p.name}
        for f in (folder, expected)
    ]
    assert names[0] == names[1]


def test_results_json_holds_what_the_design_says(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["dataset"] == "digits" and results["seed"] == 0
    assert [s["algorithm"] for s in results["stages"]] == ["fixmatch", "selmix"]
    assert [s["steps"] for s in results["stages"]] == [6, 12]
    for stage in results["stages"]:
        assert stage["seconds"] > 0 and stage["head"] == "classifier"
        for part in ("validation", "test"):
            assert set(stage[part]) == FIGURES
            assert len(stage[part]["per_class_recall"]) == 10
            scalars = {key for key in FIGURES if "per_class" not in key} - {"reliability"}
            assert all(0 <= stage[part][key] <= 1 for key in scalars)
    protocol = results["protocol"]
    assert protocol["network"] == "cnn-4" and protocol["parameters"] == 1030
    assert protocol["steps"] == [6, 12]
    assert protocol["checkpoint_rule"] == {"fixmatch": "best", "selmix": "last"}
    labeled = {"largest": 15, "rho": 15.0, "reverse": False, "shape": "long_tail"}
    assert protocol["split"]["labeled"] == labeled
    assert "largest" in protocol and "validation" in protocol and "precision" in protocol


def test_the_manifest_is_verified_and_names_disjoint_images(finished: Path) -> None:
    manifest = manifests.read(finished / "manifest.json")
    assert manifest["dataset"] == "digits" and manifest["class_names"] == list("0123456789")
    parts = manifest["indices"]
    everything = [index for part in parts.values() for index in part]
    assert len(everything) == len(set(everything))
    assert len(parts["validation"]) == len(parts["test"]) == 30
    assert len(manifest["images_sha256"]) == 64


def test_config_yaml_holds_every_value(finished: Path) -> None:
    from ssl_selmix.common import text

    written = text.load(finished / "config.yaml")
    assert isinstance(written, dict)
    plan = Plan(Request(["fixmatch", "selmix"], settings=SETTINGS))
    assert written == plan.identity()
    assert written["algorithms"] == ["fixmatch", "selmix"] and written["dataset"] == "digits"
    assert written["fixmatch"]["steps"] == 6  # the command line
    assert written["fixmatch"]["ema"] == 0.99  # the preset
    assert written["fixmatch"]["threshold"] == 0.95  # the default
    assert "supervised" not in written


def test_environment_json_says_where_it_ran(finished: Path) -> None:
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")
    assert environment["python"] == sys.version.split()[0]
    expected = {"command", "date", "platform", "cores", "threads", "device", "commit"}
    assert expected <= environment.keys()


def test_stages_leave_their_files_and_checkpoints_load_safely(finished: Path) -> None:
    for stage in ("1-fixmatch", "2-selmix"):
        names = {p.name for p in (finished / stage).iterdir()}
        assert {name for name in names if "tfevents" not in name} == STAGE_FILES
        assert len(names) == len(STAGE_FILES) + 1
        content = torch.load(finished / stage / "last.pt", weights_only=True)
        assert content["state"]["step"] in (6, 12)


def test_rows_of_each_kind_have_rising_steps(finished: Path) -> None:
    for stage, expected in (("1-fixmatch", [0, 3, 6]), ("2-selmix", [0, 10, 12])):
        found = rows(finished / stage)
        assert [r["step"] for r in found if r["kind"] == "validation"] == expected
        assert [r["step"] for r in found if r["kind"] == "train"] == expected[1:]


def test_the_second_stage_starts_from_what_the_first_one_kept(finished: Path) -> None:
    kept = checkpoint.load(finished / "1-fixmatch" / "best.pt")["teacher"]
    start = checkpoint.load(finished / "2-selmix" / "best.pt")
    first = rows(finished / "2-selmix")[0]
    before = next(r for r in rows(finished / "1-fixmatch") if r["step"] == start["step"])
    assert first["step"] == 0 and first["mean_recall"] == before["mean_recall"]
    assert start["step"] == 0  # nothing better in four steps, so best.pt is the start
    same = [k for k in kept if k in start["teacher"]]
    assert "net.classifier.weight" in same
    assert all(torch.equal(kept[k], start["teacher"][k]) for k in same)


def test_pictures_of_matrices_are_logged(tmp_path: Path) -> None:
    tensorboard: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    base = ["--algo", "selmix", *SETTINGS[3:]]
    base = [word for word in base if not word.startswith(("selmix.steps", "selmix.evaluate"))]
    train(tmp_path / "run", "selmix.steps=1", "pictures=true", base=base)
    events = tensorboard.EventAccumulator(str(tmp_path / "run" / "1-selmix"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"confusion", "gain_matrix", "pair_distribution"}
    assert "validation/min_recall" in events.Tags()["scalars"]
    assert "per_class_recall/0" in events.Tags()["scalars"]


def test_an_existing_directory_is_not_overwritten(finished: Path) -> None:
    before = contents(finished)
    message = refusal(finished)
    assert str(finished) in message and "--resume" in message
    assert contents(finished) == before


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file" in refusal(tmp_path / "run")


def test_resume_names_every_key_that_differs(finished: Path) -> None:
    before = contents(finished)
    message = refusal(finished, "--resume", "selmix.lr=0.02", "data.labeled.rho=10")
    assert "data.labeled.rho: 15.0 -> 10.0" in message
    assert "selmix.lr: 0.01 -> 0.02" in message
    assert "fixmatch" not in message.split("differs in")[1]
    message = refusal(finished, "--resume", base=["--algo", "fixmatch", "fixmatch.steps=6"])
    assert "algorithms: ['fixmatch', 'selmix'] -> ['fixmatch']" in message
    assert contents(finished) == before


def test_resume_may_change_the_number_of_threads(finished: Path) -> None:
    before = contents(finished)
    train(finished, "--resume", "threads=1")
    assert contents(finished) == before


def test_resuming_a_finished_run_prints_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    train(finished, "--resume")
    assert "worst class" in capsys.readouterr().out
    after = contents(finished)
    assert after.keys() == before.keys()
    assert [key for key in after if after[key] != before[key]] == []


def test_resuming_what_never_started_starts_it(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--resume")
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step"), [("1-fixmatch", 2), ("1-fixmatch", 6), ("2-selmix", 11)]
)
def test_interrupted_and_resumed_ends_bit_identical(
    stage: str, step: int, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with killed_at(stage, step):
        train(folder)
    before = contents(folder / "1-fixmatch")
    train(folder, "--resume")
    assert_same_run(folder, finished)
    if stage == "2-selmix":
        assert contents(folder / "1-fixmatch") == before  # finished: not even opened


def test_a_run_of_the_version_whose_stages_all_had_a_mu_goes_on(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with killed_at("2-selmix", 11):
        train(folder)
    plan, file = reopen(unbound(folder)), folder / "config.yaml"
    assert "mu" in plan.plain["fixmatch"] and "mu" not in plan.plain["selmix"]
    # Checkpoints of that version were told apart by all keys of that version.
    plan.plain["selmix"]["mu"] = 2
    assert plan.fingerprint(1, "images") == reopen(folder).fingerprint(1, "images")
    text = file.read_text()
    file.write_text(text.replace("\nselmix:\n", "\nselmix:\n  mu: 3\n"))
    assert "it differs in selmix.mu: 3 -> 2;" in refusal(folder, "--resume")
    file.write_text(text.replace("\nselmix:\n", "\nselmix:\n  mu: 2\n"))
    assert reopen(folder).plain == reopen(finished).plain
    train(folder, "--resume")
    file.write_text(text)
    assert_same_run(folder, finished)


def as_version_0_1_left_it(run: Path) -> None:
    """Take out of a run's files what version 0.1 did not write."""
    manifest = json.loads((run / "manifest.json").read_text())
    for key in ("schema", "run_id", "preprocessing"):
        del manifest[key]
    (run / "manifest.json").write_text(json.dumps(manifest))
    results = json.loads((run / "results.json").read_text())
    for key in ("schema", "run_id", "tail", "class_names", "model", "files", "sha256"):
        del results[key]
    for stage in results["stages"]:
        del stage["handed_on_sha256"], stage["log_sha256"]
        stage.pop("started_from", None)
    (run / "results.json").write_text(json.dumps(results))


def test_a_run_that_version_0_1_began_is_resumed(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_at("2-selmix", 11):
        train(folder)
    as_version_0_1_left_it(folder)
    before = contents(folder)
    found = train(folder, "--resume")
    after = contents(folder)
    assert after["manifest.json"] == before["manifest.json"]
    assert weights(folder) == weights(finished)
    assert found["schema"] == 2 and found["run_id"] == found["stages"][1]["started_from"]["run_id"]
    ended = contents(folder)
    train(folder, "--resume")
    assert contents(folder) == ended


def test_a_run_is_opened_again_as_it_was(finished: Path, tmp_path: Path) -> None:
    plan = reopen(finished)
    assert [name for name, _ in plan.algorithms] == ["fixmatch", "selmix"]
    assert plan.identity() == Plan(Request(["fixmatch", "selmix"], settings=SETTINGS)).identity()
    inputs = reload(plan)
    written = manifests.read(finished / "manifest.json")
    assert inputs.split.labeled.tolist() == written["indices"]["labeled"]
    with pytest.raises(ValueError, match=r"is no run of ssl_selmix; it has no config\.yaml"):
        reopen(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: [1")
    with pytest.raises(
        ValueError, match=r"config\.yaml is damaged \(it is no YAML: .*; restore it"
    ):
        reopen(tmp_path)


@pytest.mark.parametrize("how", ["split", "lazy"])
def test_views_are_step_in_settings_and_records_of_older_runs(finished: Path, how: str) -> None:
    plans = [Plan(Request(["fixmatch"], settings=[f"{n}.{how}=true"])) for n in ("views", "step")]
    assert [plan.config["views"].name for plan in plans] == [how, how]
    first, second = plans
    assert first.identity() == second.identity()
    assert first.fingerprint(0, "images") == second.fingerprint(0, "images")
    assert first.identity()["step"] == {"split": False, "lazy": False, how: True}
    assert "step:\n  split: false\n  lazy: false\n" in (finished / "config.yaml").read_text()
    assert reopen(finished).config["views"].name == "joint"
    for name in ("views", "step"):
        with pytest.raises(ValueError, match=r"unknown key 'views\.lzay'; did you mean views.lazy"):
            Plan(Request(["fixmatch"], settings=[f"{name}.lzay=true"]))


def test_the_manifest_says_which_command_drew_the_split(finished: Path) -> None:
    words = shlex.split(json.loads((finished / "manifest.json").read_text())["command"])
    assert words[:2] == ["ssl-selmix", "train"]
    args = COMMANDS["train"].parser().parse_intermixed_args(words[2:])
    assert [args.algo, *args.then, args.dataset] == ["fixmatch", "selmix", "digits"]
    assert args.settings == [word for word in SETTINGS if word != "pictures=false"]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with killed_at("1-fixmatch", 5):
        train(folder)
    last = folder / "1-fixmatch" / "last.pt"
    content = bytearray(last.read_bytes())
    middle = len(content) // 2
    for place in range(middle, middle + 128):  # more than the padding between two tensors
        content[place] ^= 1
    damaged = {"truncated": content[:middle], "flipped": content}
    last.write_bytes(bytes(damaged[damage]))
    capsys.readouterr()
    train(folder, "--resume")
    out = " ".join(capsys.readouterr().out.split())
    assert f"{last} is damaged" in out and "previous.pt" in out
    assert_same_run(folder, finished)


def test_both_checkpoints_damaged_starts_the_stage_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with killed_at("2-selmix", 11):
        train(folder)
    for name in ("last.pt", "previous.pt"):
        (folder / "2-selmix" / name).write_bytes(b"no checkpoint")
    train(folder, "--resume")
    assert "the start instead" in " ".join(capsys.readouterr().out.split())
    assert_same_run(folder, finished)


def test_a_lost_best_checkpoint_is_a_warning(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with killed_at("2-selmix", 1):
        train(folder)
    (folder / "1-fixmatch" / "best.pt").unlink()
    train(folder, "--resume")
    out = " ".join(capsys.readouterr().out.split())
    assert "warning" in out and "best.pt" in out


def test_a_damaged_record_stops_the_resumption(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with killed_at("2-selmix", 1):
        train(folder)
    for name in ("config.yaml", "results.json", "manifest.json"):
        text = (folder / name).read_text()
        (folder / name).write_text("{[")
        before = contents(folder)
        assert str(folder / name) in refusal(folder, "--resume")
        assert contents(folder) == before
        (folder / name).write_text(text)
    train(folder, "--resume")


def test_a_run_killed_before_its_first_file_can_be_resumed_or_repeated(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    train(tmp_path / "run")
    assert_same_run(tmp_path / "run", finished)


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "seed=1")
    other = manifests.read(tmp_path / "run" / "manifest.json")
    assert other["indices"] != manifests.read(finished / "manifest.json")["indices"]
    ours, theirs = weights(tmp_path / "run"), weights(finished)
    assert all(ours[key] != theirs[key] for key in theirs)


def test_a_mistake_about_a_later_stage_is_found_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    mine = tmp_path / "mine.py"
    mine.write_text("def fails(c):\n    return c + 'a'\n\n\ndef flat(c):\n    return c.argmax()\n")
    mistakes = ["selmix.objective=min_recal", "selmix.alpha=0.3", "selmix.step_size=-3"]
    mistakes += [f"selmix.objective={mine}:fails", f"selmix.constraints=[{mine}:flat]"]
    for mistake in [*mistakes, "data.test=0"]:
        refusal(folder, mistake)
        assert "1-fixmatch" not in capsys.readouterr().out
        assert not folder.exists()  # the corrected command needs no other directory


# --- Image folders and plug-ins of one's own -----------------------------------------------------

CLASSES = ("[red]", "b$x$", "plain")  # markup to rich, a formula to matplotlib
FOLDER_SETTINGS = [
    *("data.labeled.largest=4", "data.labeled.rho=2", "data.unlabeled.largest=4"),
    *("data.unlabeled.rho=2", "data.validation=2", "model.name=cnn-4"),
    *("fixmatch.steps=2", "fixmatch.batch=4", "selmix.steps=2", "selmix.batch=4"),
]


def make_images(root: Path) -> list[str]:
    """Twelve training and two test images per class; the words of a run on them."""
    noise_tree(root, {"train": 12, "test": 2}, classes=CLASSES)
    base = ["--algo", "fixmatch", "--then", "selmix", "--dataset", "image_folder"]
    return [*base, f"data.root={root}", *FOLDER_SETTINGS]


def test_image_folder_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_images(tmp_path / "images")
    results = train(tmp_path / "run", base=base)
    assert results["dataset"] == "image_folder"
    manifest = manifests.read(tmp_path / "run" / "manifest.json")
    assert manifest["class_names"] == list(CLASSES)
    assert manifest["image_shape"] == [3, 8, 8] and manifest["indices"]["test"] == []
    out = capsys.readouterr().out
    assert all(name in out for name in CLASSES)


def test_resuming_on_changed_images_is_refused(tmp_path: Path) -> None:
    base = make_images(tmp_path / "images")
    with killed_at("1-fixmatch", 1):
        train(tmp_path / "run", base=base)
    (tmp_path / "images" / "train" / "plain" / "0.png").unlink()
    before = contents(tmp_path / "run")
    assert "other images" in refusal(tmp_path / "run", "--resume", base=base)
    assert contents(tmp_path / "run") == before


MY_ALGO = '''
"""Cross-entropy with a head of its own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ssl_selmix.algorithm import Algorithm


class MyAlgo(Algorithm):
    views = ("weak",)

    @dataclass
    class Config(Algorithm.Config):
        strength: float = 0.5

    def __init__(self, net, task, config):
        super().__init__(net, task, config)
        self.register_buffer("seen", torch.zeros(task.num_classes))

    def forward(self, batch, ctx):
        self.seen += torch.bincount(batch.y, minlength=self.task.num_classes)
        loss = F.cross_entropy(self.net(batch.x), batch.y)
        noise = self.config.strength * torch.rand(()) * self.net(batch.u[0]).square().mean()
        return {"labeled": loss, "small": noise}, {}
'''


def test_an_algorithm_file_of_ones_own_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Named like a module that others need: loading it must not replace that module.
    (tmp_path / "random.py").write_text(MY_ALGO)
    monkeypatch.chdir(tmp_path)
    base = ["--algo", "./random.py", "--then", "selmix", *SETTINGS[3:]]
    base += ["random.steps=6", "random.evaluate_every=3", "random.batch=4", "random.strength=0.1"]
    results = train(tmp_path / "whole", base=base)
    assert [s["algorithm"] for s in results["stages"]] == ["random", "selmix"]
    with killed_at("1-random", 5):
        train(tmp_path / "cut", base=base)
    train(tmp_path / "cut", "--resume", base=base)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    seen = checkpoint.load(tmp_path / "cut" / "1-random" / "last.pt")["algorithm"]["seen"]
    assert int(seen.sum()) == 6 * 4
    assert sys.modules["random"] is random


def test_one_name_cannot_mean_two_algorithms(tmp_path: Path) -> None:
    for name in ("fixmatch", "model", "seed"):
        (tmp_path / f"{name}.py").write_text(MY_ALGO)
        base = ["--algo", "fixmatch", "--then", str(tmp_path / f"{name}.py")]
        assert repr(name) in refusal(tmp_path / "run", base=base)


def test_the_same_algorithm_twice_shares_its_section(tmp_path: Path) -> None:
    base = ["--algo", "fixmatch", "--then", "fixmatch", *TWO_STAGES[4:7], *SETTINGS[8:]]
    train(tmp_path / "run", base=base)
    assert (tmp_path / "run" / "1-fixmatch").is_dir() and (tmp_path / "run" / "2-fixmatch").is_dir()


# --- Real ends of real processes -----------------------------------------------------------------

# Imports once and forks for every attempt, so that an attempt takes a fraction of a second. An
# attempt ends by SIGKILL at its n-th event: a step, or a file of the run being opened, renamed or
# removed; so the moments between two renames are hit as well.
FORKS = r"""
import json, os, resource, signal, sys, traceback
import matplotlib.figure, numpy, sklearn.datasets, torch._dynamo, torch.utils.tensorboard
from ssl_selmix import algorithm, cli
from ssl_selmix.common import plugins
from ssl_selmix.runs import train
from ssl_selmix.training import engine

for name in plugins.available("algorithm"):
    algorithm.load(name)
step_once = engine.Trainer.step_once

def announced(self, batches):
    step_once(self, batches)
    sys.audit("test.step", self.step)

engine.Trainer.step_once = announced

def attempt(argv, folder, kill_at, full_at_step):
    events = 0
    def watch(event, args):
        nonlocal events
        if event not in ("test.step", "open", "os.rename", "os.remove", "os.mkdir"):
            return
        if event != "test.step" and folder not in str(args[0]):
            return
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "test.step" and args[0] == full_at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    sys.addaudithook(watch)
    code = cli.main(argv)
    sys.stdout.flush()
    return code, events

for line in sys.stdin:
    arguments = json.loads(line)
    (said, say), (counted, count) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said)
        os.dup2(say, 1)
        os.dup2(say, 2)
        os.close(say)
        code = 1
        try:
            code, events = attempt(*arguments)
            os.write(count, str(events).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(say)
    os.close(count)
    with os.fdopen(said) as output, os.fdopen(counted) as number:
        text, events = output.read(), int(number.read() or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([status, events, text]), flush=True)
"""


class Forks:
    """Runs in processes that really end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""  # of the last attempt
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def attempt(
        self, run: str, *words: str, kill_at: int = 0, full_at_step: int = 0
    ) -> tuple[int, int]:
        """Exit status and number of events of one process."""
        folder = str(self.folder / run)
        arguments = [[*TWO_STAGES, "--out", folder, *words], folder, kill_at, full_at_step]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        status, events, self.output = json.loads(self._process.stdout.readline())
        return status, events

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(forks: Forks) -> tuple[Path, int]:
    """A run in a process of its own, and how many events it took."""
    status, events = forks.attempt("undisturbed")
    assert status == 0, forks.output
    return forks.folder / "undisturbed", events


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_no_trace(
    forks: Forks, undisturbed: tuple[Path, int]
) -> None:
    expected, events = undisturbed
    draw = random.Random(0)
    for _ in range(3):
        status, _ = forks.attempt("killed", "--resume", kill_at=draw.randrange(1, events // 2))
        assert status == -9
    status, _ = forks.attempt("killed", "--resume")
    assert status == 0, forks.output
    assert_same_run(forks.folder / "killed", expected)


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(
    forks: Forks, undisturbed: tuple[Path, int]
) -> None:
    status, _ = forks.attempt("full", full_at_step=5)
    last = forks.output.splitlines()[-1]
    assert status == 2
    assert last.startswith("error: File too large") and "--resume" in last
    assert "Traceback" not in forks.output
    state = checkpoint.load(forks.folder / "full" / "1-fixmatch" / "last.pt")
    assert state["step"] == 3
    status, _ = forks.attempt("full", "--resume")
    assert status == 0, forks.output
    assert_same_run(forks.folder / "full", undisturbed[0])


@pytest.mark.slow
def test_resuming_with_an_edited_file_of_ones_own_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f(c):\n    return c.diagonal().sum()\n")
    words = [f"selmix.objective={mine}:f"]
    train(tmp_path / "run", *words)
    mine.write_text("def f(c):\n    return 2 * c.diagonal().sum()\n")
    assert "code" in refusal(tmp_path / "run", "--resume", *words)
