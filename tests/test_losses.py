"""Losses, and FixMatch and Supervised around them, against recorded runs of published code."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from tests.helpers.golden import Vectors, assert_reproduces, cases, part, read, run_step

FIXMATCH, ADJUSTED = read("fixmatch.npz"), read("logit_adjustment.npz")
LOSSES = read("fixmatch_losses.npz")

PLAIN_STEPS = [
    "kek.T1",
    "kek.T05",
    "kek.mu7_lam05",
    "daso_fixmatch.plain",
    "daso_fixmatch.allmasked",
]
ADJUSTED_STEPS = ["daso_fixmatch.la_tau1", "daso_fixmatch.la_tau2"]
SUPERVISED_STEPS = ["daso_supervised.la_tau1", "daso_supervised.la_tau2"]
ELSEWHERE = ["kek.lr", "kek.ema", "daso_lr", "daso_ema"]  # test_engine.py
# A permutation of rows that spreads a batch over GPUs and is undone after the forward pass. Ours
# is not permuted: the network sees all rows of all views at once, so there is nothing to compare.
WITHOUT_COUNTERPART = ["kek.interleave"]


def test_every_recorded_case_is_compared_or_excused() -> None:
    listed = [*PLAIN_STEPS, *ELSEWHERE, *WITHOUT_COUNTERPART, "torchssl.hard", "torchssl.soft"]
    assert cases(FIXMATCH) == set(listed)
    assert cases(ADJUSTED) == {*ADJUSTED_STEPS, *SUPERVISED_STEPS, "daso_posthoc"}


# The algorithms, on a network that returns recorded logits.


def fixmatch_step(vectors: Vectors, case: str, adjustment: float) -> Vectors:
    """All quantities that are recorded of a FixMatch step."""
    given = part(vectors, case, "in")
    threshold, temperature = float(given["threshold"]), float(given.get("T", 1.0))
    weight = float(given.get("lambda_u", 1.0))
    algorithm, got = run_step(
        "fixmatch",
        given,
        threshold=threshold,
        temperature=temperature,
        lambda_u=weight,
        logit_adjustment=adjustment,
    )
    p = (given["logits_u_w"] / temperature).softmax(1)
    (classes, mask), confidence = losses.pseudo_label(p, threshold), p.amax(1)
    assert float(got["mask_rate"]) == float(mask.mean())
    (log_pi,) = (b for n, b in algorithm.named_buffers() if n.endswith("log_pi"))
    return got | {
        "Lx": got["labeled"],
        "Lu": got["unlabeled"] / weight,
        "mask": mask,
        "targets_u": classes,
        "max_probs": confidence,
        "confidence": confidence,
        "adjusted_logits_x": given["logits_x"] + adjustment * log_pi,
    }


@pytest.mark.parametrize("case", PLAIN_STEPS)
def test_fixmatch_reproduces_published_steps(case: str) -> None:
    assert_reproduces(FIXMATCH, case, fixmatch_step(FIXMATCH, case, adjustment=0.0))


@pytest.mark.parametrize("case", ADJUSTED_STEPS)
def test_fixmatch_reproduces_logit_adjusted_steps(case: str) -> None:
    tau = float(ADJUSTED[f"{case}.in.tau"])
    assert_reproduces(ADJUSTED, case, fixmatch_step(ADJUSTED, case, adjustment=tau))


@pytest.mark.parametrize("case", SUPERVISED_STEPS)
def test_supervised_reproduces_logit_adjusted_steps(case: str) -> None:
    given = part(ADJUSTED, case, "in")
    _, got = run_step("supervised", given, logit_adjustment=float(given["tau"]))
    assert_reproduces(ADJUSTED, case, got | {"Lx": got["labeled"]})


def test_temperature_sharpens_before_the_threshold() -> None:
    kept = {case: int(FIXMATCH[f"kek.{case}.out.mask"].sum()) for case in ("T1", "T05")}
    assert kept == {"T1": 7, "T05": 12}


def test_weak_logits_get_no_gradient_at_all() -> None:
    got = fixmatch_step(FIXMATCH, "kek.T1", adjustment=1.0)
    assert not got["grad_logits_u_w"].any()


def test_all_masked_is_exactly_zero_and_still_in_the_graph() -> None:
    got = fixmatch_step(FIXMATCH, "daso_fixmatch.allmasked", adjustment=0.0)
    assert float(got["unlabeled"].detach()) == 0
    assert got["unlabeled"].requires_grad
    assert torch.isfinite(got["grad_logits_u_s"]).all() and not got["grad_logits_u_s"].any()


def test_class_without_labeled_images_leaves_the_step_finite() -> None:
    given = part(FIXMATCH, "kek.T1", "in")
    counts = torch.arange(10).double()
    given = given | {"counts": counts, "y": given["y"].clamp_min(1)}
    _, got = run_step("fixmatch", given, logit_adjustment=1.0)
    assert all(bool(torch.isfinite(value).all()) for value in got.values())


def test_torchssl_hard_ignores_the_temperature() -> None:
    given = part(FIXMATCH, "torchssl.hard", "in")
    strong = given["logits_u_s"].clone().requires_grad_()
    p = given["logits_u_w"].softmax(1)
    classes, mask = losses.pseudo_label(p, float(given["threshold"]))
    loss = losses.masked_cross_entropy(strong, classes, mask)
    (gradient,) = torch.autograd.grad(loss, strong)
    got = {"Lu": loss, "mask_mean": mask.mean(), "grad_logits_u_s": gradient}
    assert_reproduces(FIXMATCH, "torchssl.hard", got)


def test_torchssl_soft_targets_are_sharpened_and_confidence_is_not() -> None:
    given = part(FIXMATCH, "torchssl.soft", "in")
    weak = given["logits_u_w"]
    _, mask = losses.pseudo_label(weak.softmax(1), float(given["threshold"]))
    targets = (weak / float(given["T"])).softmax(1)
    loss = losses.masked_cross_entropy(given["logits_u_s"], targets, mask)
    assert_reproduces(FIXMATCH, "torchssl.soft", {"Lu": loss, "mask_mean": mask.mean()})


def test_posthoc_adjustment_is_arithmetic_of_the_log_prior() -> None:
    given = part(ADJUSTED, "daso_posthoc", "in")
    logits, y = given["logits"], given["y"]
    adjusted = logits - losses.log_prior(given["prior"])
    got = {
        "adjusted_logits": adjusted,
        "cost": F.cross_entropy(logits, y),
        "cost_la": F.cross_entropy(adjusted, y),
        "top1": 100 * (logits.argmax(1) == y).double().mean(),
        "top1_la": 100 * (adjusted.argmax(1) == y).double().mean(),
    }
    assert_reproduces(ADJUSTED, "daso_posthoc", got)


def test_selmix_pretraining_losses() -> None:
    logits, y, log_pi = LOSSES["logits_x"], LOSSES["y"], losses.log_prior(LOSSES["prior"])
    classes, mask = losses.pseudo_label(LOSSES["logits_w"].softmax(1), 0.95)
    got = {
        "sup": losses.logit_adjusted(logits, y, log_pi, tau=0.0),
        "sup_LA": losses.logit_adjusted(logits, y, log_pi),
        "unsup": losses.masked_cross_entropy(LOSSES["logits_s"], classes, mask),
        "mask_mean": mask.mean().float(),
    }
    for name, value in got.items():
        torch.testing.assert_close(value, LOSSES[name], rtol=1e-5, atol=1e-5, msg=name)


# The losses alone.


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


PRIOR = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 0])


def test_log_prior_is_finite_for_an_absent_class() -> None:
    log_pi = losses.log_prior(torch.tensor([0.75, 0.25, 0.0]))
    assert torch.isfinite(log_pi).all()
    torch.testing.assert_close(log_pi[:2].exp(), torch.tensor([0.75, 0.25]))
    assert float(log_pi[2]) < -20


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_gradient_of_the_adjusted_loss(tau: float) -> None:
    logits = random(5, 3).requires_grad_()
    losses.logit_adjusted(logits, LABELS, PRIOR.log(), tau).backward()
    adjusted = (logits.detach() + tau * PRIOR.log()).softmax(1)
    torch.testing.assert_close(logits.grad, (adjusted - F.one_hot(LABELS, 3)) / 5)


def test_no_adjustment_is_plain_cross_entropy_even_for_an_infinite_prior() -> None:
    log_pi = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    got = losses.logit_adjusted(random(5, 3), LABELS, log_pi, tau=0.0)
    assert torch.equal(got, F.cross_entropy(random(5, 3), LABELS))


def test_adjustment_does_not_depend_on_the_scale_of_the_prior() -> None:
    counts = losses.logit_adjusted(random(5, 3), LABELS, (1000 * PRIOR).log())
    torch.testing.assert_close(
        counts, losses.logit_adjusted(random(5, 3), LABELS, PRIOR.log()), rtol=1e-12, atol=0
    )


def test_confidence_equal_to_the_threshold_passes() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, -1e-3]])
    assert losses.pseudo_label(logits.softmax(1), 0.5)[1].tolist() == [1, 1]
    assert losses.pseudo_label(logits.softmax(1), 0.5001)[1].tolist() == [0, 1]


def test_masked_loss_is_divided_by_all_images() -> None:
    logits, mask = random(5, 3), torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64)
    each = F.cross_entropy(logits, LABELS, reduction="none")
    got = losses.masked_cross_entropy(logits, LABELS, mask)
    torch.testing.assert_close(got, (each[0] + each[3]) / 5)


def test_nothing_kept_is_zero_with_a_zero_gradient() -> None:
    logits = random(5, 3).requires_grad_()
    loss = losses.masked_cross_entropy(logits, LABELS, torch.zeros(5))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def test_soft_targets_agree_with_hard_ones() -> None:
    logits, mask = random(5, 3), torch.tensor([1.0, 0, 1, 1, 0])
    soft = losses.masked_cross_entropy(logits, F.one_hot(LABELS, 3).double(), mask)
    torch.testing.assert_close(soft, losses.masked_cross_entropy(logits, LABELS, mask))


def test_mixed_features_are_a_convex_combination() -> None:
    first, second, weight = random(4, 6), random(4, 6, seed=1), torch.rand(4).double()
    expected = weight[:, None] * first + (1 - weight[:, None]) * second
    torch.testing.assert_close(losses.mix_features(first, second, weight), expected)


def test_mixing_weight_is_the_share_of_the_first() -> None:
    first, second = random(4, 6), random(4, 6, seed=1)
    assert torch.equal(losses.mix_features(first, second, torch.ones(4).double()), first)
    assert torch.equal(losses.mix_features(first, second, torch.zeros(4).double()), second)


def test_gradients_flow_through_both_mixed_features() -> None:
    first, second = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_()
    weight = torch.tensor([0.6, 0.7, 0.8, 1.0], dtype=torch.float64)
    losses.mix_features(first, second, weight).sum().backward()
    torch.testing.assert_close(first.grad, weight[:, None].expand(4, 6))
    torch.testing.assert_close(second.grad, (1 - weight)[:, None].expand(4, 6))
