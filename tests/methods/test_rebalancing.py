"""Losses for skewed classes by hand, `supervised` with each of them, and what they are for."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.contract import life, limits, reporting, subjects
from ssl_selmix.contract.step import check_frozen, check_gradients, check_optimizer_groups
from ssl_selmix.data import Data
from ssl_selmix.methods import labeled
from ssl_selmix.methods.labeled import CosineHead, LabeledLoss, class_weights, ldam_margins
from tests.helpers import gaussians
from tests.helpers.golden import task_of

COUNTS = torch.tensor([16, 4, 1])
LABELS = torch.tensor([0, 1, 2, 0, 0])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Weights and margins.


def test_inverse_weights_by_hand() -> None:
    weights = class_weights("inverse", COUNTS, 0.9)
    torch.testing.assert_close(weights, 3 * numbers(1, 4, 16) / 21)


def test_effective_weights_by_hand() -> None:
    """beta = 1/2: 2 - 2^(1-n) effective images."""
    weights = class_weights("effective", torch.tensor([3, 2, 1]), 0.5)
    expected = 1 / numbers(1.75, 1.5, 1)
    torch.testing.assert_close(weights, 3 * expected / expected.sum())


def test_effective_weights_lie_between_equal_and_inverse_ones() -> None:
    equal = class_weights("effective", COUNTS, 0.0)
    torch.testing.assert_close(equal, class_weights("none", COUNTS, 0.0))
    torch.testing.assert_close(equal, torch.ones(3, dtype=torch.float64))
    nearly = class_weights("effective", COUNTS, 1 - 1e-9)
    torch.testing.assert_close(nearly, class_weights("inverse", COUNTS, 0.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", labeled.WEIGHTS)
def test_an_absent_class_weighs_nothing_and_changes_no_other(kind: str) -> None:
    weights = class_weights(kind, torch.tensor([16, 0, 4, 1]), 0.9)
    assert float(weights[1]) == 0
    torch.testing.assert_close(weights[[0, 2, 3]], class_weights(kind, COUNTS, 0.9))


def test_margins_by_hand() -> None:
    torch.testing.assert_close(
        ldam_margins(torch.tensor([256, 16, 1]), 0.5), numbers(0.125, 0.25, 0.5)
    )
    # The rarest class that has images has the largest margin.
    torch.testing.assert_close(ldam_margins(torch.tensor([256, 0, 16]), 0.5), numbers(0.25, 0, 0.5))


# Losses.


def test_focal_loss_is_its_formula() -> None:
    logits = random(5, 3)
    p = logits.softmax(1)[range(5), LABELS]
    for gamma in (0.5, 1.0, 2.0):
        got = labeled.focal(logits, LABELS, gamma)
        torch.testing.assert_close(got, -((1 - p) ** gamma) * p.log())
    plain = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(labeled.focal(logits, LABELS, 0.0), plain)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_a_certain_prediction_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0], [0, 200, 0]]).requires_grad_()
    labeled.focal(logits, torch.tensor([0, 2]), gamma).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[1].any()


def test_ldam_is_cross_entropy_after_the_margin() -> None:
    cosines, margins = random(5, 3).tanh(), numbers(0.1, 0.2, 0.5)
    got = labeled.ldam(cosines, LABELS, margins, 30.0)
    for i, y in enumerate(LABELS.tolist()):
        right = 30 * (cosines[i, y] - margins[y])
        others = sum(math.exp(30 * cosines[i, k]) for k in range(3) if k != y)
        expected = -math.log(math.exp(right) / (math.exp(right) + others))
        assert float(got[i]) == pytest.approx(expected)


def labeled_loss(tau: float = 0.0, **settings: Any) -> LabeledLoss:
    config = labeled.Config(**settings)
    return LabeledLoss(task_of(COUNTS), config, tau).double()


def test_weighted_cross_entropy_is_that_of_pytorch() -> None:
    logits = random(5, 3)
    for kind in labeled.WEIGHTS:
        got = labeled_loss(reweight=kind)(logits, LABELS, 0.0)
        weights = class_weights(kind, COUNTS, 0.9999)
        expected = F.cross_entropy(logits, LABELS, weight=weights)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_deferred_weights_set_in_at_their_share_of_the_steps() -> None:
    logits = random(5, 3)
    loss = labeled_loss(reweight="inverse", drw=0.8)
    plain, weighted = labeled_loss(), labeled_loss(reweight="inverse")
    assert loss(logits, LABELS, 0.79) == plain(logits, LABELS, 0.79)
    assert loss(logits, LABELS, 0.8) == weighted(logits, LABELS, 0.8)
    assert plain(logits, LABELS, 0.0) != weighted(logits, LABELS, 0.0)


@pytest.mark.parametrize("loss", ["ce", "focal"])
def test_adjusted_logits_enter_every_loss_of_logits(loss: str) -> None:
    logits = random(5, 3)
    shifted = logits + 2 * (COUNTS / COUNTS.sum()).log()
    got = labeled_loss(2.0, loss=loss)(logits, LABELS, 0.0)
    expected = labeled_loss(loss=loss)(shifted, LABELS, 0.0)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


# The cosine head.


def test_the_folded_layer_ranks_classes_as_the_cosines_do() -> None:
    torch.manual_seed(0)
    head, layer = CosineHead(30.0), nn.Linear(6, 4)
    features = 5 * random(50, 6).float()
    cosines = head(features, layer)
    expected = F.cosine_similarity(features[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(cosines, expected)
    logits = F.linear(features, *head.folded(layer))
    ratio = (features.norm(dim=1) / head.norm)[:, None]
    torch.testing.assert_close(logits, 30 * cosines * ratio, rtol=1e-4, atol=1e-4)


def test_the_folded_layer_is_as_confident_as_the_cosines() -> None:
    head, layer = CosineHead(30.0), nn.Linear(6, 4, bias=False)
    features = 5 * random(50, 6).float()
    for _ in range(100):
        head(features, layer)
    torch.testing.assert_close(head.norm, features.norm(dim=1).mean(), rtol=1e-3, atol=0)
    assert head.folded(layer)[1] is None


# The algorithm.


def make(data: Data, **settings: Any) -> Supervised:
    torch.manual_seed(0)
    return Supervised(gaussians.make_net(), data.task, Supervised.Config(**settings))


def test_one_correction_at_a_time_unless_more_are_asked_for() -> None:
    config = Supervised.Config
    assert config().logit_adjustment == 1.0
    for other in ({"loss": "focal"}, {"loss": "ldam"}, {"reweight": "inverse"}, {"resample": True}):
        assert config(**other).logit_adjustment == 0.0  # type: ignore[arg-type]
    assert config(resample=True, logit_adjustment=0.5).logit_adjustment == 0.5


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="reweight=effective"):
        Supervised.Config(drw=0.8)
    with pytest.raises(ValueError, match="logit_adjustment=0"):
        Supervised.Config(loss="ldam", logit_adjustment=1.0)
    for wrong in ({"beta": 1.0}, {"drw": 1.0}, {"loss": "hinge"}, {"margin": -0.1}, {"scale": 0}):
        (field,) = wrong
        with pytest.raises(ValueError, match=f"^{field} must be"):
            Supervised.Config(**wrong)  # type: ignore[arg-type]


def test_resampling_draws_every_class_equally_often() -> None:
    data = gaussians.make_data()

    def shares(**settings: Any) -> Tensor:
        batches = make(data, batch=50, **settings).batches(data, 0)
        y = torch.cat([batch.y for batch in itertools.islice(batches, 20)])
        return torch.bincount(y, minlength=4) / len(y)

    torch.testing.assert_close(shares(resample=True), torch.full((4,), 0.25), rtol=0, atol=0.05)
    torch.testing.assert_close(shares(), data.task.labeled_prior.float(), rtol=0, atol=0.05)


def test_weights_come_from_the_task_and_set_in_with_the_steps() -> None:
    data = gaussians.make_data()
    algorithm = make(data, reweight="effective", drw=0.5, batch=32)
    batch = next(algorithm.batches(data, 0))
    logits = algorithm.net(batch.x)
    weights = class_weights("effective", data.task.labeled_counts, 0.9999).float()
    algorithm.net.load_state_dict(make(data).net.state_dict())  # batch statistics as before
    for step, weight in ((4, None), (5, weights)):
        got = algorithm(batch, Context(step, 10, algorithm))[0]["labeled"]
        expected = F.cross_entropy(logits, batch.y, weight=weight)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Ldam(Supervised):
    """`supervised` with another default, for the checks that every method has to pass."""

    class Config(Supervised.Config):
        def __init__(self, **settings: Any) -> None:
            given: dict[str, Any] = {"loss": "ldam", "reweight": "effective", "drw": 0.5}
            super().__init__(**(given | settings))


CHECKS: list[reporting.Check] = [check_gradients, check_optimizer_groups, check_frozen]
CHECKS += [life.check_evaluation, life.check_export, life.check_state, life.check_resume]
CHECKS += [limits.check_missing_in_labeled]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_ldam_keeps_the_contract(check: reporting.Check, tmp_path: Path) -> None:
    check(subjects.Subject("ldam", Ldam), tmp_path)


def test_the_exported_network_predicts_by_the_largest_cosine(tmp_path: Path) -> None:
    data = gaussians.make_data()
    algorithm = make(data, loss="ldam", steps=30, batch=16, ema=0.9)
    fitted = subjects.fit(algorithm, data, tmp_path).algorithm.eval()
    net = fitted.export().eval()
    x = next(data.test_batches())
    with torch.no_grad():
        features = fitted.net.features(x)
        cosines = F.normalize(features) @ F.normalize(fitted.net.classifier.weight).T
        assert torch.equal(net(x).argmax(1), cosines.argmax(1))
        torch.testing.assert_close(net(x), fitted.predict(x), rtol=0, atol=0)


# What they are for.


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"logit_adjustment": 1.0},
        {"reweight": "effective"},
        {"reweight": "inverse", "drw": 0.8},
        {"loss": "ldam", "reweight": "effective", "drw": 0.8},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_rarest_class_is_found_more_often_than_by_cross_entropy(
    settings: dict[str, Any],
) -> None:
    found = gaussians.recalls("supervised", seed=1, **settings)[-1]
    plain = gaussians.recalls("supervised", seed=1, logit_adjustment=0.0)[-1]
    assert found > plain + 0.05


def test_asymmetric_loss() -> None:
    """As the formula has it, image by image; cross-entropy of smoothed labels without gammas."""
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    found = labeled.asymmetric(logits, labels, (1.0, 4.0), 0.1)
    for i, y in enumerate(labels.tolist()):
        p = logits[i].softmax(0)
        expected = -(0.9 + 0.025) * (1 - p[y]) * p[y].log()
        for k in set(range(4)) - {y}:
            expected -= 0.025 * p[k] ** 4 * p[k].log()
        torch.testing.assert_close(found[i], expected)
    plain = labeled.asymmetric(logits, labels, (0.0, 0.0), 0.1)
    smoothed = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(plain, smoothed)
    sure = (torch.eye(4, dtype=torch.float64)[labels] * 1e4).requires_grad_()
    labeled.asymmetric(sure, labels, (0.5, 0.5), 0.1).sum().backward()
    assert sure.grad is not None and bool(sure.grad.isfinite().all())
