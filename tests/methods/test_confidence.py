"""The rules of FlexMatch, FreeMatch and SoftMatch against numbers that were worked out by hand.

No published run of them is recorded. The expected numbers follow from the formulas by plain
arithmetic, written out where they stand.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import contract
from ssl_selmix.algorithm import load
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.contract import subjects
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.pseudo_labels import Flex, Free, Soft
from tests.helpers.gaussians import recalls
from tests.helpers.golden import task_of

KINDS = {"fixed": pseudo_labels.Confidence, "flex": Flex, "free": Free, "soft": Soft}
METHODS = {"flexmatch": "flex", "freematch": "free", "softmatch": "soft"}


def rule(kind: str, num_unlabeled: int = 6, **settings: Any) -> Any:
    """A rule for three classes, as it is before the first step."""
    config = pseudo_labels.Config(confidence=kind, **settings)
    return pseudo_labels.build(task_of(torch.ones(3), num_unlabeled), config).train()


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)


def assert_values(found: Tensor, expected: float | list[float]) -> None:
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# FlexMatch


def test_flex_counts_the_latest_sure_prediction_of_every_image() -> None:
    flex = rule("flex", threshold=0.8)
    p = rows((0.9, 0.05, 0.05), (0.1, 0.85, 0.05), (0.5, 0.3, 0.2), (0.05, 0.1, 0.85))
    classes, weight = flex(p, torch.tensor([0, 1, 2, 0]))  # image 0 twice: the later row counts
    assert classes.tolist() == [0, 1, 0, 2]
    assert weight.tolist() == [1, 1, 1, 1]  # beta = 0: nothing is too unsure
    assert flex.selected.tolist() == [2, 1, -1, -1, -1, -1]
    assert_values(flex.beta, [0, 1 / 4, 1 / 4])  # 0, 1 and 1 images, 4 of no class


def test_flex_asks_little_where_little_was_learned() -> None:
    flex = rule("flex", threshold=1.0)
    flex.beta.copy_(torch.tensor([1.0, 2 / 3, 0.0]))  # beta / (2 - beta) = 1, 1/2, 0
    p = rows((0.99, 0.0, 0.01), (0.4, 0.51, 0.09), (0.49, 0.5001, 0), (0.2, 0.499, 0.3))
    assert flex(p, torch.arange(4))[1].tolist() == [0, 1, 1, 0]
    assert flex(rows((0.33, 0.33, 0.34)), torch.tensor([5]))[1].tolist() == [1]


def test_flex_judges_a_batch_by_the_ones_before_it() -> None:
    flex = rule("flex", threshold=0.8)
    sure = rows((0.1, 0.9, 0.0)).repeat(4, 1)
    flex(sure, torch.arange(4))
    assert_values(flex.beta, [0, 1, 0])  # 4 images of class 1, 2 of none
    unsure = rows((0.2, 0.79, 0.01), (0.1, 0.8, 0.1), (0.4, 0.3, 0.3))
    assert flex(unsure, torch.tensor([4, 4, 5]))[1].tolist() == [0, 1, 1]
    assert flex.selected.tolist() == [1, 1, 1, 1, 1, -1]


def test_flex_forgets_no_sure_prediction_for_an_unsure_one() -> None:
    flex = rule("flex", threshold=0.8)
    p = rows((0.9, 0.1, 0.0), (0.1, 0.2, 0.7))
    flex(p, torch.tensor([3, 3]))  # sure, then unsure of another class
    assert flex.selected.tolist() == [-1, -1, -1, 0, -1, -1]
    flex(p[1:], torch.tensor([3]))
    assert flex.selected[3] == 0
    flex(rows((0.0, 0.1, 0.9)), torch.tensor([3]))
    assert flex.selected[3] == 2


def test_flex_with_many_repeats_equals_one_image_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(200, 3, generator=generator)).softmax(1)
    index = torch.randint(20, (200,), generator=generator)
    flex = rule("flex", num_unlabeled=20, threshold=0.8)
    flex(p, index)
    expected = [-1] * 20
    for row, image in zip(p.tolist(), index.tolist(), strict=True):
        if max(row) >= 0.8:
            expected[image] = row.index(max(row))
    assert flex.selected.tolist() == expected
    most = max(expected.count(k) for k in range(-1, 3))
    assert_values(flex.beta, [expected.count(k) / most for k in range(3)])


def test_without_the_warmup_only_classes_are_compared() -> None:
    flex = rule("flex", threshold=0.8, flex_warmup=False)
    flex(rows((0.5, 0.4, 0.1)), torch.tensor([0]))
    assert_values(flex.beta, [0, 0, 0])  # nothing chosen yet
    p = rows((0.9, 0.1, 0.0), (0.9, 0.1, 0.0), (0.0, 0.1, 0.9))
    flex(p, torch.tensor([0, 1, 2]))
    assert_values(flex.beta, [1, 0, 1 / 2])


def test_a_pool_that_is_taken_for_one_class_is_learned_of_that_class_alone() -> None:
    """The published code skips this update; beta would stay at (1, 1, 1) / 2 there."""
    flex = rule("flex", num_unlabeled=3, threshold=0.8)
    flex.beta.fill_(0.5)
    flex(rows((0.1, 0.9, 0.0)).repeat(3, 1), torch.arange(3))
    assert_values(flex.beta, [0, 1, 0])


# FreeMatch

FIRST = rows((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.2, 0.7, 0.1), (0.48, 0.42, 0.1))
SECOND = rows((0.5, 0.4, 0.1), (0.4, 0.5, 0.1), (0.05, 0.05, 0.9), (0.41, 0.42, 0.17))


def test_free_follows_two_batches() -> None:
    free = rule("free", confidence_ema=0.5)
    assert_values(torch.stack([free.tau, *free.mean, *free.histogram]), [1 / 3] * 7)
    classes, weight = free(FIRST, torch.arange(4))
    # tau = (1/3 + 0.645) / 2; p~ = (1/3 + (0.52, 0.38, 0.1)) / 2; h~ = (1/3 + (3, 1, 0)/4) / 2
    assert_values(free.tau, 0.4891667)
    assert_values(free.mean, [0.4266667, 0.3566667, 0.2166667])
    assert_values(free.histogram, [0.5416667, 0.2916667, 0.1666667])
    assert classes.tolist() == [0, 0, 1, 0]
    assert weight.tolist() == [1, 1, 1, 0]  # thresholds 0.4892, 0.4089, 0.2484
    classes, weight = free(SECOND, torch.arange(4))
    assert_values(free.tau, 0.5345833)
    assert_values(free.mean, [0.3833333, 0.3495833, 0.2670833])
    assert classes.tolist() == [0, 1, 2, 1]
    assert weight.tolist() == [0, 1, 1, 0]  # thresholds 0.5346, 0.4875, 0.3725: not alike for 0.5


STRONG = rows((0.6, 0.3, 0.1), (0.2, 0.5, 0.3), (0.1, 0.1, 0.8)).log()


def fairness(logits: Tensor, weight: list[float], w: float = 1.0) -> Tensor:
    free = rule("free", free_fairness=w)
    free.mean.copy_(torch.tensor([0.5, 0.3, 0.2]))
    free.histogram.copy_(torch.tensor([0.5, 0.4, 0.1]))
    penalty = free.penalty(logits, torch.zeros(3, dtype=torch.int64), torch.tensor(weight))
    assert penalty.keys() == {"fairness"}
    found: Tensor = penalty["fairness"]
    return found


def test_fairness_of_kept_strong_views() -> None:
    """Norm(p~/h~) = (1, 0.75, 2) / 3.75; second view not kept: pbar = (0.35, 0.2, 0.45), hbar =
    (1/2, 0, 1/2), Norm(pbar/hbar) = (7/16, -, 9/16)."""
    expected = 1 / 3.75 * math.log(7 / 16) + 2 / 3.75 * math.log(9 / 16)
    assert float(fairness(STRONG, [1, 0, 1])) == pytest.approx(expected, rel=1e-5)
    assert float(fairness(STRONG, [1, 0, 1], w=0.01)) == pytest.approx(expected / 100, rel=1e-5)


def test_fairness_when_every_class_is_kept() -> None:
    """pbar = (0.9, 0.9, 1.2) / 3, hbar = 1/3 each, Norm = (0.3, 0.3, 0.4)."""
    shares = zip((1 / 3.75, 0.75 / 3.75, 2 / 3.75), (0.3, 0.3, 0.4), strict=True)
    expected = sum(target * math.log(share) for target, share in shares)
    assert float(fairness(STRONG, [1, 1, 1])) == pytest.approx(expected, rel=1e-5)


def test_fairness_takes_from_classes_that_the_average_favours() -> None:
    """Of a class that p~/h~ puts above the batch (the third: 0.53 > 0.4), descent lowers logits."""
    logits = STRONG.clone().requires_grad_()
    fairness(logits, [1, 1, 1]).backward()
    assert logits.grad is not None
    step = -logits.grad.sum(0)
    assert step[2] < 0 < step[0] and step[1] > 0


def test_fairness_of_nothing_is_zero_with_a_zero_gradient() -> None:
    logits = STRONG.clone().requires_grad_()
    loss = fairness(logits, [0, 0, 0])
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("extreme", [(40.0, 0.0, 0.0), (400.0, -400.0, 0.0)])
def test_fairness_of_certain_predictions_is_finite(extreme: tuple[float, ...]) -> None:
    logits = rows(extreme, extreme, (0.0, 0.0, 0.0)).requires_grad_()
    loss = fairness(logits, [1, 1, 1])
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


# SoftMatch

THREE = rows((0.8, 0.1, 0.1), (0.2, 0.5, 0.3), (0.44, 0.16, 0.40))


def test_soft_without_alignment() -> None:
    """mu = (1/3 + 0.58) / 2; s^2 = (0.22^2 + 0.08^2 + 0.14^2) / 2 = 0.0372, averaged with 1."""
    soft = rule("soft", confidence_ema=0.5, soft_alignment=False)
    classes, weight = soft(THREE, torch.arange(3))
    assert classes.tolist() == [0, 1, 0]
    assert_values(soft.mu, 0.4566667)
    assert_values(soft.variance, 0.5186)
    # 0.44 is 0.0166667 below mu: exp(-4 * 0.0166667^2 / (2 * 0.5186)) = exp(-0.00107125)
    assert_values(weight, [1, 1, 0.9989293])


def test_soft_weighs_aligned_predictions_and_keeps_their_labels() -> None:
    """pbar of the first batch: (0.48, 0.76/3, 0.8/3). The third row aligned: (0.9167, 0.6316, 1.5)
    / 3.0482, so its weight is that of class 2 and its label stays 0."""
    soft = rule("soft", confidence_ema=0.5)
    classes, weight = soft(THREE, torch.arange(3))
    assert classes.tolist() == [0, 1, 0]
    assert_values(soft.mu, 0.456267)
    assert_values(soft.variance, 0.504725)
    assert weight.tolist() == [1, 1, 1]
    # Then rows 3 and 2: confidences 0.440378 and 0.537856, their mean 0.489117, s^2 0.004751.
    classes, weight = soft(THREE[[2, 1]], torch.arange(2))
    assert_values(soft.mu, 0.472692)
    assert_values(soft.variance, 0.254738)
    assert_values(weight, [0.991836, 1])


def test_one_image_has_no_variance() -> None:
    soft = rule("soft", confidence_ema=0.5)
    _, weight = soft(THREE[:1], torch.arange(1))
    assert float(soft.variance) == 1 and soft.mu.isfinite() and weight.isfinite().all()


def test_soft_is_finite_without_spread() -> None:
    soft = rule("soft", confidence_ema=0.0)
    for p in (rows((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)), torch.full((2, 3), 1 / 3)):
        assert soft(p, torch.arange(2))[1].isfinite().all()


def test_the_width_scales_the_fall() -> None:
    weights = {}
    for width in (0.0, 1.0, 2.0):
        soft = rule("soft", confidence_ema=0.5, soft_alignment=False, soft_width=width)
        weights[width] = soft(THREE, torch.arange(3))[1][2]
    assert weights[0.0] == 1
    torch.testing.assert_close(weights[1.0] ** 4, weights[2.0])


# All of them


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_is_built_by_its_name(kind: str) -> None:
    assert type(rule(kind)) is KINDS[kind]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence must be one of fixed, flex, free, soft, not"):
        FixMatch.Config(confidence="flexmatch")


@pytest.mark.parametrize("kind", ["flex", "free", "soft"])
def test_evaluation_changes_no_state(kind: str) -> None:
    found = rule(kind, threshold=0.5)
    found(FIRST, torch.arange(4))
    before = {key: value.clone() for key, value in found.state_dict().items()}
    found.eval()(SECOND, torch.arange(4))
    assert all(torch.equal(value, before[key]) for key, value in found.state_dict().items())


@pytest.mark.parametrize("kind", ["flex", "free", "soft"])
def test_state_goes_through_a_checkpoint(kind: str) -> None:
    old, new = rule(kind), rule(kind)
    old(FIRST, torch.arange(4))
    new.load_state_dict(old.state_dict())
    for found in zip(old(SECOND, torch.arange(4)), new(SECOND, torch.arange(4)), strict=True):
        assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_predictions(kind: str) -> None:
    classes, weight = rule(kind)(SECOND, torch.arange(4))
    assert classes.tolist() == [0, 1, 2, 1]
    assert not weight.requires_grad and bool(((weight >= 0) & (weight <= 1)).all())


@pytest.mark.parametrize(("name", "kind"), METHODS.items())
def test_the_methods_are_fixmatch_with_another_rule(name: str, kind: str) -> None:
    config = load(name)[1].Config()
    plain = FixMatch.Config(confidence=kind, logit_adjustment=0.0)
    assert vars(config) == vars(plain)


@pytest.mark.parametrize("name", ["abc", "crest_plus", "daso", "darp"])
@pytest.mark.parametrize("kind", ["flex", "free", "soft"])
def test_other_methods_take_any_rule(name: str, kind: str, tmp_path: Path) -> None:
    """A step of them with each, and after it the rule has seen the batch."""
    data, _ = subjects.make_data()
    algorithm: Any = contract.subject(name).make(data, confidence=kind, steps=1, keep="last")
    before = subjects.digest(algorithm.confidence)
    subjects.fit(algorithm, data, tmp_path)
    subjects.demand_finite(algorithm, "after a step")
    assert type(algorithm.confidence) is KINDS[kind]
    assert subjects.digest(algorithm.confidence) != before


def test_the_fairness_loss_reaches_the_objective_of_two_strong_views() -> None:
    data, _ = subjects.make_data()
    algorithm, ctx = contract.subject("abc").started(data, confidence="free")
    losses = subjects.backward(algorithm, next(algorithm.batches(data, 0)), ctx)
    assert float(losses["fairness"].detach()) < 0


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_unlabeled_images_help(name: str) -> None:
    """Mean recall on the mixture, against labeled images alone with the same plain loss."""
    without = recalls("supervised", seed=1, logit_adjustment=0.0).mean()
    assert recalls(name, seed=1).mean() > without + 0.03
