"""Runs that start from pre-trained weights: what is recorded, what resumes, what is handed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.algorithm import Task
from ssl_selmix.runs import summary
from ssl_selmix.runs.folder import RunFolder
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.runs.train import build
from ssl_selmix.training import checkpoint

timm = pytest.importorskip("timm")
SETTINGS = [
    *("model.size=32", "threads=1", "pictures=false", "data.validation=3", "data.test=3"),
    "features=none",  # images pass the body at every step
    *("data.labeled.largest=6", "data.labeled.rho=2", "data.unlabeled.largest=8"),
    *("fixmatch.steps=2", "fixmatch.evaluate_every=2", "fixmatch.batch=4"),
    *("selmix.steps=2", "selmix.evaluate_every=2", "selmix.batch=4"),
]
RESNET, VIT = "timm:test_resnet", "timm:test_vit"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two networks as timm's users save them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    for name in ("test_resnet", "test_vit"):
        torch.save(timm.create_model(name, num_classes=7).state_dict(), folder / f"{name}.pth")
    return folder


def words(out: Path, file: Path, name: str, *more: str) -> list[str]:
    start = [f"model.name={name}", f"model.pretrained={file}"]
    return ["--algo", "fixmatch", "--then", "selmix", "--out", str(out), *SETTINGS, *start, *more]


def refusal(*command: str) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        cli.main([*command, "--debug"])
    return str(caught.value)


def body(file: Path) -> dict[str, Tensor]:
    found = checkpoint.load(file)["teacher"]
    return {k.removeprefix("net.backbone."): v for k, v in found.items() if "backbone" in k}


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages on a frozen body, whose file is gone since; tests only read it."""
    place = tmp_path_factory.mktemp("pretrained")
    shutil.copy(files / "test_resnet.pth", place)
    run = place / "run"
    command = words(run, place / "test_resnet.pth", RESNET, "model.tune=head")
    assert cli.main(command) == 0
    (place / "test_resnet.pth").unlink()
    return run


def test_a_frozen_body_is_that_of_the_file_after_every_stage(finished: Path, files: Path) -> None:
    saved = torch.load(files / "test_resnet.pth", weights_only=True)
    for stage in ("1-fixmatch", "2-selmix"):
        found = body(finished / stage / "model.pt")
        assert found.keys() == {key for key in saved if not key.startswith("fc.")}
        assert all(torch.equal(value, saved[key]) for key, value in found.items())


def test_a_run_records_weights_and_what_its_images_are(finished: Path) -> None:
    run = RunFolder(finished)
    told = run.results.pretrained
    assert told is not None and told.licence == "apache-2.0" and told.name == RESNET
    assert len(told.sha256) == 64 and run.config["pretrained"] == {"sha256": told.sha256}
    assert told.input == "32 px, bilinear, mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5"
    assert run.settings["model.mean"] == [0.5] * 3 and run.settings["model.size"] == 32
    how = run.manifest["preprocessing"]
    assert how["enlarged"] == {"size": [32, 32], "interpolation": "bilinear"}
    assert how["size"] == [8, 8] and how["mean"] == [127.5] and how["std"] == [127.5]
    # What the split is a split of does not depend on who looks at it.
    assert run.manifest["mean"] != how["mean"] and run.manifest["image_shape"] == [1, 8, 8]


def test_a_run_is_loaded_and_exported_without_its_file(finished: Path, tmp_path: Path) -> None:
    model = ssl_selmix.load(finished)
    x = torch.randint(256, (3, 1, 8, 8)).float()
    expected = model.net(x / 127.5 - 1)
    assert torch.allclose(model(x), expected, atol=1e-5) and model.net.to_size is not None
    out = tmp_path / "m.pt"
    assert cli.main(["export", str(finished), "--state-dict", str(out)]) == 0
    about = json.loads(out.with_name("m.pt.json").read_text())
    assert about["mean"] == [127.5] and about["check"]["max_deviation"] < 1e-6
    assert str(finished.parent) not in about["load"]  # a place on this machine


def test_a_run_resumes_without_its_file(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    before = checkpoint.digest(checkpoint.load(again / "2-selmix" / "model.pt"))
    shutil.rmtree(again / "2-selmix")
    for name in ("results.json", "1-fixmatch/model.pt"):
        (again / name).unlink()
    command = words(again, tmp_path / "moved.pth", RESNET, "model.tune=head", "--resume")
    assert cli.main(command) == 0
    assert checkpoint.digest(checkpoint.load(again / "2-selmix" / "model.pt")) == before
    shutil.rmtree(again / "1-fixmatch")
    shutil.rmtree(again / "2-selmix")
    (again / "results.json").unlink()
    assert "moved.pth is no file; get model.safetensors of https" in refusal(*command)


def test_other_weights_than_a_run_began_with_are_refused(
    finished: Path, files: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    for name in ("1-fixmatch", "2-selmix"):
        shutil.rmtree(again / name)
    (again / "results.json").unlink()
    saved = torch.load(files / "test_resnet.pth", weights_only=True)
    torch.save({k: v + 1 for k, v in saved.items()}, tmp_path / "other.pth")
    command = words(again, tmp_path / "other.pth", RESNET, "model.tune=head", "--resume")
    assert "has other weights (SHA-256 " in refusal(*command)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.size=6"], "test_vit.pth has other weights than timm:test_vit of 6 px"),
        (["model.size=40"], "cannot take images of 40×40 pixels ("),
        (["model.name=timm:test_resnet"], "has other weights than timm:test_resnet"),
        (["model.pretrained=gone.pth"], "model.pretrained=gone.pth is no file"),
        (["model.mean=0.5"], "model.mean must have a value for red, green and blue"),
    ],
)
def test_what_does_not_fit_leaves_no_folder(
    more: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert message in refusal(*words(out, files / "test_vit.pth", VIT, *more))
    assert not (out / "config.yaml").exists()


def test_images_that_are_larger_than_the_network_takes_are_refused(
    files: Path, tmp_path: Path
) -> None:
    command = words(tmp_path / "run", files / "test_resnet.pth", RESNET, "model.size=6")
    assert "the images have 8×8 pixels and timm:test_resnet takes 6; set da" in refusal(*command)


@pytest.mark.slow  # peft takes seconds to import
def test_low_rank_updates_are_handed_on_merged_and_resume(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out, file = tmp_path / "run", files / "test_vit.pth"
    command = words(out, file, VIT, "model.tune=lora", "model.rank=2", "fixmatch.keep=last")
    assert cli.main(command) == 0
    saved = torch.load(file, weights_only=True)
    found = body(out / "1-fixmatch" / "model.pt")
    assert found.keys() == {key for key in saved if not key.startswith("head.")}
    changed = {k for k, v in found.items() if k in saved and not torch.equal(v, saved[k])}
    assert "blocks.0.attn.qkv.weight" in changed
    assert not {"blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"} & changed
    before = checkpoint.digest(checkpoint.load(out / "2-selmix" / "model.pt"))
    shutil.rmtree(out / "2-selmix")
    (out / "results.json").unlink()
    assert cli.main([*command, "--resume"]) == 0
    assert checkpoint.digest(checkpoint.load(out / "2-selmix" / "model.pt")) == before
    assert ssl_selmix.load(out)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_restarting_methods_begin_anew_from_the_pre_trained_body(
    files: Path, tmp_path: Path
) -> None:
    """CReST trains several generations, each from the start."""
    saved = torch.load(files / "test_resnet.pth", weights_only=True)
    for tune in ("full", "head"):
        start = [f"model.name={RESNET}", f"model.pretrained={files / 'test_resnet.pth'}"]
        settings = [*SETTINGS[:8], *start, f"model.tune={tune}"]
        plan = Plan(Request(["crest"], out=tmp_path / tune, settings=settings))
        task = Task(tuple("0123456789"), torch.ones(10).double(), 1, 1)
        net = build(plan, 0, task, 1, None, trained=True).net
        head = net.classifier.weight.clone()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.zero_()
        net.begin_anew()
        assert all(torch.equal(v, saved[k]) for k, v in net.backbone.state_dict().items())
        assert net.classifier.weight.any() and not torch.equal(net.classifier.weight, head)


def test_configurations_of_older_runs_stay_as_they_were(tmp_path: Path) -> None:
    plan = Plan(Request(["supervised"], out=tmp_path / "run", settings=["model.name=cnn-4"]))
    identity: dict[str, Any] = plan.identity()
    assert identity["model"] == {"name": "cnn-4", "bn_momentum": 0.1}
    assert "optimizer" not in identity["supervised"] and "pretrained" not in identity
    other = ["model.name=cnn-4", "model.tune=head", "supervised.optimizer=adamw"]
    changed = Plan(Request(["supervised"], out=tmp_path / "run", settings=other)).identity()
    assert changed["model"]["tune"] == "head" and changed["supervised"]["optimizer"] == "adamw"


def test_the_summary_names_the_weights(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((finished / "results.json").read_text())
    summary.show(content, content["class_names"], Console(width=200))
    said = capsys.readouterr().out
    assert "weights: timm:test_resnet from " in said and "licence apache-2.0; 32 px" in said


def test_init_from_a_run_needs_its_network_to_see_images_alike(
    finished: Path, tmp_path: Path
) -> None:
    own = [word for word in SETTINGS[1:] if not word.startswith("fixmatch")]
    command = ["--algo", "selmix", "--init", str(finished), *own]
    command += ["--out", str(tmp_path / "run"), f"model.name={RESNET}"]
    said = refusal(*command)
    assert "sees images in another way than this run's does; repeat its settings: model.pre" in said
    assert said.endswith("model.size=32 model.tune=head")
    # Its weights are those of --init, so that those of the library are not asked for.
    again = [*command, "model.pretrained=true", "model.size=32", "model.tune=head"]
    assert cli.main(again) == 0
    assert "pretrained" not in RunFolder(tmp_path / "run").config
    with_its_body = body(finished / "2-selmix" / "model.pt")
    found = body(tmp_path / "run" / "1-selmix" / "model.pt")
    assert all(torch.equal(value, with_its_body[key]) for key, value in found.items())
