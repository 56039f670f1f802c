"""Images whose posteriors are known, and the best that any randomised classifier can do on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog  # type: ignore[import-untyped]

Array = NDArray[Any]


def finite_support(
    num_classes: int, points: int, *, images: int = 40, rho: float = 10.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Posteriors and labels of all images, and the counts of each class at every point.

    Every point of the support has so many images, whose labels follow its posterior exactly, so
    that the empirical confusion matrix is the true one. Shape: (N, K), (N,), (points, K).
    """
    generator = np.random.default_rng(seed)
    prior = rho ** -np.linspace(0, 1, num_classes)
    raw = generator.dirichlet(np.ones(num_classes) * 0.4, points) * prior
    counts = np.floor(raw / raw.sum(1, keepdims=True) * images).astype(int)
    for row in counts:  # what rounding took goes to the points' likeliest class
        row[row.argmax()] += images - row.sum()
    counts[np.arange(num_classes), np.arange(num_classes)] += 2  # no class is empty
    labels = np.concatenate([np.arange(num_classes).repeat(row) for row in counts])
    posteriors = (counts / counts.sum(1, keepdims=True)).repeat(counts.sum(1), axis=0)
    return posteriors, labels, counts


class BestMixture:
    """Linear programs over q[x, j], the share of point x's images that are given to class j."""

    def __init__(self, counts: Array) -> None:
        self.counts, (self.points, self.num_classes) = counts, counts.shape
        share = counts / counts.sum(0)  # of a class's images, at each point
        size, k = self.points * self.num_classes, self.num_classes
        self.recall = np.zeros((k, size))
        self.coverage = np.zeros((k, size))
        for j in range(k):
            self.recall[j, j::k] = share[:, j]
            self.coverage[j, j::k] = share.sum(1) / k
        self.distribution = np.kron(np.eye(self.points), np.ones(k))

    def _solve(self, rows: Array, bounds: Array, limits: list[tuple[Array, float]]) -> Array:
        """Maximise t with rows @ q >= bounds + t, and every limit: row @ q >= bound."""
        a = [np.append(-row, scale) for row, scale in zip(rows, np.ones(len(rows)), strict=True)]
        a += [np.append(-row, 0.0) for row, _ in limits]
        b = [*(-bounds), *(-bound for _, bound in limits)]
        equal = np.concatenate([self.distribution, np.zeros((self.points, 1))], 1)
        cost = np.zeros(rows.shape[1] + 1)
        cost[-1] = -1
        box = [(0, 1)] * rows.shape[1] + [(None, None)]
        found = linprog(cost, np.array(a), b, equal, np.ones(self.points), box)
        assert found.status == 0, found.message
        return np.asarray(found.x)

    def limits(self, groups: Array | None, least: float) -> list[tuple[Array, float]]:
        """The bounds on the mean coverage of groups of classes."""
        if groups is None:
            return []
        return [(self.coverage[groups == g].mean(0), least) for g in np.unique(groups)]

    def worst(self, groups: Array) -> float:
        """The largest smallest group mean of the recalls."""
        rows = np.stack([self.recall[groups == g].mean(0) for g in np.unique(groups)])
        return float(self._solve(rows, np.zeros(len(rows)), [])[-1])

    def mean(self, kind: str, limits: list[tuple[Array, float]]) -> float:
        """The largest arithmetic ("mean"), geometric ("g") or harmonic ("h") mean of recalls.

        The last two maximise the mean of a concave function of recalls, which is the least of its
        tangents: a program for every set of tangents so far, until its bound is reached.
        """
        if kind == "mean":
            rows = self.recall.mean(0)[None]
            return float(self._solve(rows, np.zeros(1), limits)[-1])
        value = np.log if kind == "g" else lambda r: -1 / r
        slope = (lambda r: 1 / r) if kind == "g" else (lambda r: 1 / r**2)
        back = np.exp if kind == "g" else lambda v: -1 / v
        point = self.recall @ np.full(self.recall.shape[1], 1 / self.num_classes)
        rows, bounds = [], []
        for _ in range(60):
            gradient = slope(point) / self.num_classes
            rows.append(gradient @ self.recall)
            bounds.append(gradient @ point - value(point).mean())
            found = self._solve(np.array(rows), np.array(bounds), limits)
            point = np.maximum(self.recall @ found[:-1], 1e-3)
            if found[-1] - value(point).mean() < 1e-4:
                break
        return float(back(found[-1]))


def gaussian(
    num_classes: int, images: int, *, spread: float, rho: float = 10.0, seed: int = 0
) -> tuple[Array, Array]:
    """Log posteriors of a long-tailed training set for Gaussian classes, and balanced labels."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(num_classes, max(2, min(num_classes, 32)))) * spread
    labels = generator.permutation(np.arange(images) % num_classes)
    points = means[labels] + generator.normal(size=(images, means.shape[1]))
    prior = rho ** -np.linspace(0, 1, num_classes)
    return points @ means.T - (means**2).sum(1) / 2 + np.log(prior / prior.sum()), labels
