"""RIDE's loss and gradient worked out by hand, its experts, and the branches of a network."""

import numpy as np
import pytest
import torch
from torch import nn

from ssl_selmix import models
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.ride import RIDE, class_temperatures, diversity
from ssl_selmix.models import Classifier
from ssl_selmix.models.branches import Branches, num_branches
from tests.helpers.golden import Given, task_of

COUNTS = torch.tensor([40, 20, 6, 2])


def softmax(z: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(z - z.max(-1, keepdims=True))
    found: np.ndarray = e / e.sum(-1, keepdims=True)
    return found


def by_hand(z: np.ndarray, y: np.ndarray, t: np.ndarray, weight: float, kind: str) -> float:
    """The loss of logits E×B×K, written out."""
    num, total = len(z), 0.0
    middle = softmax(z.mean(0) / t)
    for i in range(num):
        total -= np.log(softmax(z[i])[np.arange(len(y)), y]).mean()
        p = softmax(z[i] / t)
        if kind == "mean":
            total -= weight * (middle * np.log(middle / p)).sum(1).mean()
            continue
        for j in range(num):
            q = softmax(z[j] / t)
            total -= weight / (num - 1) * (p * np.log(p / q)).sum(1).mean()
    return float(total)


def on_vectors(dimension: int = 5) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Identity(), nn.Linear(dimension, len(COUNTS))).double()


def test_temperatures_follow_the_counts() -> None:
    n = COUNTS.double().numpy()
    beta = 0.05 * n / n.mean() + 0.95
    expected = 1.5 * (beta + 1 - beta.max())
    found = class_temperatures(COUNTS, 1.5, 0.05)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert float(found[0]) == pytest.approx(1.5) and bool((found.diff() < 0).all())
    with pytest.raises(ValueError, match=r"set skew below 0\.447"):
        class_temperatures(COUNTS, 1.0, 0.9)


@pytest.mark.parametrize("kind", ["mean", "pairwise"])
def test_the_loss_is_that_of_the_formula(kind: str) -> None:
    config = RIDE.Config(steps=10, lambda_d=0.3, skew=0.2, diversity=kind)
    ride = RIDE(on_vectors(), task_of(COUNTS), config).double()
    x, y = torch.randn(7, 5).double(), torch.tensor([0, 1, 2, 3, 0, 0, 1])
    found, logs = ride(
        Batch(x, y, Given([]), torch.empty(0, dtype=torch.int64)), Context(0, 10, ride)
    )
    t = class_temperatures(COUNTS, 1.0, 0.2).numpy()
    z = ride.experts(x).detach().numpy()
    loss = torch.stack(list(found.values())).sum().item()
    assert loss == pytest.approx(by_hand(z, y.numpy(), t, 0.3, kind), abs=1e-5)
    assert float(logs["kl"]) > 0


def test_gradients_are_those_of_the_formulas() -> None:
    torch.manual_seed(2)
    t = torch.tensor([1.0, 0.9, 0.8])
    z = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: diversity(z, t.double(), "pairwise"), z)
    # The mean has no gradient: what is left is (p_i - p) / T, which is bounded.
    diversity(z, t.double()).backward()
    p, middle = (z / t).softmax(2), (z.mean(0) / t).softmax(1)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, ((p - middle) / t / 4).detach())


def test_experts_that_agree_have_no_diversity() -> None:
    z = torch.randn(1, 6, 4).expand(3, -1, -1)
    for kind in ("mean", "pairwise"):
        assert float(diversity(z, torch.ones(4), kind)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("branches", [1, 3])
def test_it_begins_with_the_classifier_and_ends_in_one_layer(branches: int) -> None:
    torch.manual_seed(1)
    net = models.build(models.Config(name="cnn-4", branches=branches), len(COUNTS), 1).eval()
    images = torch.randn(5, 1, 8, 8)
    before = net(images).detach()
    ride = RIDE(net, task_of(COUNTS), RIDE.Config(steps=10)).eval()
    torch.testing.assert_close(ride.predict(images), before, atol=1e-5, rtol=1e-5)
    experts = ride.experts(ride.net.features(images))
    assert experts.shape == (3, 5, 4) and float(experts.detach().var(0).min()) > 1e-6
    torch.testing.assert_close(experts.mean(0), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ride.export().eval()(images), before, atol=1e-5, rtol=1e-5)


def test_a_branch_has_weights_of_its_own_behind_one_trunk() -> None:
    torch.manual_seed(0)
    for name, width in (("wrn-10-1", 64), ("cnn-4", 8)):
        net = models.build(models.Config(name=name, branches=2), 4, 3)
        plain = models.build(models.Config(name=name), 4, 3)
        assert (num_branches(net.backbone), num_branches(plain.backbone)) == (2, 1)
        assert net.classifier.in_features == 2 * width
        x = torch.randn(4, 3, 16, 16)
        found = net.features(x)
        assert found.shape == (4, 2 * width)
        last = net.backbone[-1]  # type: ignore[index]
        assert isinstance(last, Branches)
        assert not torch.equal(*found.chunk(2, 1))
        trunk = sum(p.numel() for p in net.backbone[:-1].parameters())  # type: ignore[index]
        whole = sum(p.numel() for p in plain.backbone.parameters())
        parts = [sum(p.numel() for p in b.parameters()) for b in last.branches]
        assert trunk + parts[0] == whole and parts[0] == parts[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"loss": "ldam", "logit_adjustment": 0}, "loss=ldam is made for one classifier"),
        ({"sam": "asam"}, "sam=asam is made for one classifier"),
        ({"experts": 1}, "experts must be >= 2"),
    ],
)
def test_settings_for_one_classifier_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RIDE.Config(**settings)  # type: ignore[arg-type]


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="branches=2 copies the last stage"):
        models.Config(name="resnet-18", branches=2)
    net = models.build(models.Config(name="cnn-4", branches=2), 4, 1)
    with pytest.raises(ValueError, match="experts=4 does nothing here"):
        RIDE(net, task_of(COUNTS), RIDE.Config(experts=4))
    with pytest.raises(ValueError, match="branches=2 needs a linear head"):
        models.Config(name="cnn-4", branches=2, head="mlp-8")
    net = models.build(models.Config(name="cnn-4"), 4, 1)
    net.classifier.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="is another one or fixed"):
        RIDE(net, task_of(COUNTS), RIDE.Config())
