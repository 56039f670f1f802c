"""The fixed simplex classifier: its geometry, that it stays, and what later stages make of it."""

import json
from pathlib import Path

import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.models import Config, build, heads


def test_class_vectors_are_a_simplex() -> None:
    torch.manual_seed(0)
    for k, d in ((2, 2), (3, 8), (10, 10)):
        vectors = heads.simplex(k, d)
        cosines = vectors @ vectors.T
        expected = torch.eye(k) * (1 + 1 / (k - 1)) - 1 / (k - 1)
        torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="needs as many features as classes, and the network has"):
        heads.simplex(9, 8)


def test_a_network_that_begins_anew_has_a_simplex_again() -> None:
    torch.manual_seed(0)
    net = heads.begin(build(Config("cnn-8", head="etf"), 4, 1), "etf")
    before = net.classifier.weight.clone()
    net.begin_anew()
    vectors = net.classifier.weight
    assert not torch.equal(before, vectors) and not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.sum(0), torch.zeros(16), atol=1e-5, rtol=0)
    net.requires_grad_(False)
    x = torch.randn(3, 1, 8, 8)
    assert float(net.eval().features(x).norm(dim=1)[0]) == pytest.approx(heads.COSINE_LENGTH)


def test_a_run_leaves_it_alone_and_the_next_stage_does_not(tmp_path: Path) -> None:
    words = ["--algo", "fixmatch", "--then", "crt", "model.head=etf", "model.name=cnn-16"]
    words += ["fixmatch.steps=3", "fixmatch.batch=4", "crt.steps=3", "device=cpu", "threads=1"]
    assert cli.main([*words, "pictures=false", "--out", str(tmp_path / "run")]) == 0
    weights = [
        torch.load(tmp_path / "run" / stage / "model.pt", weights_only=True)
        for stage in ("1-fixmatch", "2-crt")
    ]
    first, second = (
        next(v for k, v in _tensors(state).items() if k.endswith("classifier.weight"))
        for state in weights
    )
    torch.testing.assert_close(first.norm(dim=1), torch.ones(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.sum(0), torch.zeros(32), atol=1e-5, rtol=0)
    assert not torch.allclose(first, second)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["stages"][1]


def _tensors(state: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            found[prefix + key] = value
        elif isinstance(value, dict):
            found |= _tensors(value, f"{prefix}{key}.")
    return found


def test_what_cannot_learn_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for wrong in ({"tune": "head"}, {"name": "features"}):
        with pytest.raises(ValueError, match="with a body that stays as it is nothing learns"):
            Config(head="etf", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length=0 leaves a cosine no scale"):
        Config(head="etf", length=0.0)
    words = ["train", "--algo", "supervised", "model.head=etf", "model.name=cnn-4"]
    assert cli.main([*words, "device=cpu", "--out", str(tmp_path / "run")]) == 2
    assert "has 8 for 10; choose a wider one" in capsys.readouterr().err
