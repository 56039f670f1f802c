"""Rules that maximise a function of the confusion matrix, from posteriors.

The best rule for a linear function <W, C> predicts argmax_j sum_i eta_i W_ij, so every solver here
alternates between a gain matrix W and the confusion matrix of its rule. Only C is ever optimised:
it lies in the convex hull of the confusion matrices of such rules (Narasimhan et al., ICML 2015;
Tavker et al., NeurIPS 2020). Shape legend: N images, K classes, T rules of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize  # type: ignore[import-untyped]
from scipy.special import softmax  # type: ignore[import-untyped]

from ssl_selmix.decision.goal import PENALTY, TIE, Goal, group_means
from ssl_selmix.decision.polish import best_classes, confusion_of

Array = NDArray[Any]

_CHUNK = 4_000_000  # entries of posteriors that are made at once
_SMALLEST = 1e-9  # share of a mixture below which a rule is dropped


@dataclass(frozen=True)
class Sample:
    """Held-out scores with labels, and what makes posteriors of scores.

    `softmax(scores / temperature) * rows`, normalised, are the posteriors when classes have the
    given masses: `rows` holds both the correction of the scores' own prior and the change of prior.
    """

    scores: Array  # (N, K)
    labels: Array  # (N,)
    temperature: float
    rows: Array  # (K,)
    mass: Array  # (K,) of the rows of a confusion matrix

    def scaled(self, gain: Array) -> Array:
        """The gain matrix that does on softmax(scores / temperature) what this does on posteriors.

        A factor of a row of the gains and one of a class's posterior are the same. Shape: (K, K).
        """
        gain = gain * self.rows[:, None]
        return np.asarray(gain / max(float(np.abs(gain).max()), 1e-300))

    def confusion(self, gain: Array) -> Array:
        """The confusion matrix of a gain rule on the posteriors. Shape: (K, K) -> (K, K)."""
        return self.of(gain_rule(self.scores, self.scaled(gain), self.temperature))

    def of(self, predicted: Array) -> Array:
        """The confusion matrix of predictions (N,). Shape: (K, K)."""
        return confusion_of(self.labels, predicted, self.mass)

    def subset(self, rows: Array) -> Sample:
        """The same for some of the images."""
        return replace(self, scores=self.scores[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class Mixture:
    """Gain rules, each applied to a share of all images; `confusion` is the expected one."""

    gains: tuple[Array, ...]  # T of (K, K), on the posteriors of the sample
    shares: Array  # (T,), sum to 1
    confusion: Array  # (K, K)


def gain_scores(scores: Array, gain: Array, temperature: float = 1.0) -> Array:
    """Expected gain of every class: sum_i eta_i W_ij. Shape: (N, K), (K, K) -> (N, K)."""
    return np.asarray(softmax(scores / temperature, axis=1) @ gain.astype(scores.dtype))


def gain_rule(scores: Array, gain: Array, temperature: float = 1.0) -> Array:
    """The class of largest expected gain, the first of equals. Shape: (N, K) -> (N,)."""
    rows = max(1, _CHUNK // scores.shape[1])
    parts = [
        gain_scores(scores[i : i + rows], gain, temperature).argmax(1)
        for i in range(0, len(scores), rows)
    ]
    return np.concatenate(parts)


def frank_wolfe(
    confusion_of_gain: Callable[[Array], Array],
    gradient: Callable[[Array], Array],
    start: Array,
    steps: int,
) -> tuple[list[Array], list[Array], Array]:
    """Frank-Wolfe with the steps 2/(t + 2) of the papers; the first forgets the start.

    Args:
        confusion_of_gain: what a gain matrix (K, K) achieves, (K, K).
        gradient: of the function to maximise, at a confusion matrix.
        start: confusion matrix (K, K).
        steps: how many rules to find.

    Returns:
        The gain matrices, the confusion matrices of their rules, and the shares of the mixture
        whose confusion matrix is the one that Frank-Wolfe ends at.
    """
    point, gains, found, shares = start, [], [], np.zeros(0)
    for t in range(steps):
        gains.append(gradient(point))
        found.append(confusion_of_gain(gains[-1]))
        step = 2 / (t + 2)
        point = (1 - step) * point + step * found[-1]
        shares = np.append((1 - step) * shares, step)
    return gains, found, shares


def bisect_ratio(
    confusion_of_gain: Callable[[Array], Array],
    numerator: Array,
    denominator: Array,
    iterations: int = 50,
) -> tuple[Array, Array]:
    """Maximise <A, C> / <B, C> by bisection on its level: the gain matrix, and C at the best rule.

    A level g can be reached if the best rule for A - gB reaches it.

    Shape: numerator, denominator (K, K) -> (K, K), (K, K).
    """
    low, high = 0.0, 1.0
    best = np.eye(len(numerator)) - 1
    for _ in range(iterations):
        level = (low + high) / 2
        gain = numerator - level * denominator
        found = confusion_of_gain(gain)
        if (numerator * found).sum() >= level * (denominator * found).sum():
            low, best = level, gain
        else:
            high = level
    return best, confusion_of_gain(best)


def ratio_parts(goal: Goal) -> tuple[Array, Array] | None:
    """A and B if the figure is <A, C> / <B, C> on all joint matrices, else None.

    A ratio f of linear functions has <B, C> f(C + E) = <A, C + E> - f(C + E) <B, E>, which is
    linear in the unknown A and B. They are taken from the values at unit matrices, and the guess is
    kept only where it agrees with the figure at random matrices.
    """
    if not goal.graded or goal.known is not None or goal.num_classes > 10 or goal.constrained:
        return None
    generator = np.random.default_rng(1)
    size = goal.num_classes**2
    points = generator.random((3 * size + 20, size)) + 0.05
    points /= points.sum(1, keepdims=True)
    shape = (goal.num_classes, goal.num_classes)
    values = np.array([goal.utility(p.reshape(shape)) for p in points])
    fit = slice(0, 2 * size + 20)
    system = np.concatenate([points[fit], -values[fit, None] * points[fit]], 1)
    _, singular, right = np.linalg.svd(system, full_matrices=False)
    if singular[-1] > 1e-9 * singular[0]:
        return None
    # Adding a multiple of (f B, B) changes nothing, so the null space may have several directions;
    # any whose denominator has one sign will do.
    null = right[singular <= 1e-9 * singular[0]]
    numerator, denominator = np.split(null.T @ (null[:, size:].sum(1)), 2)
    scale = denominator @ points.mean(0)
    if abs(scale) < 1e-12:
        return None
    numerator, denominator = numerator / scale, denominator / scale
    held_out = points[fit.stop :]
    error = np.abs(held_out @ numerator - values[fit.stop :] * (held_out @ denominator)).max()
    if error > 1e-8 or (denominator < -1e-9).any():
        return None
    return numerator.reshape(shape), denominator.reshape(shape)


def weight_rules(sample: Sample, goal: Goal, start: Array, steps: int) -> list[Array]:
    """Offsets that Frank-Wolfe, or multiplicative weights for a worst class, passes through.

    The diagonal of the gains gives an arg-max rule with offsets t log w; what is left of a gain
    matrix beside its diagonal no offset can express.

    Shape: start (K,) -> offsets (K,) each.
    """
    known, found = goal.known, []
    point = sample.of(best_classes(sample.scores, start))
    if known is not None and known.mean == "min":
        groups = known.groups
        weight = np.ones(int(groups.max()) + 1)
        sizes = np.bincount(groups)
        for _ in range(steps):
            recall = group_means(point.diagonal() / sample.mass, groups)
            # The rate of the regret bound, sqrt(log G / T), in units of a recall.
            weight = weight * np.exp(-2 * np.sqrt(np.log(len(weight)) / steps) * recall)
            weight /= weight.sum()
            gains = (weight / sizes)[groups]
            found.append(_as_offsets(sample, gains, start))
            point = sample.of(best_classes(sample.scores, found[-1]))
        return found
    for t in range(steps):
        gain = goal.gradient(point)
        diagonal = gain.diagonal() - (gain.sum(1) - gain.diagonal()) / (len(gain) - 1)
        found.append(_as_offsets(sample, diagonal * sample.mass, start))
        reached = sample.of(best_classes(sample.scores, found[-1]))
        step = 2 / (t + 3)  # the start counts as a rule: it is a good one
        point = (1 - step) * point + step * reached
    return found


def _as_offsets(sample: Sample, worth: Array, balanced: Array) -> Array:
    """Offsets of the rule in which class k's recall is worth so much; equal ones: `balanced`."""
    worth = np.maximum(worth, 1e-6 * worth.max())
    offsets = balanced + sample.temperature * np.log(worth)
    return np.asarray(offsets - offsets.mean())


@dataclass(frozen=True)
class Priced:
    """Shares (T,) of given rules, and the gain matrix (K, K) of the rule that would help most."""

    shares: Array
    gain: Array
    value: float


def best_mixture(goal: Goal, confusions: Sequence[Array]) -> Priced:
    """Shares that maximise the mean or the worst recall under bounds on coverage: a linear program.

    Its prices are the multipliers of the classes: what a unit of each recall and of each coverage
    is worth at the optimum. That is a gain matrix, up to the masses of the rows.
    """
    known = goal.known
    assert known is not None and linear(goal)
    rows = [c / c.sum(1, keepdims=True) for c in confusions]
    recall = np.stack([r.diagonal() for r in rows])
    mean, count = recall.mean(1), len(rows)
    worst = known.mean == "min"
    group = group_means(recall, known.groups) if worst else mean[:, None]
    lines = [group]
    if worst:
        lines.append(mean[:, None])
    if known.covered is not None:
        lines.append(group_means(np.stack([r.mean(0) for r in rows]), known.covered))
    size = group.shape[1]
    bounds = np.zeros(sum(line.shape[1] for line in lines))
    bounds[size : size + worst] = known.least_mean
    bounds[size + worst :] = known.least
    # Variables: shares, the figure t, and what each bound is missed by, at the price of PENALTY.
    short = np.eye(len(bounds))[:, size:]
    level = np.concatenate([np.ones(size), np.zeros(len(bounds) - size)])[:, None]
    a_ub = np.concatenate([-np.concatenate(lines, 1).T, level, -short], 1)
    tie = TIE if worst else 0.0
    cost = np.concatenate([-tie * mean, [-1.0], np.full(short.shape[1], PENALTY)])
    total = np.concatenate([np.ones(count), np.zeros(1 + short.shape[1])])[None]
    box = [(0, None)] * count + [(None, None)] + [(0, None)] * short.shape[1]
    solved = linprog(cost, a_ub, -bounds, total, [1.0], box)
    assert solved.status == 0, solved.message
    price = -np.asarray(solved.ineqlin.marginals)
    k = len(goal.mass)
    per_recall = np.full(k, (tie + price[size : size + worst].sum()) / k)
    if worst:
        per_recall += (price[:size] / np.bincount(known.groups))[known.groups]
    else:
        per_recall += price[0] / k
    gain = np.diag(per_recall / goal.mass)
    if known.covered is not None:
        per_class = (price[size + worst :] / np.bincount(known.covered))[known.covered]
        gain = gain + per_class / (k * goal.mass[:, None])
    shares = np.maximum(solved.x[:count], 0)
    return Priced(shares / shares.sum(), gain, float(solved.x[count]))


def linear(goal: Goal) -> bool:
    """Whether the best mixture of given rules is a linear program."""
    return goal.known is not None and goal.known.mean in ("mean", "min")


def _smooth_mixture(goal: Goal, confusions: Sequence[Array], shares: Array) -> Array:
    """Shares of given rules that maximise the merit, from these shares. (T,) -> (T,)."""
    stack = np.stack(confusions)
    flat = stack.reshape(len(stack), -1)

    def loss(weights: Array) -> tuple[float, Array]:
        point = np.tensordot(np.maximum(weights, 0), stack, 1)
        value, gradient = goal.merit_and_gradient(point)
        return -value, -flat @ gradient.ravel()

    total = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    options = {"maxiter": 25, "ftol": 1e-8}
    bounds = [(0.0, 1.0)] * len(stack)
    solved = minimize(
        loss, shares, jac=True, method="SLSQP", bounds=bounds, constraints=[total], options=options
    )
    found = np.maximum(solved.x, 0)
    found /= found.sum()
    return found if loss(found)[0] <= loss(shares)[0] else shares


def mix(sample: Sample, goal: Goal, start: Sequence[Array], rounds: int) -> Mixture:
    """The best mixture of gain rules: a fully corrective Frank-Wolfe iteration.

    Each round adds the best rule for the gradient at the mixture so far and then chooses all shares
    anew, which is a line search in every direction found so far. For a worst class the shares come
    from a linear program and the gradient from its prices. It ends when no rule promises more than
    1e-4, a hundredth of a point.

    Args:
        sample: the images.
        goal: what to maximise; for functions that are not concave, this is a local search.
        start: gain matrices (K, K) to begin with.
        rounds: at most so many rules are added.
    """
    gains = list(start)
    found = [sample.confusion(gain) for gain in gains]
    shares = np.full(len(gains), 1 / len(gains))
    for _ in range(rounds):
        if linear(goal):
            priced = best_mixture(goal, found)
            shares, gain = priced.shares, priced.gain
            point = np.tensordot(shares, np.stack(found), 1)
        else:
            shares = _smooth_mixture(goal, found, shares)
            point = np.tensordot(shares, np.stack(found), 1)
            gain = goal.gradient(point)
        reached = sample.confusion(gain)
        if float((gain * (reached - point)).sum()) < 1e-4:
            break
        gains.append(gain)
        found.append(reached)
        shares = np.append(shares * 0.9, 0.1)
    if linear(goal):
        shares = best_mixture(goal, found).shares
    else:
        shares = _smooth_mixture(goal, found, shares)
    kept = np.flatnonzero(shares > _SMALLEST)
    shares = shares[kept] / shares[kept].sum()
    point = np.tensordot(shares, np.stack([found[i] for i in kept]), 1)
    return Mixture(tuple(gains[i] for i in kept), shares, point)
