"""Weights from elsewhere, and finished runs as models."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_selmix
from ssl_selmix import cli, models
from ssl_selmix.models import weights
from ssl_selmix.runs import load


def net(name: str = "cnn-4", num_classes: int = 10, channels: int = 1) -> models.Classifier:
    torch.manual_seed(1)
    return models.build(models.Config(name), num_classes, channels)


def same(a: models.Classifier, b: models.Classifier) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def fresh(name: str = "cnn-4", num_classes: int = 10, channels: int = 1) -> models.Classifier:
    torch.manual_seed(2)
    return models.build(models.Config(name), num_classes, channels)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_a_plain_state_dict_in_its_usual_wrappings(
    tmp_path: Path, prefix: str, nest: str | None
) -> None:
    content: dict[str, object] = {f"{prefix}{k}": v for k, v in net().state_dict().items()}
    torch.save({nest: content, "epoch": 3} if nest else content, tmp_path / "w.pt")
    ours = fresh()
    assert weights.load_into(ours, load.read(tmp_path / "w.pt")) == []
    assert same(ours, net())


def test_torchvision_weights_with_their_head(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = fresh("torchvision:resnet18", 3, 3)
    assert weights.load_into(ours, load.read(tmp_path / "resnet.pth")) == []
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_timm_weights_with_their_head(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = fresh("timm:resnet10t", 3, 3)
    assert weights.load_into(ours, load.read(tmp_path / "timm.pth")) == []
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_what_does_not_fit_is_named() -> None:
    tensors = net(num_classes=7).state_dict() | {"extra": torch.zeros(2)}
    notes = weights.load_into(fresh(), tensors)
    assert "classifier.weight" in notes[0] and "left as initialised" in notes[0]
    assert "extra (2,)" in notes[1] and "classifier.weight (7, 8)" in notes[1]
    with pytest.raises(ValueError, match=r"none of the tensors fits.*model\.name"):
        weights.load_into(fresh(), {"a": torch.zeros(1)})


def test_what_training_scripts_save_beside_weights(tmp_path: Path) -> None:
    """timm's has its arguments, USB's a number of NumPy's, which only an unsafe reader takes."""
    state = models.build(models.Config("cnn-4"), 10, 1).state_dict()
    timm = {"epoch": 3, "state_dict": state, "args": argparse.Namespace(model="x", lr=0.1)}
    torch.save(timm, tmp_path / "timm.pth.tar")
    assert load.read(tmp_path / "timm.pth.tar").keys() == state.keys()
    torch.save({"model": state, "best": np.float64(0.5)}, tmp_path / "usb.pth")
    with pytest.raises(
        ValueError, match=r"it holds numpy\S+, which is no tensor and might be code"
    ):
        load.read(tmp_path / "usb.pth")
    torch.save({"model": state, "f": print}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="it holds print, which is no tensor") as caught:
        load.read(tmp_path / "code.pth")
    assert "\x1b" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights at"):
        load.read(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt cannot be read"):
        load.read(tmp_path / "text.pt")
    torch.save({"a": 1}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="holds no tensors"):
        load.read(tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no finished stage"):
        load.read(tmp_path)


SMALL = [
    "model.name=cnn-4",
    *("supervised.steps=6", "supervised.evaluate_every=3", "supervised.batch=8"),
    *("selmix.steps=4", "selmix.evaluate_every=2", "selmix.batch=8"),
]


def test_a_run_is_loaded_predicts_and_starts_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--algo", "supervised", "--then", "selmix", "--out", str(run), *SMALL]
    assert cli.main(words) == 0
    model = ssl_selmix.load(run)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert model.predict(images).sum(1).tolist() == pytest.approx([1] * 5)
    assert model.class_names == tuple("0123456789")
    with pytest.raises(ValueError, match="images must be N×1×8×8"):
        model.predict(images[:, :, :4])
    with pytest.raises(ValueError, match="is no run"):
        ssl_selmix.load(tmp_path)

    again = ["--algo", "selmix", "--init", str(run), "--out", str(tmp_path / "b"), *SMALL[:1]]
    assert cli.main([*again, *SMALL[-3:]]) == 0
    assert "start" in capsys.readouterr().out
    assert ssl_selmix.load(tmp_path / "b").net.classifier.out_features == 10


def test_a_start_is_measured_as_the_stage_that_made_it(tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["precision=bf16", SMALL[0]]
    first = ["--algo", "supervised", "--out", str(run), *words, *SMALL[1:4]]
    assert cli.main([*first, "supervised.lr=0.3"]) == 0
    again = ["--algo", "selmix", "--init", str(run), "--out", str(tmp_path / "b"), *words]
    assert cli.main([*again, *SMALL[-3:]]) == 0
    made = json.loads((run / "results.json").read_text())["stages"][0]
    start = json.loads((tmp_path / "b/results.json").read_text())["start"]
    for part in ("validation", "test"):  # calibration tells formats apart where recalls do not
        assert start[part] == made[part]


def test_weights_that_were_trained_on_what_judges_them_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["--algo", "supervised", "--out", str(run), "seed=1", *SMALL[:4]]) == 0
    for place in (run, run / "1-supervised" / "best.pt"):
        again = ["--algo", "selmix", "--init", str(place), "--out", str(tmp_path / "b")]
        assert cli.main([*again, SMALL[0], *SMALL[-3:]]) == 2
        told = capsys.readouterr().err
        assert "took part in the training" in told and "its seed is 1" in told
    manifest = f"data.manifest={run / 'manifest.json'}"  # the remedy that it names
    assert manifest in told
    again += ["--resume", SMALL[0], *SMALL[-3:], manifest, "precision=bf16"]
    assert cli.main(again) == 0
    assert "computed in fp32, this run in bf16" in capsys.readouterr().out


def test_weights_of_another_network_of_the_same_shapes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = tmp_path / "run", ["--out", str(tmp_path / "b"), *SMALL[-3:]]
    first = ["--algo", "supervised", "--out", str(run), "model.name=wrn-10-1", "precision=fp32"]
    assert cli.main([*first, *SMALL[1:4]]) == 0
    again = ["--algo", "selmix", "--init", str(run), *words, "model.name=wrn-10-1-s2"]
    assert cli.main(again) == 2
    assert "set model.name=wrn-10-1" in capsys.readouterr().err


def test_a_resumed_run_refuses_other_initial_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    words = ["--algo", "selmix", "--init", str(tmp_path / "w.pt"), "--out", str(tmp_path / "r")]
    words += [SMALL[0], *SMALL[-3:]]
    assert cli.main(words) == 0
    torch.save(fresh().state_dict(), tmp_path / "w.pt")
    assert cli.main([*words, "--resume"]) == 2
    assert "init.sha256" in capsys.readouterr().err


def test_a_checkpoint_of_each_kind_gives_its_network(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--algo", "supervised", "--then", "selmix", "--out", str(run), *SMALL]
    assert cli.main([*words, "selmix.keep=last"]) == 0
    kept = load.read(run)
    last = load.read(run / "2-selmix" / "last.pt")
    assert kept.keys() == last.keys() and all(torch.equal(kept[k], last[k]) for k in kept)
    assert same(ssl_selmix.load(run).net, loaded(last))
    assert not any(k.startswith(("trust", "pairing")) for k in kept)


def loaded(tensors: dict[str, torch.Tensor]) -> models.Classifier:
    ours = fresh()
    assert weights.load_into(ours, tensors) == []
    return ours


def test_a_run_that_was_killed_is_no_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main(["--algo", "supervised", "--out", str(run), *SMALL[:4]]) == 0
    (run / "results.json").unlink()
    with pytest.raises(ValueError, match="no finished stage"):
        ssl_selmix.load(run)


def test_a_second_tensor_of_the_heads_shape_is_not_taken_for_the_head() -> None:
    theirs = {f"backbone.{k}": v for k, v in net().backbone.state_dict().items()}
    head = torch.randn(10, 8)
    theirs |= {"fc.weight": head, "fc.bias": torch.ones(10), "aux.norm.bias": torch.zeros(10)}
    ours = fresh()
    notes = weights.load_into(ours, theirs)
    assert torch.equal(ours.classifier.weight, head) and bool((ours.classifier.bias == 1).all())
    assert "aux.norm.bias" in notes[0]
    notes = weights.load_into(fresh(), theirs | {"other.weight": head})
    assert any("classifier.weight" in note for note in notes)  # two candidates: none is taken
