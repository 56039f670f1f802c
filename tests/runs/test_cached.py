"""Runs on features that a frozen body makes once: what they share with runs on images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ssl_selmix
from ssl_selmix import cli, models
from ssl_selmix.datasets import digits
from ssl_selmix.models import heads
from tests.helpers.images import noise_tree
from tests.helpers.runs import train, unbound

# The digits, whose weak and strong views are the images themselves.
PLAIN = """
from dataclasses import replace
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.datasets import digits
from ssl_selmix.datasets.digits import Config

def load(config):
    weak = Weak(pad=0, flip=False)
    strong = Strong(weak=weak, num_ops=0, cutout=0.0)
    return replace(digits.load(config), weak=weak, strong=strong)
"""
FIFTY = ["supervised.steps=50", "supervised.evaluate_every=25", "supervised.keep=last"]
FROZEN = ["model.tune=head", "model.length=8"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose body the others start from."""
    return train(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_SELMIX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plain.py").write_text(PLAIN)


def logits(run: str) -> torch.Tensor:
    """Of a run's model, for all digits."""
    with torch.inference_mode():
        found: torch.Tensor = ssl_selmix.load(run)(digits.load(digits.Config()).train)
    return found


def figures(run: str) -> list[dict[str, float]]:
    """The test figures of all stages."""
    stages = json.loads(Path(run, "results.json").read_text())["stages"]
    return [stage["test"] for stage in stages]


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp-6"])
def test_features_computed_once_give_the_run_on_images(head: str, base: Path) -> None:
    words = ["--dataset", "./plain.py", "--init", str(base), *FIFTY, *FROZEN, f"model.head={head}"]
    words += ["precision=fp32", "--then", "selmix", "selmix.steps=6", "selmix.evaluate_every=3"]
    train(Path("images"), *words, "features=none")
    train(Path("cached"), *words, "features=cached", "features.dtype=float32")
    train(Path("half"), *words)  # by itself, for the body stays as it is
    exact, cached, half = map(logits, ("images", "cached", "half"))
    assert float((exact - logits(str(base))).abs().max()) > 0.1  # they have learnt something
    assert float((cached - exact).abs().max() / exact.abs().max()) < 1e-5
    assert float((half - exact).abs().max() / exact.abs().max()) < 2e-3
    assert len(list(Path("cache").glob("features-*"))) == 2


def test_a_new_head_begins_alike_with_and_without_its_body() -> None:
    config = models.Config("cnn-4", tune="head", head="mlp-6")
    torch.manual_seed(3)
    whole = models.build(config, 3, 1)
    torch.manual_seed(3)
    top = models.backbones.without_body(config, 8, 3)
    state = whole.state_dict()
    assert {k: v.tolist() for k, v in top.state_dict().items()} == {
        k: v.tolist() for k, v in state.items() if not k.startswith("backbone.")
    }
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(whole.eval()(x), heads.parted(whole)(whole.embed(x)))


SPLIT = ["data.labeled.largest=6", "data.labeled.rho=2", "data.unlabeled.largest=6"]
SPLIT += ["data.unlabeled.rho=2", "data.validation=3", "--dataset", "image_folder"]


def test_what_comes_out_takes_image_files(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = noise_tree(tmp_path / "photos", {"train": 16, "test": 4})
    words = [
        *SPLIT,
        f"data.root={root}",
        "features.dir=kept",
        "features.weak=1",
        "features.strong=4",
    ]
    train(Path("first"), *words)
    assert not Path("kept").exists()
    chain = ["--init", "first", *FROZEN, "--then", "posthoc", "--then", "selmix", "selmix.steps=2"]
    train(Path("run"), *words, *chain)
    (folder,) = Path("kept").iterdir()
    assert {"train.npy", "train_weak.npy", "train_strong.npy", "test.npy"} <= {
        file.name for file in folder.iterdir()
    }
    capsys.readouterr()
    assert cli.main(["predict", "run", str(root / "test")]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    right = [Path(row[0]).parent.name == row[1] for row in rows]
    assert len(right) == 8
    assert sum(right) / 8 == pytest.approx(figures("run")[-1]["accuracy"])
    for command in (["export", "run", "--pt2", "m.pt2"], ["estimate", "run"], ["posthoc", "run"]):
        assert cli.main([*command, "features.dir=kept"] if command[0] != "export" else command) == 0
    assert cli.main(["--resume", "--out", "run", "--algo", "supervised", *chain[3:]]) == 2


def test_a_finished_run_is_repaired_and_goes_on(base: Path) -> None:
    words = ["--init", str(base), *FROZEN, *FIFTY]
    train(Path("run"), *words)
    before = Path("run/1-supervised/model.pt").read_bytes()
    Path("run/1-supervised/model.pt").write_bytes(b"damaged")
    train(Path("run"), *words, "--resume")
    assert Path("run/1-supervised/model.pt").read_bytes() == before
    second = ["--init", "run", *FROZEN, "--algo", "selmix", "selmix.steps=2", "precision=fp32"]
    assert cli.main([*second, "model.name=cnn-4", "--out", "second"]) == 0
    told = json.loads(Path("second/results.json").read_text())
    assert told["start"]["test"] == figures("run")[0]
    assert len(list(Path("cache").glob("features-*"))) == 1  # the body is the same


@pytest.mark.parametrize("head", ["linear", "cosine", "mlp-6"])
def test_a_state_dict_comes_with_the_program_that_loads_it(
    head: str, base: Path, tmp_path: Path
) -> None:
    train(Path("run"), "--init", str(base), *FROZEN[:1], f"model.head={head}", "precision=fp32")
    assert cli.main(["export", "run", "--state-dict", "m.pt"]) == 0
    names: dict[str, Any] = {}
    exec(json.loads(Path("m.pt.json").read_text())["load"], names)
    model = ssl_selmix.load("run")
    images = digits.load(digits.Config()).train[:9]
    with torch.inference_mode():
        found = names["net"]((images - model.mean) / model.std)
        torch.testing.assert_close(found, model(images))


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    small = ["model.name=cnn-4", "supervised.steps=2", "pictures=false"]
    assert cli.main(["--algo", "supervised", "--out", "refused", *small, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--init", str(base), "features=cached"]
    assert "model.tune=full changes it; set model.tune=head" in refused(start, capsys)
    assert "was trained before; set model.pretrained" in refused(
        ["features=cached", "model.tune=head"], capsys
    )
    frozen = [*start, "model.tune=head"]
    assert "cutmix cannot work on features: it cuts" in refused(
        [*frozen, "--then", "cutmix"], capsys
    )
    train(Path("run"), *frozen, "features.dir=kept", "features.weak=2")
    (folder,) = Path("kept").iterdir()
    more = refused([*frozen, f"features.dir={folder}"], capsys)
    assert "has features of other views" in more and "features.dir" in more
    other = ["model.name=cnn-5", "features.weak=2", "--dataset", "./plain.py"]
    train(Path("five"), *other)
    images = refused([*frozen, *other, "--init", "five", f"features.dir={folder}"], capsys)
    assert "has features of another network" in images


def test_by_itself_cutmix_gets_images(base: Path) -> None:
    words = ["--init", str(base), *FROZEN, "--then", "cutmix", "cutmix.steps=2"]
    train(Path("run"), *words)
    assert not Path("cache").exists()
    assert "mode: none" in (unbound(Path("run")) / "config.yaml").read_text()


def test_a_folder_made_alone_serves_runs_on_features_and_on_images(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = noise_tree(tmp_path / "photos", {"train": 16, "test": 4})
    train(Path("first"), *SPLIT, f"data.root={root}")
    make = ["features", "image_folder", f"data.root={root}", "data.cache=none", "--init", "first"]
    make += ["--model", "cnn-4", "features.weak=1", "features.strong=1", "precision=fp32"]
    assert cli.main([*make, "--out", "folder"]) == 0
    assert cli.main([*make, "--out", "folder"]) == 0  # is whole
    own = ["--dataset", "features", "data.root=folder", "model.name=features", "--seed", "1"]
    train(Path("own"), *own, *SPLIT[:-2])
    body = ["--init", "first", *FROZEN, "features.weak=1", "features.strong=1", "precision=fp32"]
    train(Path("body"), *SPLIT, f"data.root={root}", *body, "features.dir=folder")
    assert not Path("cache").exists()
    assert ssl_selmix.load("own").image_shape == (8,)
    capsys.readouterr()
    assert cli.main([*make, "features.weak=2", "--out", "folder"]) == 2
    assert "has features of other views" in capsys.readouterr().err
    assert cli.main([*make, "--out", str(root)]) == 2
    assert "is there and has no features; name another --out" in capsys.readouterr().err
