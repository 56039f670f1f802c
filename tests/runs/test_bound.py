"""Every file of a run is bound to it: what was changed or is of another run is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.compare import reading
from ssl_selmix.runs.folder import RunError, open_run
from ssl_selmix.training import checkpoint
from tests.helpers.runs import SMALL, train, unbound

STAGE = Path("1-supervised")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    return train(tmp_path_factory.mktemp("bound") / "run")


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    """One of the same split with another learning rate."""
    return train(run.with_name("other"), "supervised.lr=0.01")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


def again(folder: Path, *words: str) -> int:
    """The exit code of resuming it."""
    command = ["--algo", "supervised", "--out", str(folder), "--resume", *SMALL, *words]
    return cli.main(command)


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def reversed_names(manifest: dict[str, Any]) -> None:
    manifest["class_names"] = manifest["class_names"][::-1]


def other_mean(manifest: dict[str, Any]) -> None:
    manifest["mean"] = [10 * manifest["mean"][0]]


def other_preprocessing(manifest: dict[str, Any]) -> None:
    manifest["preprocessing"]["size"] = [16, 16]


def other_counts(manifest: dict[str, Any]) -> None:
    manifest["rule"]["validation"] += 1


def better(results: dict[str, Any]) -> None:
    results["stages"][0]["test"]["min_recall"] = 1.0


def other_seed(results: dict[str, Any]) -> None:
    results["seed"] = 5


CHANGES = [
    *(("manifest.json", change) for change in (reversed_names, other_mean, other_preprocessing)),
    ("manifest.json", other_counts),
    *(("results.json", change) for change in (better, other_seed)),
    ("environment.json", lambda content: content.update(commit="0" * 40)),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_changed_file_is_refused_wherever_the_run_is_opened(
    copied: Path,
    name: str,
    change: Callable[[dict[str, Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed(copied / name, change)
    with pytest.raises(RunError, match=name):
        ssl_selmix.load(copied)
    assert again(copied) == 2
    assert str(copied / name) in capsys.readouterr().err
    words = ["--algo", "supervised", "--out", str(copied.with_name("new")), *SMALL]
    assert cli.main([*words, "--init", str(copied)]) == 2
    assert str(copied / name) in capsys.readouterr().err


def test_a_changed_configuration_is_refused(copied: Path) -> None:
    file = copied / "config.yaml"
    text = file.read_text()
    for old, new in (
        ("lr: 0.1", "lr: 0.2"),
        ("name: cnn-4", "name: cnn-8"),
        ("seed: 0", "seed: 1"),
    ):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(RunError, match=r"config\.yaml is damaged \(its content is not"):
            ssl_selmix.load(copied)


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "1-supervised/model.pt"])
def test_files_of_another_run_of_the_same_split_are_refused(
    copied: Path, other: Path, name: str
) -> None:
    shutil.copy(other / name, copied / name)
    with pytest.raises(RunError, match=Path(name).name):
        ssl_selmix.load(copied)


@pytest.mark.parametrize("name", ["config.yaml", "results.json"])
def test_files_of_another_run_are_refused_without_digests_too(
    copied: Path, other: Path, name: str
) -> None:
    """As in runs of older versions, by what both files say."""
    shutil.copy(other / name, copied / name)
    unbound(copied)
    changed(copied / "manifest.json", lambda content: content.pop("run_id"))
    with pytest.raises(RunError, match=r"results\.json is of another run than config\.yaml: .*lr"):
        ssl_selmix.load(copied)


def test_weights_of_another_run_are_refused_without_their_digest_too(
    copied: Path, other: Path
) -> None:
    def forget(results: dict[str, Any]) -> None:
        del results["stages"][0]["handed_on_sha256"]

    unbound(copied)
    changed(copied / "results.json", forget)
    ssl_selmix.load(copied)
    shutil.copy(other / STAGE / "model.pt", copied / STAGE / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is of another run than .*best\.pt"):
        ssl_selmix.load(copied)


def test_a_run_without_its_configuration_is_not_begun_anew(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "results.json").read_bytes()
    (copied / "config.yaml").unlink()
    assert again(copied, "supervised.lr=0.3") == 2
    assert "has no config.yaml" in capsys.readouterr().err
    (copied / "results.json").unlink()
    assert again(copied) == 2  # checkpoints tell as much
    assert "1-supervised/" in capsys.readouterr().err
    assert before and not (copied / "config.yaml").exists()


def test_results_of_another_run_are_not_resumed(
    copied: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(other / "results.json", copied / "results.json")
    assert again(copied) == 2
    assert "is of another run than manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"x" * 100, b"", None])
def test_a_damaged_model_of_a_finished_stage_is_restored(
    copied: Path, damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / STAGE / "model.pt"
    wanted = checkpoint.digest(checkpoint.load(file))
    file.write_bytes(damage) if damage is not None else file.unlink()
    assert again(copied) == 0
    assert "model.pt was missing or damaged and is restored" in " ".join(
        capsys.readouterr().out.split()
    )
    assert checkpoint.digest(checkpoint.load(file)) == wanted
    ssl_selmix.load(copied)


def test_a_stage_that_lost_its_best_checkpoint_hands_on_what_it_recorded(copied: Path) -> None:
    wanted = checkpoint.digest(checkpoint.load(copied / STAGE / "model.pt"))
    (copied / STAGE / "best.pt").write_bytes(b"x")
    assert again(copied) == 0
    assert checkpoint.digest(checkpoint.load(copied / STAGE / "model.pt")) == wanted


def test_a_stage_that_lost_all_its_weights_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_run(copied).stages[0].kept_step == 0  # so that best.pt and last.pt differ
    for name in ("model.pt", "best.pt"):
        (copied / STAGE / name).write_bytes(b"x")
    assert again(copied) == 2
    assert "none has the weights that" in capsys.readouterr().err


def test_a_changed_log_draws_no_curves(copied: Path) -> None:
    (found,), _ = reading.read([copied])
    assert found.stages[0].log and found.stages[0].log.rows and not found.stages[0].log.note
    log = copied / STAGE / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 12', '"step": 11'))
    (found,), _ = reading.read([copied])
    assert found.stages[0].log and not found.stages[0].log.rows
    assert "is not what the run wrote" in found.stages[0].log.note[0]


def test_changed_results_are_not_compared(copied: Path) -> None:
    changed(copied / "results.json", better)
    with pytest.raises(ValueError, match="its content is not what its SHA-256 tells"):
        reading.read([copied / "results.json"])
