"""Where a fine-tuned model goes from here: a file of tensors, a comparison, another run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ssl_selmix
from ssl_selmix import cli, models
from ssl_selmix.compare import methods, reading
from ssl_selmix.deploy import export, scores
from ssl_selmix.finetuning import known as known_
from ssl_selmix.finetuning.surgery import split_classifier
from ssl_selmix.runs.folder import RunError, RunFolder
from ssl_selmix.training import checkpoint
from tests.finetuning.test_given import images, network, run
from tests.helpers.images import noise, write
from tests.helpers.runs import SMALL


def same(model: nn.Module, file: Path) -> bool:
    tensors = torch.load(file, weights_only=True)
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[k], tensors[k]) for k in state)


def test_a_result_is_saved_and_loaded(tmp_path: Path) -> None:
    result = run(steps=6, lr=0.5)
    assert same(result.model, result.save(tmp_path / "tuned.pt"))
    fresh = network()
    fresh.load_state_dict(torch.load(tmp_path / "tuned.pt", weights_only=True))
    x = images(9)[0]
    assert torch.equal(fresh.eval()(x), result.model.eval()(x))
    with pytest.raises(ValueError, match=r"tuned\.pt exists and is not overwritten"):
        result.save(tmp_path / "tuned.pt")


def test_folders_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [run(steps=6, lr=lr, out=tmp_path / str(lr)) for lr in (0.5, 0.05)]
    for result, lr in zip(results, (0.5, 0.05), strict=True):
        assert same(result.model, tmp_path / str(lr) / "model.pt")
        found = RunFolder(tmp_path / str(lr)).results
        assert found.start is not None and found.start.test.plain() == result.before
        assert found.stages[0].test.plain() == result.after
    runs, notes = reading.read([tmp_path])
    groups, _ = methods.group(reading.with_parents(runs)[0])
    assert len(runs) == 2 and len(groups) == 1 and not notes
    assert [row.name.partition(" [")[0] for row in groups[0].rows].count("given weights") == 1
    assert cli.main(["compare", str(tmp_path)]) == 0
    assert "given weights + selmix" in capsys.readouterr().out


def test_a_folder_has_the_offsets_before_and_after_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(steps=6, lr=0.5, posthoc=True, wise_ft=True, out=tmp_path / "o")
    found = RunFolder(tmp_path / "o").results
    names = ["selmix", "wise_ft", "posthoc"]
    assert [stage.algorithm for stage in found.stages] == names
    reached = [stage.test.plain() for stage in found.stages]
    assert reached == [f for name, f in result.rows.items() if name.startswith("SelMix")]
    handed_on = [stage.handed_on_sha256 for stage in found.stages]
    begun = [stage.started_from.sha256 for stage in found.stages if stage.started_from]
    assert found.start is not None and begun == [found.start.handed_on_sha256, *handed_on[:-1]]
    beside = RunFolder(tmp_path / "o" / "posthoc").results
    assert beside.stages[0].test.plain() == result.rows["posthoc"]
    assert cli.main(["compare", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for chain in (["posthoc"], names[:1], names[:2], names):
        assert f" {' + '.join(['given weights', *chain])} " in told, chain


def test_what_needs_a_network_by_name_says_so(tmp_path: Path) -> None:
    run(out=tmp_path / "tuned")
    with pytest.raises(RunError, match=r"written by finetune.*load_state_dict.*--init .*model\.pt"):
        ssl_selmix.load(tmp_path / "tuned")


HOW = {"mean": [0.5], "std": [0.25]}


def known(out: Path, **options: Any) -> Any:
    """A folder of a network that has a name, on images of digits' size."""
    torch.manual_seed(0)
    model = models.build(models.Config("cnn-4"), 3, 1)
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
    given: dict[str, Any] = {"labeled": (x[:30], y[:30]), "validation": (x[30:], y[30:])}
    given |= {"steps": 2, "batch": 4, "lr": 0.5, "progress": False, "class_names": list("abc")}
    return ssl_selmix.finetune(model, out=out, **given | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("known") / "ft"
    return out, known(out, preprocessing=HOW, keep="last")


def test_a_folder_opens_like_a_run(folder: tuple[Path, Any]) -> None:
    out, result = folder
    pixels = torch.randint(256, (9, 1, 8, 8)).float()
    expected = result.model.eval()((pixels / 255 - 0.5) / 0.25)
    model = ssl_selmix.load(out)
    assert model.class_names == ("a", "b", "c") and model.image_shape == (1, 8, 8)
    assert torch.allclose(model(pixels), expected, atol=1e-5)
    probs = ssl_selmix.predict(out, pixels)
    assert torch.allclose(probs, expected.double().softmax(1), atol=1e-5)
    run = RunFolder(out)
    run.check()
    assert run.network == "cnn-4" and run.stage == "stage 1 of 1, selmix"
    assert run.results.stages[0].handed_on_sha256 == checkpoint.digest(run.weights())


def test_the_command_line_opens_it(
    folder: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = folder
    write(tmp_path / "x.png", noise(8, 8))
    assert cli.main(["predict", str(out), str(tmp_path / "x.png")]) == 0
    (row,) = capsys.readouterr().out.splitlines()[1:]
    pixels = torch.from_numpy(noise(8, 8)).float().view(1, 1, 8, 8)
    probs = result.model((pixels / 255 - 0.5) / 0.25).softmax(1)
    assert row.split(",")[1] == "abc"[int(probs.argmax())]
    assert cli.main(["export", str(out), "--state-dict", str(tmp_path / "m.pt")]) == 0
    about = json.loads((tmp_path / "m.pt.json").read_text())
    assert about["network"] == "cnn-4" and about["mean"] == [127.5]
    assert cli.main(["compare", str(out)]) == 0
    capsys.readouterr()
    for command in ("posthoc", "advise"):
        assert cli.main([command, str(out)]) == 0
        told = capsys.readouterr().out
        assert str(out) in told and "images left out" in told
    for words in (["estimate"], ["posthoc", "data.root=x"]):
        assert cli.main([words[0], str(out), *words[1:]]) == 2
        assert "was written by finetune" in capsys.readouterr().err


def test_posthoc_of_a_folder_judges_its_model(folder: tuple[Path, Any]) -> None:
    out, result = folder
    seen = scores.of_run(out)
    assert seen.class_names == ("a", "b", "c")
    hits = (seen.scores.argmax(1) == seen.labels).double()
    recalls = [float(hits[seen.labels == k].mean()) for k in range(3)]
    assert recalls == pytest.approx(result.after["per_class_recall"])  # without test images


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "validation.npz", "model"])
def test_a_changed_file_is_named(folder: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    out = shutil.copytree(folder[0], tmp_path / "ft")
    file = out / ("1-selmix/model.pt" if name == "model" else name)
    old = {"manifest.json": b'"unlabeled": 0', "config.yaml": b"seed: 0"}.get(name)
    content = file.read_bytes()
    middle = len(content) // 2
    new = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    new = new if old is None else content.replace(old, old[:-1] + b"1")
    assert new != content
    file.write_bytes(new)
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
        scores.of_run(out) if name == "validation.npz" else ssl_selmix.load(out)


def test_without_preprocessing_it_takes_what_the_model_took(tmp_path: Path) -> None:
    result = known(tmp_path / "ft")
    x = torch.rand(5, 1, 8, 8)
    expected = result.model.eval()(x)
    assert torch.allclose(ssl_selmix.load(tmp_path / "ft")(x), expected, atol=1e-6)
    probs = ssl_selmix.predict(tmp_path / "ft", x)
    assert torch.allclose(probs, expected.double().softmax(1), atol=1e-6)
    write(tmp_path / "x.png", noise(8, 8))
    with pytest.raises(ValueError, match=r"not told how files become images.*preprocessing="):
        ssl_selmix.predict(tmp_path / "ft", tmp_path / "x.png")
    with pytest.raises(ValueError, match="--normalise needs mean and std"):
        export.export(tmp_path / "ft", {"pt2": tmp_path / "m.pt2"}, normalise=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (7, "preprocessing must be"),
        ({"mean": [0.5]}, "preprocessing must be"),
        (HOW | {"sdt": 1}, "unknown key of preprocessing 'sdt'; did you mean std"),
        (HOW | {"mean": 0.5}, "mean must be 1 number"),
        (HOW | {"mean": [0.5, 0.5]}, "mean must be 1 number"),
        (HOW | {"std": [math.nan]}, "std must be 1 number"),
        (HOW | {"std": [0]}, "std must be > 0"),
        (HOW | {"mean": [127.5]}, "divide it by 255"),
        (HOW | {"crop": "yes"}, "crop must be True or False"),
    ],
)
def test_preprocessing_that_cannot_be(tmp_path: Path, how: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        known(tmp_path / "ft", preprocessing=how)
    assert not (tmp_path / "ft").exists()


def test_networks_of_libraries_are_recognised() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5()
    net, x = split_classifier(model), torch.randn(2, 3, 32, 32)
    assert known_.name_of(model, net, x) == "torchvision:shufflenet_v2_x0_5"
    model.conv5 = nn.Sequential(*model.conv5, nn.Softplus())  # the caller changed it
    assert known_.name_of(model, split_classifier(model), x) is None
    assert known_.name_of(network(), split_classifier(network()), x) is None


def test_a_result_is_exported_and_checked(tmp_path: Path) -> None:
    result = run()
    file = result.export(tmp_path / "m.pt2")
    x = images(9)[0]
    found = torch.export.load(file).module()(x)
    assert torch.allclose(found, result.model.eval()(x), atol=1e-5)
    mistakes = {"m.pt2": "is not overwritten", "m.pth": r"must end in \.onnx or \.pt2"}
    for name, message in (mistakes | {"none/m.pt2": "no folder"}).items():
        with pytest.raises(ValueError, match=message):
            result.export(tmp_path / name)


def test_a_run_starts_from_a_folder_of_finetune(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.build(models.Config("cnn-4"), 10, 1)
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    result = ssl_selmix.finetune(
        model, labeled=(x, y), validation=(x, y), steps=2, out=tmp_path / "ft", progress=False
    )
    words = ["--algo", "supervised", *SMALL, "--init", str(tmp_path / "ft" / "model.pt")]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    start = RunFolder(tmp_path / "run").results.start
    assert start is not None and result.model.state_dict().keys() == model.state_dict().keys()
