"""What a decision rule is chosen for: a figure of the confusion matrix, and constraints on it.

Everything here sees the joint confusion matrix, rows = true class, whose rows have the masses of
the classes at deployment. Shape legend: K classes, B candidates, G groups of classes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_selmix import objectives
from ssl_selmix.gains import confusion_gradient
from ssl_selmix.metrics import from_confusion, tail_size

Array = NDArray[Any]
Figure = Callable[[torch.Tensor], Any]  # of a joint confusion matrix (K, K): one number
Constraint = Figure | tuple[str, Figure]

# A violated constraint costs this much of the figure per unit. It is the largest multiplier of
# `objectives`, far above what a unit of coverage is worth, so that the penalty is exact.
PENALTY = 100.0
# Where only the worst class counts, the mean decides between rules that serve it equally well.
TIE = 1e-3
# A rule for the worst class may cost this much of the best mean recall, and no more.
MEAN_FLOOR = 0.02
# Share of a uniform row that gradients see: a class at recall 0 keeps a gradient that is no spike.
SMOOTHING = 1e-3
# Of the soft minimum that stands for a worst class where it is combined with other constraints.
SHARPNESS = 1000.0


@dataclass(frozen=True)
class Known:
    """A figure of recalls and coverages whose change along a line is a running sum.

    `mean` is how the recalls are averaged: "mean", "g", "h", or "min" over groups of classes.
    """

    mean: str
    groups: Array  # (K,) the group of each class, for "min"
    covered: Array | None = None  # (K,) the group of each class whose mean coverage is bounded
    least: float = 0.0  # that bound, a share of all predictions
    floor: float = 1e-7  # recalls below count as this in geometric and harmonic means
    least_mean: float = 0.0  # the mean recall that a rule for the worst class has to keep
    penalty: float = PENALTY

    def transformed(self, recall: Array) -> Array:
        """The function of a recall whose mean over classes ranks rules, for "mean", "g", "h"."""
        if self.mean == "g":
            return np.asarray(np.log(np.maximum(recall, self.floor)))
        if self.mean == "h":
            return np.asarray(-1.0 / np.maximum(recall, self.floor))
        return recall

    def restored(self, mean: Array) -> Array:
        """From a mean of `transformed` back to the unit of a recall."""
        if self.mean == "g":
            return np.asarray(np.exp(mean))
        return np.asarray(-1.0 / mean) if self.mean == "h" else mean

    def utility(self, recall: Array, coverage: Array) -> Array:
        """The figure less what violated constraints cost. Shape: (..., K) twice -> (...)."""
        mean = recall.mean(-1)
        if self.mean == "min":
            value = group_means(recall, self.groups).min(-1) + TIE * mean
        else:
            value = self.restored(self.transformed(recall).mean(-1))
        lacking = np.maximum(self.least_mean - mean, 0)
        if self.covered is not None:
            short = self.least - group_means(coverage, self.covered)
            lacking = lacking + np.maximum(short, 0).sum(-1)
        return np.asarray(value - self.penalty * lacking)


def group_means(values: Array, groups: Array) -> Array:
    """Means over groups of classes. Shape: (..., K), (K,) -> (..., G)."""
    member = np.eye(int(groups.max()) + 1)[groups]
    return np.asarray(values @ (member / member.sum(0)))


class Ungraded(objectives.Objective):
    """A function of the confusion matrix that cannot be differentiated, with constraints."""

    def __init__(
        self, num_classes: int, function: Any, terms: Sequence[tuple[str, Any]] = ()
    ) -> None:
        super().__init__(num_classes)
        self.function, self.terms = function, tuple(terms)

    def _value(self, confusion: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(float(self.function(confusion)), dtype=torch.float64)

    def _slacks(self, confusion: torch.Tensor) -> dict[str, float]:
        return {name: float(term(confusion)) for name, term in self.terms}


class Goal:
    """An objective with its constraints, and the class masses at which it is judged.

    Attributes:
        known: how to follow the figure along a line, if it is one of recalls and coverages.
        graded: whether it can be differentiated.
        balanced: whether it is blind to how many images each class has.
        concave: whether it is known to be concave, so that Frank-Wolfe finds the optimum.
    """

    def __init__(self, objective: objectives.Objective, mass: Array, least_recall: float) -> None:
        self.objective, self.mass, self.penalty = objective, mass, PENALTY
        self.num_classes = objective.num_classes
        self.graded = not isinstance(objective, Ungraded)
        self._smooth = _sharpened(objective)
        found = recognise(objective)
        self.known = found and replace(found, floor=least_recall)
        self.concave = found is not None
        matrix = torch.from_numpy(_random_matrices(self.num_classes)[0])
        even = matrix / matrix.sum(1, keepdim=True) / self.num_classes
        self.balanced = abs(objective.metric(matrix) - objective.metric(even)) < 1e-9

    def with_least_mean(self, least: float) -> Goal:
        """The same goal under a floor on mean recall; only for a worst class."""
        return self._changed(least_mean=least)

    def with_margin(self, images: int) -> Goal:
        """The same goal, bounds on coverage raised by their standard error on so many images.

        A rule that just keeps a bound on the images it is fitted to misses it on half of all
        others. At most half of the way to the coverage of classes that all have the same is taken:
        what is left is needed to serve the objective.
        """
        if self.known is None or self.known.covered is None:
            return self
        classes = int(np.bincount(self.known.covered).min())
        share = min(classes * self.known.least, 1.0)
        error = float(np.sqrt(share * (1 - share) / images)) / classes
        room = max(1 / self.num_classes - self.known.least, 0.0)
        return self._changed(least=self.known.least + min(error, room / 2))

    def with_penalty(self, penalty: float) -> Goal:
        """The same goal, its constraints softer: coordinate ascent gets stuck at a sharp edge."""
        goal = self._changed(penalty=penalty)
        goal.penalty = penalty
        return goal

    def with_harmonic_mean(self) -> Goal:
        """The harmonic mean in the place of the worst class: every recall has a slope there."""
        return self._changed(mean="h", least_mean=0.0)

    def _changed(self, **fields: Any) -> Goal:
        goal = copy.copy(self)
        goal.known = self.known and replace(self.known, **fields)
        return goal

    def for_mean_recall(self) -> Goal:
        """Mean recall in the place of the objective."""
        return Goal(objectives.get("mean_recall", self.num_classes), self.mass, 1e-7)

    def utility(self, confusion: Array) -> float:
        """What rules are ranked by: the figure less what violated constraints cost. (K, K)."""
        if self.known is not None:
            balanced = confusion / confusion.sum(1, keepdims=True)
            return float(self.known.utility(balanced.diagonal(), balanced.mean(0)))
        given = torch.from_numpy(confusion)
        lacking = sum(max(0.0, -slack) for slack in self.objective.constraints(given).values())
        return self.objective.metric(given) - self.penalty * lacking

    def violated(self, confusion: Array) -> bool:
        """Whether a constraint is violated by more than rounding. (K, K)."""
        if self.known is not None and self.known.least_mean:
            recall = confusion.diagonal() / confusion.sum(1)
            if recall.mean() < self.known.least_mean - 1e-9:
                return True
        return self.objective.feasibility(torch.from_numpy(confusion)) < -1e-9

    def worse(self, confusion: Array, than: Array) -> bool:
        """Whether the objective is lower, or its own constraints are violated by more. (K, K)."""
        one, other = (torch.from_numpy(matrix) for matrix in (confusion, than))
        first, second = self.objective.feasibility(one), self.objective.feasibility(other)
        if abs(first - second) > 1e-9:
            return first < second
        return self.objective.metric(one) < self.objective.metric(other) - 1e-9

    @property
    def constrained(self) -> bool:
        """Whether there is any constraint, be it only the floor under a worst class."""
        even = torch.full((self.num_classes, self.num_classes), 1.0, dtype=torch.float64)
        floor = self.known is not None and self.known.least_mean > 0
        return floor or bool(self.objective.constraints(even))

    def gradient(self, confusion: Array) -> Array:
        """Derivative of `merit`: the gain matrix of the best rule at this point. (K, K)."""
        return self.merit_and_gradient(confusion)[1]

    def merit_and_gradient(self, confusion: Array) -> tuple[float, Array]:
        """The smooth stand-in that gradient methods raise, and its derivative. (K, K)."""
        values: list[torch.Tensor] = []

        def merit(given: torch.Tensor) -> torch.Tensor:
            values.append(self._merit(given))
            return values[-1]

        found = confusion_gradient(merit, torch.from_numpy(confusion))
        return float(values[-1].detach()), np.asarray(found.numpy())

    def _merit(self, confusion: torch.Tensor) -> torch.Tensor:
        rows = confusion.detach().sum(1, keepdim=True) / self.num_classes
        return self._smooth.merit((1 - SMOOTHING) * confusion + SMOOTHING * rows)

    def figures(self, confusion: Array) -> dict[str, Any]:
        """The figures of results.json that follow from labels, the objective, and all slacks."""
        given = torch.from_numpy(confusion)
        slacks = self.objective.constraints(given).items()
        return {
            "objective": self.objective.metric(given),
            **{f"slack_{name}": slack for name, slack in slacks},
            **from_confusion(given),
        }


def _sharpened(objective: objectives.Objective) -> objectives.Objective:
    """A copy whose soft minimum is at most half a point below the minimum, for 150 classes."""
    if not any(isinstance(part, objectives.WorstRecall) for part in objective.modules()):
        return objective
    sharp = copy.deepcopy(objective)
    for part in sharp.modules():
        if isinstance(part, objectives.WorstRecall):
            part.step_size = max(part.step_size, SHARPNESS)
    return sharp


def build(
    objective: str | Figure, num_classes: int, constraints: Sequence[Constraint]
) -> objectives.Objective:
    """The objective as `objectives.get` builds it, or a wrapped function without a gradient."""
    if callable(objective) and not isinstance(objective, objectives.Objective):
        even = torch.full((num_classes, num_classes), 1.0, dtype=torch.float64) + torch.eye(
            num_classes, dtype=torch.float64
        )
        even = (even / even.sum()).requires_grad_()
        try:
            with warnings.catch_warnings():  # torch warns where float() leaves it
                warnings.simplefilter("ignore", UserWarning)
                value: Any = objective(even)
        except RuntimeError:  # it leaves torch, which tensors that ask for a gradient refuse
            value = objective(even.detach())
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            _check_number(value)
            terms = [
                c if isinstance(c, tuple) else (f"g_{i}", c) for i, c in enumerate(constraints)
            ]
            return Ungraded(num_classes, objective, terms)
    return objectives.get(objective, num_classes, constraints=list(constraints))


def _check_number(value: Any) -> None:
    try:
        finite = bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise ValueError(
            f"an objective must return one finite number, got {value!r}; reduce it with .mean() or "
            "return a float"
        )


def _random_matrices(num_classes: int, count: int = 3) -> Array:
    generator = np.random.default_rng(0)
    matrices = generator.random((count, num_classes, num_classes)) + 0.05
    matrices += np.eye(num_classes) * generator.random((count, num_classes, 1)) * num_classes
    return np.asarray(matrices / matrices.sum((1, 2), keepdims=True))


def recognise(objective: objectives.Objective) -> Known | None:
    """The figure of recalls and coverages that an objective is, told by what it computes.

    Three random matrices tell: a function that agrees there to 1e-12 with one of the five means,
    and whose only constraints are bounds on coverage, can be followed along a line by sums.
    """
    num_classes = objective.num_classes
    matrices = _random_matrices(num_classes)
    metrics = np.array([objective.metric(torch.from_numpy(m)) for m in matrices])
    rows = matrices / matrices.sum(2, keepdims=True)
    recall, coverage = rows.diagonal(axis1=1, axis2=2), rows.mean(1)
    single = np.arange(num_classes)
    split = np.where(single >= num_classes - tail_size(num_classes), 1, 0)
    given = getattr(getattr(objective, "groups", None), "index", None)
    given = split if given is None or len(given) != num_classes else given.numpy()
    tried = [Known(mean, single) for mean in ("mean", "g", "h", "min")]
    tried += [Known("min", given), Known("min", split)]
    for known in tried:
        value = known.utility(recall, coverage) - (known.mean == "min") * TIE * recall.mean(1)
        if np.abs(value - metrics).max() < 1e-12:
            break
    else:
        return None
    slacks = [objective.constraints(torch.from_numpy(m)) for m in matrices]
    names = sorted(slacks[0])
    if not names:
        return known
    groups = given if names == ["head_coverage", "tail_coverage"] else single
    if names not in (["min_coverage"], ["head_coverage", "tail_coverage"]):
        return None
    smallest = group_means(coverage, groups).min(1)
    least = smallest - np.array([min(slack.values()) for slack in slacks])
    if np.ptp(least) > 1e-12:
        return None
    return replace(known, covered=groups, least=float(least[0]))
