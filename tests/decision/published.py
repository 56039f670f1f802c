"""Iterations of the published plug-in classifiers, replayed on this package's rules and gradients.

The package does not use them: its solvers replace them (see the traps in each docstring). Sheet:
plugin_classifier.md. All confusion matrices are joint, rows = true class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_selmix.decision.solvers import Sample
from ssl_selmix.gains import confusion_gradient

Array = NDArray[Any]
Achieved = Callable[[Array], Array]  # gain matrix -> confusion matrix

FLOOR = 1e-5


def sample_of(probs: Tensor, labels: Tensor) -> Sample:
    """Posteriors that are taken as they are, with the class masses of the images."""
    mass = np.bincount(labels.numpy()) / len(labels)
    with np.errstate(divide="ignore"):
        scores = np.log(probs.double().numpy())
    return Sample(scores, labels.numpy(), 1.0, np.ones(len(mass)), mass)


def measure(name: str, mass: Array) -> Callable[[Tensor], Tensor]:
    """A loss of the published code, with its own floors."""
    pi = torch.from_numpy(mass)
    if name == "hmean":
        return lambda c: 1 - len(pi) / ((pi / (c.diagonal() + 1e-7)).sum() + 1e-7)
    if name == "gmean":
        return lambda c: 1 - (c.diagonal() / (pi + FLOOR)).prod() ** (1 / len(pi))
    return lambda c: (1 - c.diagonal() / pi).square().mean().sqrt()


def potential(name: str, mass: Array) -> Callable[[Tensor], Tensor]:
    """A function whose exact gradient is minus the one that the published code writes by hand.

    That one is the gradient of the loss up to a positive factor, with a floor in the denominator.
    """
    pi = torch.from_numpy(mass)
    if name == "hmean":  # derivative K pi / (C^2 + floor)
        root = FLOOR**0.5
        return lambda c: (len(pi) * pi / root * (c.diagonal() / root).atan()).sum()
    if name == "gmean":  # 1 / (C + floor)
        return lambda c: (c.diagonal() + FLOOR).log().sum()
    return lambda c: -(c.diagonal() / pi - 1 + FLOOR).square().sum() / 2  # -(C/pi - 1 + floor)/pi


def gain_of(function: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    """Its gradient, by the one gradient code of the package."""
    return lambda c: np.asarray(confusion_gradient(function, torch.from_numpy(c)).numpy())


def micro_f1_parts(num_classes: int) -> tuple[Array, Array]:
    """A and B of micro-F1 = <A, C> / <B, C>, where class 0 means "none"."""
    some = np.minimum(np.arange(num_classes), 1.0)
    return np.diag(2 * some), some[:, None] + some[None]


def split_steps(
    achieved: Achieved, target: Array, *, epsilon: float, lam: float, rates: Array, steps: int
) -> dict[str, Array]:
    """Split Frank-Wolfe for the harmonic mean with |column sums - target| <= epsilon.

    Trap 9: it starts at the rule that gives every image to class 0. The state u has recalls and
    the off-diagonal column sums, v is its copy in the constraint set, w the multipliers.
    """
    k = len(target)
    u = _split_state(achieved(-np.ones((k, k))))
    v = np.concatenate([np.full(k, 1 / k), np.zeros(k)])
    w = np.full(2 * k, 0.5)
    kept: dict[str, list[Array]] = {name: [] for name in ("cost", "lmo_u", "u", "v", "w")}
    for t in range(steps):
        gu, gv = (_harmonic_slope(a) + sign * w for a, sign in ((u, 1), (v, -1)))
        gu, gv = gu + lam * (u - v), gv + lam * (v - u)
        cost = np.tile(gu[k:], (k, 1))
        np.fill_diagonal(cost, gu[:k])
        reached = _split_state(achieved(-cost))
        nearest = np.zeros(2 * k)
        for j in range(k):
            entry = j if gv[j] <= gv[k + j] else k + j
            nearest[entry] = target[j] + (epsilon if gv[entry] < 0 else -epsilon)
        w = w + rates[t * len(rates) // steps] * (u - v)
        step = 2 / (t + 2)
        u, v = (1 - step) * u + step * reached, (1 - step) * v + step * nearest
        for name, value in zip(kept, (cost, reached, u, v, w), strict=True):
            kept[name].append(value)
    return {name: np.stack(values) for name, values in kept.items()}


def _split_state(confusion: Array) -> Array:
    hits = confusion.diagonal()
    return np.concatenate([hits / confusion.sum(1), confusion.sum(0) - hits])


def _harmonic_slope(state: Array) -> Array:
    k = len(state) // 2
    return np.concatenate([-k / (state[:k] ** 2 + FLOOR), np.zeros(k)])


def coco(
    achieved: Achieved, mass: Array, *, eps: float, eta: float, outer: int, inner: int
) -> tuple[Array, Array, Array]:
    """Q-mean under a bound on the normalised absolute error: gains, weights, confusion.

    Trap 7: the gain has the derivative of a squared error, the multiplier follows an absolute one.
    With eps = 1 there is no constraint and a single outer step.
    """
    k, gains, weights, mixed = len(mass), [], [], np.zeros((len(mass),) * 2)
    alpha, outer = (0.0, 1) if eps == 1 else (0.01, outer)
    for t in range(outer):
        point = achieved(np.diag(1 / mass))
        shares = np.zeros(0)
        for s in range(inner):
            recall, share = point.diagonal() / mass, point.sum(0)
            diagonal = np.diag(2 * (1 - recall) / (mass * k))
            gains.append(diagonal - alpha * ((share - mass) / (1 - mass.min()))[None])
            step = 2 / (s + 2)
            point = (1 - step) * point + step * achieved(gains[-1])
            shares = np.append((1 - step) * shares, step)
        error = 0.5 * np.abs(point.sum(0) - mass).sum() / (1 - mass.min())
        alpha = max(alpha + eta / np.sqrt(t + 1) * (error - eps), 0.0)
        weights.append(shares)
        mixed = mixed + point
    return np.stack(gains), np.concatenate(weights) / outer, mixed / outer


def fraco(
    achieved: Achieved, num_classes: int, *, eps: float, eta: float, iters: int
) -> tuple[Array, Array, Array]:
    """Micro-F1 with at most eps of all images outside class 0: gains, weights, confusion.

    Trap 5: the weights are normalised after every bisection step, so that the answer mixes all
    rules that were ever tried. Trap 6: the multiplier is missing in W_00.
    """
    a, b = micro_f1_parts(num_classes)
    low, high, gains, weights, found = 0.0, 1.0, [], np.zeros(0), []
    while high - low > 0.01:
        level, lam, inner = (low + high) / 2, 0.0 if eps == 1 else 0.01, []
        for t in range(iters):
            gain = a - level * b + 2 * level  # a constant on every cell changes no rule
            gain[1:, 0] += lam
            gains.append(gain)
            inner.append(achieved(gain))
            covered = 1 - inner[-1][:, 0].sum()
            lam = max(lam + eta / np.sqrt(t + 1) * (covered - eps), 0.0)
        found += inner
        weights = np.append(weights, np.ones(iters))
        weights /= weights.sum()
        mean = np.mean(inner, 0)
        if (a * mean).sum() / (b * mean).sum() >= level:
            low = level
        else:
            high = level
    return np.stack(gains), weights, np.tensordot(weights, np.stack(found), 1)
