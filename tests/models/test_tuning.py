"""Which parameters of a pre-trained network learn, and what becomes of what was added to it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import contract, models
from ssl_selmix.algorithm import load
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.common import plugins
from ssl_selmix.contract import life, step, subjects
from ssl_selmix.data.batch import Task
from ssl_selmix.models import Classifier, Config
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.tuning import layer_scales, num_trained

timm = pytest.importorskip("timm")
RESNET, VIT = "timm:test_resnet", "timm:test_vit"
TASK = Task(tuple("abc"), torch.ones(3).double(), 1, 1)


def tuned(name: str, how: str, **settings: Any) -> Classifier:
    torch.manual_seed(2)
    config = Config(name, tune=how, size=64, **settings)
    return models.tune(models.build(config, 3, 3), config)


def trained(net: Classifier) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


HEAD = {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("how", "some", "none"),
    [
        ("head", [], ["backbone.norm.weight"]),
        ("bias", ["blocks.0.attn.qkv.bias", "norm.bias"], ["blocks.0.norm1.weight"]),
        ("norm", ["blocks.0.norm1.weight", "norm.bias"], ["blocks.0.attn.qkv.bias"]),
        ("adapter", ["blocks.5.mlp.adapter.down.weight"], ["blocks.0.mlp.fc1.weight"]),
    ],
)
def test_what_learns(how: str, some: list[str], none: list[str]) -> None:
    net = tuned(VIT, how)
    found = trained(net)
    assert HEAD <= found and {f"backbone.{name}" for name in some} <= found
    assert not {f"backbone.{name}" for name in none} & found
    assert (found == HEAD) == (how == "head")
    assert num_trained(net) == sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(("how", "frozen"), [("full", False), ("head", True), ("norm", True)])
def test_what_is_frozen_keeps_its_batch_statistics(how: str, frozen: bool) -> None:
    net = tuned(RESNET, how).train()
    before = {k: v.clone() for k, v in net.named_buffers()}
    net.features(torch.randn(4, 3, 64, 64))
    assert before and same(dict(net.named_buffers()), before) == frozen
    assert net.training and net.backbone.training != (how == "head")


def test_selmix_leaves_a_frozen_body_in_evaluation_mode() -> None:
    for how, evaluates in (("head", True), ("full", False)):
        selmix = SelMix(tuned(RESNET, how), TASK, SelMix.Config()).train()
        assert all(not norm.training for norm in batch_norms(selmix.net)) == evaluates


def test_an_adapter_begins_as_nothing_and_a_copy_has_its_own() -> None:
    x = torch.randn(2, 3, 64, 64)
    plain, net = tuned(VIT, "full").eval(), tuned(VIT, "adapter").eval()
    assert trained(net) > HEAD
    ours = net.backbone.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in plain.backbone.state_dict().items())
    assert torch.equal(net.features(x), plain.features(x))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("up.bias"):
                parameter.normal_()  # a constant would be taken out by the last layer norm
    assert torch.equal(net.features(x), plain.features(x))
    assert not torch.allclose(other.features(x), plain.features(x), atol=1e-3)


def test_what_adapters_add_is_in_the_exported_network() -> None:
    torch.manual_seed(0)
    algorithm = Supervised(tuned(VIT, "adapter", rank=2), TASK, Supervised.Config()).eval()
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 64, 64)
    again = models.build(Config(VIT, tune="adapter", rank=2, size=64), 3, 3).eval()
    again.load_state_dict(algorithm.export().state_dict())
    assert torch.equal(again(x), algorithm.predict(x))


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_low_rank_updates_are_merged_and_change_no_logit(name: str) -> None:
    pytest.importorskip("peft")
    algorithm = Supervised(tuned(name, "lora", rank=3), TASK, Supervised.Config()).eval()
    plain = models.build(Config(name, size=64), 3, 3)
    moved = [p for n, p in algorithm.named_parameters() if "lora_B" in n]
    assert moved and trained(algorithm.net) >= HEAD
    with torch.no_grad():
        for parameter in moved:
            parameter.normal_(std=0.1)
    x = torch.randn(4, 3, 64, 64)
    expected, exported = algorithm.predict(x), algorithm.export().eval()
    assert exported.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(exported(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(algorithm.predict(x), expected)  # what is trained goes on as it was
    with torch.no_grad():
        for parameter in moved:
            parameter.zero_()
    assert not torch.allclose(algorithm.predict(x), expected, atol=1e-3)
    models.tune(exported, Config(name, tune="lora", rank=3, size=64))  # as the next stage does
    assert torch.allclose(exported.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"model\.tune=lora needs peft; pip install 'ssl_selmix\["):
        tuned(RESNET, "lora")


def test_networks_without_what_is_to_learn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tune=adapter is for transformers.*use model\.tune=lora"):
        tuned(RESNET, "adapter")
    net = Classifier(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="tune=norm finds nothing to train"):
        models.tune(net, Config("cnn-4", tune="norm"))


def test_rates_fall_from_layer_to_layer() -> None:
    net = tuned(VIT, "full", layer_decay=0.5)
    scales, names = layer_scales(net), dict(net.named_parameters())

    def scale(name: str) -> float:
        return scales[id(names[name])]

    assert scale("classifier.weight") == 1.0
    assert scale("backbone.norm.weight") == scale("backbone.blocks.5.mlp.fc2.bias") == 0.5
    assert scale("backbone.blocks.0.norm1.weight") == 0.5**6
    assert scale("backbone.cls_token") == scale("backbone.patch_embed.proj.bias") == 0.5**7


def test_layers_of_other_libraries_are_numbered_by_their_names() -> None:
    config = Config("torchvision:resnet18", layer_decay=0.5)
    net = models.tune(models.build(config, 3, 3), config)
    scales, names = layer_scales(net), dict(net.named_parameters())
    found = [
        scales[id(names[f"backbone.{name}"])]
        for name in ("conv1.weight", "layer1.1.bn2.bias", "layer4.0.conv1.weight")
    ]
    assert found == [0.5**6, 0.5**4, 0.5] and scales[id(net.classifier.weight)] == 1.0


def test_groups_change_only_if_rates_fall() -> None:
    plain = Supervised(tuned(VIT, "full"), TASK, Supervised.Config()).param_groups()
    assert [(len(g["params"]) > 0, g["lr_scale"]) for g in plain] == [(True, 1.0), (True, 1.0)]
    net = tuned(VIT, "full", layer_decay=0.5)
    groups = Supervised(net, TASK, Supervised.Config()).param_groups()
    given = [id(p) for group in groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in net.parameters())
    assert {g["lr_scale"] for g in groups} == {0.5**n for n in range(8)}
    assert all((g.get("weight_decay") == 0.0) == (g["params"][0].ndim <= 1) for g in groups)
    slow = SelMix(net, TASK, SelMix.Config()).param_groups()
    of_head = [g for g in slow if any(p is net.classifier.weight for p in g["params"])]
    assert [g["lr_scale"] for g in of_head] == [1.0]
    assert min(g["lr_scale"] for g in slow) == 0.1 * 0.5**7


TRAINING = [n for n in sorted(plugins.available("algorithm")) if load(n)[1].trains]
OFTEN = [("fixmatch", "head"), ("selmix", "head")]
CASES = [(name, how) for name in TRAINING for how in ("head", "norm")]
CHECKS = (step.check_gradients, step.check_optimizer_groups, step.check_frozen, life.check_export)


@pytest.mark.parametrize(
    ("name", "how"),
    [c if c in OFTEN else pytest.param(*c, marks=pytest.mark.slow) for c in CASES],
)
def test_methods_train_what_is_to_be_tuned(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_net = subjects.make_net

    def made(data: Any, seed: int = 1) -> Classifier:
        return models.tune(make_net(data, seed), Config("cnn-4", tune=how))

    monkeypatch.setattr(subjects, "make_net", made)
    for number, check in enumerate(CHECKS):
        check(contract.subject(name), tmp_path / str(number))
    data, _ = subjects.make_data()
    if how == "head":
        net = made(data)
        body = {key: value.clone() for key, value in net.backbone.state_dict().items()}
        algorithm = contract.subject(name).make(data, net, keep="last")
        fitted = subjects.fit(algorithm, data, tmp_path / "whole").algorithm
        assert same(fitted.export().backbone.state_dict(), body)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())
