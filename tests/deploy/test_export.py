"""Exported files load elsewhere, take any batch size, and give the logits of the run's model."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssl_selmix
from ssl_selmix import cli
from ssl_selmix.deploy import export
from ssl_selmix.runs import formats
from ssl_selmix.runs.formats import Deployed, Found
from tests.helpers.runs import photographs, train, train_on

NETWORKS = ("cnn-4", "wrn-10-1", "torchvision:shufflenet_v2_x0_5", "timm:lcnet_050")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run", "precision=fp32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[[str], Path]:
    """A run of this network on the photographs; tests only read it."""
    made: dict[str, Path] = {}

    def make(network: str) -> Path:
        if network.startswith("timm"):
            pytest.importorskip("timm")
        if network not in made:
            out = tmp_path_factory.mktemp("runs") / "run"
            words = ("data.size=32", "supervised.steps=2", "precision=fp32")
            made[network] = train_on(root, out, f"model.name={network}", *words)
        return made[network]

    return make


def batches(run: Path, normalise: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Images as an exported model takes them, and the logits of the run's model."""
    model = ssl_selmix.load(run)
    generator = torch.Generator().manual_seed(3)
    found = []
    for size in (1, 7, 4):
        pixels = torch.randint(256, (size, *model.image_shape), generator=generator).float()
        with torch.inference_mode():
            logits = model(pixels)
        found.append((pixels if normalise else (pixels - model.mean) / model.std, logits))
    return found


def assert_same(loaded: Callable[[Tensor], Tensor], run: Path, normalise: bool = False) -> None:
    for images, expected in batches(run, normalise):
        with torch.inference_mode():
            torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)


def about(path: Path) -> dict[str, Any]:
    found = json.loads(Path(f"{path}.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_state_dict_loads_as_its_json_says(
    network: str,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, path = run_of(network), tmp_path / "w.pt"
    (written,) = export.export(run, {"state_dict": path}).values()
    library = network.partition(":")[0] if ":" in network else "ssl_selmix"
    code = about(path)["load"]
    assert re.search(rf"^(from|import) {library}\b", code, re.M) and written.deviation <= 1e-5
    monkeypatch.chdir(tmp_path)
    fresh: dict[str, Any] = {}
    exec(code, fresh)
    assert not fresh["net"].training
    assert_same(fresh["net"], run)


@pytest.mark.slow
def test_the_code_beside_a_state_dict_is_a_program_of_its_own(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "it's mine.pt"
    export.export(digits, {"state_dict": path})
    images, expected = batches(digits)[1]
    torch.save(images, tmp_path / "images.pt")
    used = "torch.save(net(torch.load('images.pt')), 'logits.pt')"
    command = [sys.executable, "-c", about(path)["load"] + used]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_torch_export(network: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run, normalise = run_of(network), network != "cnn-4"
    export.export(run, {"pt2": tmp_path / "m.pt2"}, normalise=normalise)
    assert_same(torch.export.load(tmp_path / "m.pt2").module(), run, normalise)


@pytest.mark.parametrize("words", [[], ["m.ts"]])
def test_torchscript_is_answered_with_what_to_use(
    words: list[str], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(digits), "--torchscript", *words])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1
    assert "--torchscript is no format any more" in err and "use --pt2 FILE" in err
    with pytest.raises(ValueError, match=r"unknown format 'torchscript'; .*pt2"):
        export.export(digits, {"torchscript": Path("m.ts")})


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx(network: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'ssl_selmix[onnx]'")
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator  # type: ignore[import-not-found,unused-ignore]

    run, normalise = run_of(network), network != "cnn-4"
    path = tmp_path / "m.onnx"
    export.export(run, {"onnx": path}, normalise=normalise)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    evaluator = ReferenceEvaluator(model)
    name = about(path)["input_name"]
    assert_same(
        lambda x: torch.from_numpy(evaluator.run(None, {name: x.numpy()})[0]), run, normalise
    )


def test_without_onnxruntime_the_evaluator_of_onnx_checks(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'ssl_selmix[onnx]'")
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    export.export(digits, {"onnx": tmp_path / "m.onnx"})
    assert about(tmp_path / "m.onnx")["checked_with"].startswith("onnx ")


def test_without_onnx_the_extra_is_named(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert cli.main(["export", str(digits), "--onnx", str(tmp_path / "m.onnx")]) == 2
    err = capsys.readouterr().err
    assert err == "error: --onnx needs the package onnx; pip install 'ssl_selmix[onnx]'\n"


def test_the_command_tells_what_it_wrote(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--state-dict", str(tmp_path / "w.pt"), "--pt2", str(tmp_path / "m.pt2")]
    assert cli.main(["export", str(digits), *words]) == 0
    out = capsys.readouterr().out
    for name in ("w.pt: state_dict", "m.pt2: pt2"):
        assert f"{name}, float32 N×1×8×8 -> logits, cnn-4" in out
    assert out.count("8 random images and 8 of validation, batches of 1 and 7") == 2
    found = about(tmp_path / "m.pt2")
    assert found["class_names"] == list("0123456789")
    assert found["mean"] == [77.9] and found["std"] == [95.9]
    assert found["input"]["shape"] == ["N", 1, 8, 8]
    assert found["input"]["size"] == "resized to 8×8 pixels, bilinear"
    assert found["check"]["max_deviation"] <= 1e-5
    names = ["m.pt2", "m.pt2.json", "w.pt", "w.pt.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def wrong(change: Callable[[Tensor], Tensor]) -> formats.Writer:
    """A writer whose file holds another model."""

    def write(model: Deployed, path: Path, inputs: Sequence[Tensor]) -> Found:
        path.write_bytes(b"a model")
        return (lambda images: change(model(images))), {}

    return write


def only_seven(logits: Tensor) -> Tensor:
    if len(logits) != 7:
        raise RuntimeError("expected 7 images")
    return logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits * (1 + 1e-4), "deviates by 1.0e-04 of its largest logit"),
        (lambda logits: logits * torch.nan, "deviates by inf"),
        (lambda logits: logits[:, :1], "deviates by inf"),
        (only_seven, "does not take a batch of 1 (expected 7 images)"),
    ],
)
def test_a_file_with_other_logits_is_not_kept(
    change: Callable[[Tensor], Tensor],
    message: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(formats.WRITERS, "state_dict", wrong(change))
    words = ["export", str(digits), "--state-dict", str(tmp_path / "m.pt")]
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_of_ones_own(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.WRITERS, "state_dict", wrong(lambda x: x * (1 + 1e-4)))
    words = ["export", str(digits), "--state-dict", str(tmp_path / "m.pt"), "--tolerance", "1e-3"]
    assert cli.main(words) == 0
    check = about(tmp_path / "m.pt")["check"]
    assert check["max_deviation"] == pytest.approx(1e-4, rel=0.05) and check["tolerance"] == 1e-3


def test_files_are_overwritten_if_asked(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pt"
    for taken in (path, Path(f"{path}.json")):
        taken.write_text("mine")
        assert cli.main(["export", str(digits), "--state-dict", str(path)]) == 2
        assert f"{taken} exists and is not overwritten" in capsys.readouterr().err
        assert taken.read_text() == "mine"
        assert cli.main(["export", str(digits), "--state-dict", str(path), "--force"]) == 0
        assert "classifier.weight" in torch.load(path, weights_only=True)
        assert about(path)["network"] == "cnn-4"
        path.unlink()
        Path(f"{path}.json").unlink()


@pytest.mark.parametrize("name", ["config.yaml", "1-supervised/model.pt"])
@pytest.mark.parametrize(
    "words", [["export", "RUN", "--state-dict"], ["predict", "RUN", ".", "--out"]]
)
def test_no_force_writes_over_a_run(
    digits: Path, name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (digits / name).read_bytes()
    command = [str(digits) if word == "RUN" else word for word in words]
    assert cli.main([*command, str(digits / name), "--force"]) == 2
    assert f"belongs to the run {digits.resolve()}" in capsys.readouterr().err
    assert (digits / name).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no format; name a file for one"),
        (
            ["--state-dict", "w.pt", "--normalise"],
            "a state dict has no place for the normalisation",
        ),
        (["--state-dict", "w.pt2", "--pt2", "w.pt2"], "every format needs a file of its own"),
        (["--pt2", "w.pt2", "--state-dict", "w.pt2.json"], "and FILE.json beside it"),
        (["--state-dict", "..", "--force"], ".. is a folder; name a file"),
        (["--state-dict", "no/m.pt"], "no folder no; create it"),
        (["--pt2", "m.pt"], "takes names in .pt2, not m.pt"),
        (["--state-dict", "m.pt", "--tolerance", "0"], "tolerance must be > 0, not 0.0"),
        (["--state-dict", "m.pt", "--tolerance", "nan"], "tolerance must be > 0, not nan"),
        (["--state-dict", "m.pt", "model.name=x"], "model.name cannot be set here"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str],
    message: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(digits), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_names_no_file(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--state-dict names no file but"):
        export.export(digits, {"state_dict": Path("")})
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(digits), "--state-dict", ""])
    assert stop.value.code == 2
    assert "--state-dict: an empty path names no file" in capsys.readouterr().err


def test_without_the_runs_images_random_ones_must_do(
    root: Path,
    tmp_path: Path,
    run_of: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, moved = tmp_path / "photographs", tmp_path / "moved"
    shutil.copytree(root, here)
    run = train_on(here, tmp_path / "run", "data.size=16", "precision=bf16")
    here.rename(moved)
    words = ["export", str(run), "--pt2", str(tmp_path / "m.pt2"), "--force"]
    capsys.readouterr()
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "checked on random images alone" in out and ", 8 random images, batches" in out
    assert "the run computed in bf16; it is exported and checked in fp32" in out
    assert cli.main([*words, f"data.root={moved}"]) == 0
    assert "8 random images and 8 of validation" in capsys.readouterr().out
    assert about(tmp_path / "m.pt2")["trained_in"] == "bf16"
    assert_same(torch.export.load(tmp_path / "m.pt2").module(), run)
    assert cli.main([*words, f"data.root={here}"]) == 2  # asked for, and not there
    assert "no folder" in capsys.readouterr().err


def scaled(net: nn.Module) -> nn.Module:
    net.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    return net


def with_another_tensor(net: nn.Module) -> nn.Module:
    net.register_buffer("another", torch.zeros(1))
    return net


@pytest.mark.parametrize("change", [scaled, with_another_tensor])
def test_a_network_that_its_library_builds_otherwise_keeps_our_names(
    change: Callable[[nn.Module], nn.Module],
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = formats._theirs

    def built_otherwise(model: Deployed) -> tuple[nn.Module, str, str]:
        found = theirs(model)
        assert found is not None
        return (change(found[0]), *found[1:])

    monkeypatch.setattr(formats, "_theirs", built_otherwise)
    model = Deployed(ssl_selmix.load(run_of(NETWORKS[2])), NETWORKS[2], normalise=False)
    inputs = [torch.randn(2, 3, 32, 32)]
    loaded, said = formats.WRITERS["state_dict"](model, tmp_path / "w.pt", inputs)
    made = f"net = models.build(models.Config({NETWORKS[2]!r}), 3, 3)"
    assert f"from ssl_selmix import models\n\n{made}\n" in said["load"]
    assert "classifier.weight" in torch.load(tmp_path / "w.pt", weights_only=True)
    assert formats.deviation(loaded, model, inputs) == 0


@pytest.mark.parametrize(("option", "name"), [("--state-dict", "m.pt"), ("--pt2", "m.pt2")])
def test_a_full_disk_leaves_nothing_and_is_told(
    option: str,
    name: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, content: memoryview) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cli.main(["export", str(digits), option, str(tmp_path / name)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: No space left on device ({tmp_path / name}); free some space")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_only_now_leaves_neither_file(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(export, "write_atomically", full)
    assert cli.main(["export", str(digits), "--state-dict", str(tmp_path / "m.pt")]) == 2
    assert list(tmp_path.iterdir()) == []
