"""What every objective promises: `ssl-selmix check ./my_objective.py:function`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssl_selmix import gains, objectives
from ssl_selmix.contract.subjects import Broken, demand, fit, make_data, subject
from ssl_selmix.decision.choose import posthoc
from ssl_selmix.objectives import Objective

CLASSES = (2, 3, 10)
SMOOTHING = 0.01  # what SelMix adds to rows by default


@dataclass(frozen=True)
class GoalSubject:
    """The objective under test: a shipped name, or ./file.py:function."""

    name: str

    def make(self, num_classes: int) -> Objective:
        """The objective for so many classes, the last one being rare."""
        shipped = self.name in objectives.DESCRIPTIONS
        tail = shipped and "tail" in objectives.option_names(self.name)
        options = {"tail": [num_classes - 1]} if tail else {}
        return objectives.get(self.name, num_classes, **options)


def matrices(num_classes: int) -> Iterator[tuple[str, Tensor]]:
    """Joint confusion matrices (K, K), float64, by what is the matter with them."""
    k = num_classes
    perfect = torch.eye(k, dtype=torch.float64) / k
    yield "where all is right", perfect
    yield "where predictions are spread evenly", torch.full_like(perfect, 1 / k**2)
    generator = torch.Generator().manual_seed(k)
    drawn = torch.rand(k, k, generator=generator, dtype=torch.float64) + 0.1
    yield "of random entries", drawn / drawn.sum()
    wrong = perfect.clone()
    wrong[0] = wrong[0].roll(1)
    yield "where a class is never right", wrong
    all_of_one = torch.zeros_like(perfect)
    all_of_one[:, 0] = 1 / k
    yield "where one class is always predicted", all_of_one


def check_value(subject: GoalSubject, folder: Path) -> None:
    """It is a finite number for every confusion matrix, with 2, 3 and 10 classes."""
    for k in CLASSES:
        objective = subject.make(k)
        for words, confusion in matrices(k):
            value = objective.value(confusion)
            demand(
                isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite()),
                f"it must be a finite scalar tensor, not {value!r}, for a matrix {words} "
                f"({k} classes); guard divisions with .clamp_min(1e-9)",
            )


def check_pure(subject: GoalSubject, folder: Path) -> None:
    """It leaves the matrix as it is, and says the same twice."""
    for words, confusion in matrices(3):
        objective, before = subject.make(3), confusion.clone()
        values = [float(objective.value(confusion)) for _ in range(2)]
        demand(torch.equal(confusion, before), "it changes the matrix; work on a copy")
        differ = values[0] < values[1] or values[0] > values[1]
        demand(not differ, f"it says {values[0]}, then {values[1]}, of a matrix {words}")


def check_slope(subject: GoalSubject, folder: Path) -> None:
    """Autograd finds its slope, as small differences do."""
    step = 1e-6
    for k in (2, 3):
        objective = subject.make(k)
        confusion = dict(matrices(k))["of random entries"].requires_grad_(True)
        value = objective.value(confusion)
        (slope,) = torch.autograd.grad(value, confusion)
        with torch.no_grad():
            for place in range(k * k):
                change = torch.zeros(k * k, dtype=torch.float64)
                change[place] = step
                ends = [objective.value(confusion + s * change.view(k, k)) for s in (1, -1)]
                expected = float(ends[0] - ends[1]) / (2 * step)
                found = float(slope.flatten()[place])
                demand(
                    abs(found - expected) <= 1e-4 * max(1.0, abs(expected)),
                    f"autograd gives {found:g} at entry {divmod(place, k)} where the function "
                    f"changes by {expected:g}; every step of it must be differentiable",
                )


def check_gain(subject: GoalSubject, folder: Path) -> None:
    """Gains of class pairs are finite, also where recalls are 0 or 1."""
    for k in CLASSES:
        for words, confusion in matrices(k):
            objective = subject.make(k)
            objective.update(confusion)
            try:
                gains.logit_gradient(objective, confusion, SMOOTHING)
            except ValueError as error:
                raise Broken(
                    f"it has no gradient for a matrix {words} ({k} classes): {error}; roots and "
                    "logarithms need .clamp_min(1e-9) inside"
                ) from error


def check_direction(subject: GoalSubject, folder: Path) -> None:
    """Larger is better: no matrix is better than the one where all is right."""
    for k in CLASSES:
        objective = subject.make(k)
        figures = {words: objective.metric(confusion) for words, confusion in matrices(k)}
        best = figures.pop("where all is right")
        for words, figure in figures.items():
            demand(
                not figure > best + 1e-9,
                f"it is {figure:g} {words} and {best:g} where all is right; SelMix raises it, so "
                "return the negative of a loss",
            )


def check_selmix(subject_: GoalSubject, folder: Path) -> None:
    """SelMix takes a few steps for it."""
    data, _ = make_data()
    made = subject("selmix", objective=subject_.name).make(data)
    fitted = fit(made, data, folder).algorithm
    if not all(bool(value.isfinite().all()) for value in fitted.net.state_dict().values()):
        raise Broken("weights are no numbers after 4 steps of SelMix")


def check_offsets(subject: GoalSubject, folder: Path) -> None:
    """Offsets can be chosen for it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    scores = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    scores[torch.arange(60), labels] += 1
    shipped = subject.name in objectives.DESCRIPTIONS
    objective = subject.name if shipped else objectives.import_function(subject.name)
    try:
        rule = posthoc(scores, labels, objective=objective, folds=2)
    except ValueError as error:
        raise Broken(
            f"no offsets can be chosen for it ({error}); it must be a number for every matrix, and "
            "larger where more is right"
        ) from error
    demand(rule.offsets.isfinite().all(), "the offsets are no numbers")


GOAL_CHECKS = (
    check_value,
    check_pure,
    check_slope,
    check_gain,
    check_direction,
    check_selmix,
    check_offsets,
)
