"""Steps that the scale of features and logits does not change."""

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import gains
from ssl_selmix.algorithm import Evaluation, load
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.contract import subjects
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.relative import REFERENCE, RelativeHead, calibrating_temperature
from ssl_selmix.training import engine
from tests.helpers import gaussians

K, D = 4, 6


class Divided(nn.Module):
    """A body whose features are divided by a constant."""

    def __init__(self, body: nn.Module, by: float) -> None:
        super().__init__()
        self.body, self.by = body, by

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) / self.by  # type: ignore[no-any-return]


@cache
def first_stage() -> Classifier:
    """A network that neglects rare classes; never to be changed."""
    data = gaussians.make_data()
    torch.manual_seed(0)
    kind = load("supervised")[1]
    settings: dict[str, Any] = {"logit_adjustment": 0.0, "steps": 60, "batch": 16, "ema": 0.95}
    algorithm = kind(gaussians.make_net(), data.task, kind.Config(**settings, keep="last"))
    with TemporaryDirectory() as folder:
        return subjects.fit(algorithm, data, Path(folder)).algorithm.export()


@cache
def tuned(divided: float = 1.0, times: float = 1.0, **settings: Any) -> tuple[Tensor, Tensor]:
    """Validation logits before and after 100 steps, logits over `times`.

    The features are divided, and the head is multiplied, by `divided`; the head by `times` more.
    """
    net, data = gaussians.make_net(), gaussians.make_data().at_stage("2-selmix")
    net.load_state_dict(first_stage().state_dict())
    with torch.no_grad():
        net.classifier.weight.mul_(divided * times)
        net.classifier.bias.mul_(times)
    net = Classifier(Divided(net.backbone, divided), net.classifier)
    options: dict[str, Any] = {"steps": 100, "keep": "last", "objective": "h_mean"}
    options |= {"stop": "none", "rate": "relative"} | settings
    algorithm = SelMix(net, data.task, SelMix.Config(**options))
    before = engine.evaluate(algorithm, data).logits / times
    with TemporaryDirectory() as folder:
        after = subjects.fit(algorithm, data, Path(folder)).algorithm
    return before, engine.evaluate(after, data).logits / times


@pytest.mark.parametrize(("divided", "times"), [(10.0, 1.0), (1.0, 10.0), (0.1, 5.0)])
def test_a_network_of_another_scale_trains_alike(divided: float, times: float) -> None:
    before, plain = tuned()
    same, scaled = tuned(divided, times)
    torch.testing.assert_close(same, before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(plain.argmax(1), before.argmax(1))  # it did learn
    assert torch.equal(scaled.argmax(1), plain.argmax(1))
    torch.testing.assert_close(scaled, plain, rtol=0.02, atol=0.02)


def test_an_absolute_rate_depends_on_the_scale() -> None:
    _, plain = tuned(rate="absolute")
    _, scaled = tuned(10.0, rate="absolute")
    assert float((scaled - plain).abs().max()) > 0.1


def made(size: float, temperature: float) -> tuple[RelativeHead, nn.Linear]:
    torch.manual_seed(0)
    units = RelativeHead()
    units.size.fill_(size)
    units.temperature.fill_(temperature)
    return units, nn.Linear(D, K).double()


def test_the_gain_is_what_a_step_does_to_logits_over_the_temperature() -> None:
    units, head = made(3.0, 2.0)
    z = torch.randn(K, D, dtype=torch.float64)
    d = torch.randn(K, K, dtype=torch.float64)
    d -= d.mean(1, keepdim=True)
    scaled = units.in_units(z, head)
    found = gains.gain_matrix(d, *scaled, mix=0.8, bias_trained=True)
    before, rate = (head(z) / 2.0).detach(), 1e-6
    for i, j in ((0, 1), (2, 2), (3, 0)):
        loss = F.cross_entropy(units.logits(head, 0.8 * z[i] + 0.2 * z[j])[None], torch.tensor([i]))
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        after = F.linear(z, head.weight - rate * weight, head.bias - rate * bias) / 2.0
        change = float((d * (after - before)).sum().detach()) / rate
        assert change == pytest.approx(float(found[i, j]), rel=1e-4)


def test_the_body_sees_the_plain_gradient_of_calibrated_logits() -> None:
    units, head = made(3.0, 2.0)
    x = torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 0])
    own = torch.autograd.grad(F.cross_entropy(units.logits(head, x), y), x)[0]
    plain = torch.autograd.grad(F.cross_entropy(head(x) / 2.0, y), x)[0]
    torch.testing.assert_close(own, plain)


def test_measured_on_validation_images() -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % K
    logits = torch.randn(400, K) + 2.0 * F.one_hot(labels, K)
    features = torch.randn(400, D)
    units = RelativeHead()
    units.measure(Evaluation(features, 3 * logits, labels))
    assert float(units.size) * REFERENCE == pytest.approx(float(features.square().sum(1).mean()))
    assert float(units.temperature) == pytest.approx(
        3 * calibrating_temperature(logits, labels), rel=1e-3
    )
    units.measure(Evaluation(torch.zeros(400, D), logits, labels))
    assert float(units.size) == 1.0


def test_temperature_where_every_image_is_right_follows_the_margin() -> None:
    labels = torch.arange(400) % K
    logits = F.one_hot(labels, K).float()
    one, large = (calibrating_temperature(c * logits, labels) for c in (1.0, 100.0))
    assert 0.05 < one < 0.5 and large == pytest.approx(100 * one, rel=1e-3)
    assert calibrating_temperature(torch.zeros(400, K), labels) > 0


def test_a_rate_is_relative_where_there_are_images_to_judge_it_by() -> None:
    few, config = gaussians.make_data().task, SelMix.Config
    many = dataclasses.replace(few, num_validation=50 * few.num_classes)
    assert config().relative(many) and not config().relative(few)
    assert config(rate="relative").relative(few) and not config(rate="absolute").relative(many)
    assert not config(step="fixed").relative(many)
    for task, rule in ((many, "patience"), (few, "none")):
        assert SelMix(gaussians.make_net(), task, config()).stopping.rule == rule
    assert SelMix(gaussians.make_net(), many, config(patience=3)).stopping.patience == 3
    with pytest.raises(ValueError, match="patience=3 does nothing here"):
        SelMix(gaussians.make_net(), few, config(patience=3))
