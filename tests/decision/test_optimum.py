"""Rules against the optimum over all randomised classifiers, on posteriors that are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_selmix import objectives, posthoc
from ssl_selmix.decision.goal import Goal, build
from ssl_selmix.decision.solvers import Sample, best_mixture, bisect_ratio, ratio_parts
from tests.decision.exact import BestMixture, finite_support, gaussian

NAMES = list(objectives.DESCRIPTIONS)
HALF_A_POINT = 0.005


def optimum(name: str, counts: np.ndarray) -> float:
    """By linear programs; coverages are bounded at 0.95/K."""
    k = counts.shape[1]
    best, single = BestMixture(counts), np.arange(k)
    split = (single >= k - max(1, round(k / 10))).astype(int)
    if name.startswith("min_"):
        return best.worst(split if name == "min_ht_recall" else single)
    bounded = split if "_ht_" in name else single if name.endswith("coverage") else None
    return best.mean(name.partition("_")[0], best.limits(bounded, 0.95 / k))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("num_classes", "points"), [(3, 60), pytest.param(10, 60, marks=pytest.mark.slow)]
)
def test_a_mixture_is_within_half_a_point_of_the_linear_program(
    name: str, num_classes: int, points: int
) -> None:
    posteriors, labels, counts = finite_support(num_classes, points)
    best = optimum(name, counts)
    objective = objectives.get(name, num_classes)
    found = posthoc(
        posteriors, labels, objective=objective, rule="mixture", probabilities=True, folds=2
    )
    assert best - HALF_A_POINT < found.after["objective"] < best + 1e-4
    slacks = [value for key, value in found.after.items() if key.startswith("slack_")]
    assert min([0.0, *slacks]) > -1e-3


@pytest.mark.parametrize("name", ["mean_recall", "g_mean", "h_mean"])
@pytest.mark.parametrize("num_classes", [3, 10])
def test_offsets_are_within_half_a_point_where_images_are_many(name: str, num_classes: int) -> None:
    posteriors, labels, counts = finite_support(num_classes, 300, images=20)
    found = posthoc(posteriors, labels, objective=name, probabilities=True)
    assert found.after["objective"] > optimum(name, counts) - HALF_A_POINT


@pytest.mark.parametrize("rule", ["gains", "mixture"])
def test_a_richer_rule_is_never_worse_on_its_own_images(rule: str) -> None:
    scores, labels = gaussian(5, 500, spread=0.7)
    for name in ("h_mean", "mean_recall_min_coverage"):
        plain = posthoc(scores, labels, objective=name, folds=2)
        rich = posthoc(scores, labels, objective=name, rule=rule, folds=2)
        assert rich.after["objective"] >= plain.after["objective"] - 1e-6
        assert rich.after.get("slack_min_coverage", 0) > -1e-3


def test_worst_class_prices_are_multipliers() -> None:
    posteriors, labels, counts = finite_support(4, 50)
    mass = np.bincount(labels) / len(labels)
    scores = np.log(np.maximum(posteriors, 1e-12))
    sample = Sample(scores, labels, 1.0, np.ones(4), mass)
    goal = Goal(objectives.get("min_recall", 4), mass, 1e-7)
    found = [sample.confusion(np.eye(4)), sample.confusion(np.diag(1 / mass))]
    for _ in range(40):
        priced = best_mixture(goal, found)
        found.append(sample.confusion(priced.gain))
    assert priced.value == pytest.approx(BestMixture(counts).worst(np.arange(4)), abs=2e-3)
    assert (priced.gain.diagonal() >= 0).all()


def micro_f1(confusion: Tensor) -> Tensor:
    """Class 0 means "none"."""
    hits = confusion.diagonal()[1:].sum()
    total = confusion.sum()
    return 2 * hits / (2 * total - confusion[0].sum() - confusion[:, 0].sum())


def jaccard_of_first(confusion: Tensor) -> Tensor:
    return confusion[0, 0] / (confusion[0].sum() + confusion[1:, 0].sum())


@pytest.mark.slow
@pytest.mark.parametrize("function", [micro_f1, jaccard_of_first])
def test_ratios_of_linear_functions_are_recognised_and_solved_by_bisection(function: Any) -> None:
    posteriors, labels, _ = finite_support(3, 60)
    mass = np.bincount(labels) / len(labels)
    goal = Goal(build(function, 3, ()), mass, 1e-7)
    parts = ratio_parts(goal)
    assert parts is not None
    scores = np.log(np.maximum(posteriors, 1e-12))
    sample = Sample(scores, labels, 1.0, np.ones(3), mass)
    _, confusion = bisect_ratio(sample.confusion, *parts)
    best = float(function(torch.from_numpy(confusion)))
    # A ratio is largest at a deterministic rule, so random gain matrices are no better.
    generator = np.random.default_rng(0)
    for _ in range(300):
        other = sample.confusion(generator.normal(size=(3, 3)))
        assert float(function(torch.from_numpy(other))) <= best + 1e-9
    found = posthoc(posteriors, labels, objective=function, rule="gains", probabilities=True)
    assert "bisection" in found.notes[0]
    assert found.after["objective"] >= best - 1e-6


@pytest.mark.slow
def test_macro_f1_is_no_ratio_but_is_raised() -> None:
    scores, labels = gaussian(4, 400, spread=0.7)
    mass = np.bincount(labels) / len(labels)
    assert ratio_parts(Goal(build(objectives.macro_f1, 4, ()), mass, 1e-7)) is None
    found = posthoc(scores, labels, objective=objectives.macro_f1)
    assert found.cross_fitted["objective"] > found.before["objective"] + 0.02
    assert "local search" in found.notes[0]
