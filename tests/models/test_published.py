"""Wide ResNets of published codes: their forward passes, written out, on weights by their names."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.models import Config, build
from ssl_selmix.models.weights import load_into
from ssl_selmix.runs import weights
from tests.helpers.runs import train

Weights = dict[str, Tensor]
WIDTHS = (16, 32, 64, 128)  # of wrn-10-2, which has a block in each group, and all of them widen


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """Batch norm by stored statistics, and the leaky activation."""
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    x = F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"])
    return F.leaky_relu(x, 0.1)


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def random_weights(layers: Iterator[tuple[str, tuple[int, ...]]]) -> Weights:
    """Random tensors under the names of convolutions (four sizes) and norms (one)."""
    generator = torch.Generator().manual_seed(0)
    found: Weights = {}
    for name, shape in layers:
        found[f"{name}.weight"] = torch.randn(shape, generator=generator) / 4 + (len(shape) == 1)
        if len(shape) == 1:
            found[f"{name}.bias"] = torch.randn(shape, generator=generator)
            found[f"{name}.running_mean"] = torch.randn(shape, generator=generator)
            found[f"{name}.running_var"] = torch.rand(shape, generator=generator) + 0.5
            found[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return found


def with_head(w: Weights, name: str, k: int = 5) -> Weights:
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((k, WIDTHS[3]), (k,)))
    return {**w, f"{name}.weight": weight, f"{name}.bias": bias}


# kekmodel's FixMatch and ABC; for other blocks with the same names, all of them activated.


def layers_of_fixmatch() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "conv1", (16, 3, 3, 3)
    for group in (1, 2, 3):
        before, width = WIDTHS[group - 1 : group + 1]
        name = f"block{group}.layer.0"
        yield f"{name}.bn1", (before,)
        yield f"{name}.conv1", (width, before, 3, 3)
        yield f"{name}.bn2", (width,)
        yield f"{name}.conv2", (width, width, 3, 3)
        yield f"{name}.convShortcut", (width, before, 1, 1)
    yield "bn1", (128,)


def of_fixmatch(w: Weights, x: Tensor, *, always_activated: bool) -> Tensor:
    """Blocks that widen have their input activated; those of groups 2 and 3 perhaps see it raw."""
    x = conv(w, "conv1", x)
    for group in (1, 2, 3):
        name, stride = f"block{group}.layer.0", 1 if group == 1 else 2
        if always_activated or group == 1:
            x = norm(w, f"{name}.bn1", x)
        h = norm(w, f"{name}.bn2", conv(w, f"{name}.conv1", x, stride))
        x = conv(w, f"{name}.convShortcut", x, stride) + conv(w, f"{name}.conv2", h)
    return logits(w, norm(w, "bn1", x), "fc")


# DASO, with the network in an encoder and numbered layers.


def layers_of_daso() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "encoder.init_conv", (16, 3, 3, 3)
    for group in (1, 2, 3):
        before, width = WIDTHS[group - 1 : group + 1]
        name = f"encoder.unit{group}.0"
        numbers = (0, 1, 3) if group == 1 else (2, 3, 5)
        yield f"{name}.pre_act.0" if group == 1 else f"{name}.layer.0", (before,)
        yield f"{name}.layer.{numbers[0]}", (width, before, 3, 3)
        yield f"{name}.layer.{numbers[1]}", (width,)
        yield f"{name}.layer.{numbers[2]}", (width, width, 3, 3)
        yield f"{name}.identity", (width, before, 1, 1)
    yield "encoder.unit4.0", (128,)


def of_daso(w: Weights, x: Tensor) -> Tensor:
    """The first block activates before its shortcut; in all others the shortcut sees the input."""
    x = conv(w, "encoder.init_conv", x)
    name = "encoder.unit1.0"
    x = norm(w, f"{name}.pre_act.0", x)
    h = norm(w, f"{name}.layer.1", conv(w, f"{name}.layer.0", x))
    x = conv(w, f"{name}.identity", x) + conv(w, f"{name}.layer.3", h)
    for name in ("encoder.unit2.0", "encoder.unit3.0"):
        h = conv(w, f"{name}.layer.2", norm(w, f"{name}.layer.0", x), 2)
        h = conv(w, f"{name}.layer.5", norm(w, f"{name}.layer.3", h))
        x = conv(w, f"{name}.identity", x, 2) + h
    return logits(w, norm(w, "encoder.unit4.0", x), "classifier.fc")


def logits(w: Weights, maps: Tensor, head: str) -> Tensor:
    return F.linear(maps.mean((2, 3)), w[f"{head}.weight"], w[f"{head}.bias"])


CASES: dict[str, tuple[Weights, Callable[[Weights, Tensor], Tensor]]] = {
    "wrn-10-2": (
        with_head(random_weights(layers_of_fixmatch()), "fc"),
        lambda w, x: of_fixmatch(w, x, always_activated=True),
    ),
    "wrn-10-2-kekmodel": (
        with_head(random_weights(layers_of_fixmatch()), "fc"),
        lambda w, x: of_fixmatch(w, x, always_activated=False),
    ),
    "wrn-10-2-daso": (with_head(random_weights(layers_of_daso()), "classifier.fc"), of_daso),
}


@pytest.mark.parametrize("name", CASES)
def test_published_weights_give_the_published_network(name: str) -> None:
    tensors, described = CASES[name]
    net = build(Config(name), 5, 3)
    assert load_into(net, tensors) == []
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net.eval()(x), described(tensors, x), rtol=1e-4, atol=1e-4)
    kept = {id(p) for p in net.parameters()}
    net.train()(x).square().sum().backward()
    assert kept == {id(p) for p in net.parameters() if p.grad is not None}  # nothing is idle
    others = [other for other in CASES if other != name and ("daso" in other) == ("daso" in name)]
    for other in others:
        assert not torch.allclose(net.eval()(x), CASES[other][1](tensors, x), atol=1e-2)


def test_variants_differ_in_two_norms_and_in_nothing_else() -> None:
    plain, daso, kekmodel = (
        build(Config(f"wrn-28-2{variant}"), 10, 3).state_dict()
        for variant in ("", "-daso", "-kekmodel")
    )
    assert plain.keys() == daso.keys()
    gone = {".".join(key.split(".")[:3]) for key in plain.keys() - kekmodel.keys()}
    assert gone == {"backbone.5.bn1", "backbone.9.bn1"} and not kekmodel.keys() - plain.keys()


def test_a_file_of_another_depth_is_told() -> None:
    net = build(Config("wrn-16-2-kekmodel"), 5, 3)
    notes = load_into(net, CASES["wrn-10-2-kekmodel"][0])
    assert "left as initialised: backbone.2.bn1.weight" in notes[0]


def test_a_run_starts_from_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors, _ = CASES["wrn-10-2-kekmodel"]
    tensors = {f"module.{key}": value for key, value in tensors.items()}
    grey = tensors["module.conv1.weight"][:, :1]
    torch.save({"state_dict": {**tensors, "module.conv1.weight": grey}, "epoch": 3}, "theirs.pt")
    words = ["--init", "theirs.pt", "model.name=wrn-10-2-kekmodel", "supervised.steps=1"]
    run = train(tmp_path / "run", *words, "supervised.lr=1e-9", "supervised.ema=0")
    found = weights.of_checkpoint(run / "1-supervised/model.pt")
    torch.testing.assert_close(
        found["backbone.2.shortcut.weight"], tensors["module.block2.layer.0.convShortcut.weight"]
    )
