"""Coordinate ascent is exact: against every break point, against a grid, and in its bookkeeping."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_selmix import objectives
from ssl_selmix.decision.fit import fit, settings_of
from ssl_selmix.decision.goal import Goal, build, recognise
from ssl_selmix.decision.polish import Ascent, best_classes, confusion_of, polish
from tests.decision.exact import finite_support, gaussian

Array = NDArray[np.float64]
NAMES = list(objectives.DESCRIPTIONS)


def worst_precision(confusion: Tensor) -> Tensor:
    """Recalls and coverages do not tell it: it needs the whole matrix."""
    return (confusion.diagonal() / confusion.sum(0).clamp_min(1e-9)).min()


def goal_of(what: str, num_classes: int, mass: Array) -> Goal:
    found = {"macro_f1": objectives.macro_f1, "worst_precision": worst_precision}.get(what, what)
    return Goal(build(found, num_classes, ()), mass, 1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_the_nine_objectives_are_recognised_by_what_they_compute(
    name: str, num_classes: int
) -> None:
    known = recognise(objectives.get(name, num_classes))
    assert known is not None
    assert (known.covered is not None) == name.endswith("coverage")
    if known.covered is not None:
        assert known.least == pytest.approx(0.95 / num_classes)


def test_other_functions_are_not_recognised() -> None:
    for function in (objectives.macro_f1, worst_precision, lambda c: c.trace() / c.sum()):
        assert recognise(objectives.get(function, 4)) is None
    bound = objectives.precision_at_least(0, 0.5)
    assert recognise(objectives.get("h_mean", 4, constraints=[bound])) is None
    # One's own formula is recognised as well, and options are read off the values.
    own = objectives.get(lambda c: (c.diagonal() / c.sum(1)).mean(), 4)
    assert recognise(own) is not None
    half = recognise(objectives.get("mean_recall_min_coverage", 4, alpha=0.5))
    assert half is not None and half.least == pytest.approx(0.125)
    tail = recognise(objectives.get("min_ht_recall", 4, tail=[0, 1]))
    assert tail is not None and tail.groups.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("what", [*NAMES, "macro_f1", "worst_precision"])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_a_line_search_finds_the_best_of_all_break_points(what: str, num_classes: int) -> None:
    scores, labels = gaussian(num_classes, 90, spread=0.8, seed=num_classes)
    mass = np.bincount(labels) / len(labels)
    goal = goal_of(what, num_classes, mass)
    generator = np.random.default_rng(1)
    for j in range(num_classes):
        start = generator.normal(size=num_classes)
        ascent = Ascent(scores, labels, goal, start)
        before = goal.utility(ascent.confusion())
        ascent.improve(j)
        found = goal.utility(ascent.confusion())
        margins = np.sort(np.delete(scores + start, j, 1).max(1) - scores[:, j])
        places = [margins[0] - 1, *((margins[1:] + margins[:-1]) / 2), margins[-1] + 1]
        best = before
        for place in places:
            offsets = start.copy()
            offsets[j] = place
            matrix = confusion_of(labels, best_classes(scores, offsets), mass)
            best = max(best, goal.utility(matrix))
        assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_two_best_classes_stay_right(dtype: type) -> None:
    scores, labels = gaussian(6, 300, spread=0.7, seed=0)
    scores = scores.astype(dtype)
    goal = goal_of("h_mean", 6, np.full(6, 1 / 6))
    ascent = Ascent(scores, labels, goal, np.zeros(6))
    for _ in range(3):
        ascent.sweep()
    values = scores + ascent.offsets
    order = np.argsort(-values, axis=1)
    assert (ascent.best == order[:, 0]).all() and (ascent.second == order[:, 1]).all()
    assert np.abs(ascent.best_value - values.max(1)).max() < 1e-5


@pytest.mark.parametrize("what", [*NAMES, "macro_f1", "worst_precision"])
def test_a_sweep_never_makes_it_worse(what: str) -> None:
    scores, labels = gaussian(4, 200, spread=0.6, seed=3)
    goal = goal_of(what, 4, np.bincount(labels) / len(labels))
    value, offsets = -np.inf, np.zeros(4)
    for _ in range(4):
        offsets, predicted = polish(scores, labels, goal, offsets, 1)
        reached = goal.utility(confusion_of(labels, predicted, goal.mass))
        assert reached >= value - 1e-12
        value = reached


@pytest.mark.parametrize("what", [*NAMES, "macro_f1"])
@pytest.mark.parametrize("seed", range(3))
def test_three_classes_reach_the_best_of_a_grid(what: str, seed: int) -> None:
    scores, labels = gaussian(3, 300, spread=0.8, seed=seed)
    mass = np.bincount(labels) / len(labels)
    goal = goal_of(what, 3, mass)
    found = fit(scores, labels, settings_of(goal, "offsets", True, False))
    assert found.rule.vector is not None
    reached = goal.utility(confusion_of(labels, best_classes(scores, found.rule.vector), mass))
    steps = np.linspace(-6, 6, 49)
    grid = max(
        goal.utility(confusion_of(labels, best_classes(scores, np.array([0, a, b])), mass))
        for a, b in itertools.product(steps, steps)
    )
    # A point is 1e-2; the mean that decides between equals is worth a thousandth of its own.
    assert reached >= grid - 1e-5


def test_a_class_at_recall_zero_is_found_again() -> None:
    posteriors, labels, _ = finite_support(4, 40, seed=1)
    goal = goal_of("g_mean", 4, np.bincount(labels) / len(labels))
    lost = np.array([0.0, 0.0, -50.0, -50.0])  # two classes that are never predicted
    _, predicted = polish(np.log(posteriors + 1e-9), labels, goal, lost, 3)
    assert (np.bincount(predicted[predicted == labels], minlength=4) > 0).all()


def test_values_are_in_torch_on_the_way() -> None:
    matrix = confusion_of(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.5, 0.5]))
    assert matrix.tolist() == [[0.25, 0.25], [0.0, 0.5]]
    assert objectives.get("mean_recall", 2).metric(torch.from_numpy(matrix)) == 0.75
