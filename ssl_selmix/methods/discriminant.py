"""A Gaussian discriminant on features: class means, one shared covariance, a linear classifier.

All of it in float64. Shapes: N images, K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses

ROWS = 8192  # images that are converted to float64 at a time
SMALLEST = 1e-12  # variance, or share of an image, that is told from 0
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Sums:
    """Sums over weighted images, from which means and covariance follow; those of two sets add up.

    Images count relative to `centre`, so that nothing is lost when products are subtracted.

    Shape: counts (K,), sums K×D, squares D×D of the images that `shape` counts, their class sums
    K×D and counts (K,).
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor
    shape_sums: Tensor
    shape_counts: Tensor

    def __add__(self, other: Sums) -> Sums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sums(*(a + b for a, b in pairs))

    def means(self) -> Tensor:
        """Class means K×D; a class without images has the mean of the others."""
        present = self.counts > SMALLEST
        means = self.sums / self.counts.clamp_min(SMALLEST)[:, None]
        return torch.where(present[:, None], means, means[present].mean(0))

    def covariance(self) -> Tensor:
        """Within-class covariance D×D around these means, without bias if the means are its own."""
        means, seen = self.means(), self.shape_sums
        cross = means.T @ seen
        scatter = self.squares - cross - cross.T + (means.T * self.shape_counts) @ means
        lost = (self.shape_counts > SMALLEST).sum()
        return scatter / (self.shape_counts.sum() - lost).clamp_min(1)


Share = Callable[[Tensor], Tensor]  # features n×D -> how much they belong to each class, n×K


def sums(
    features: Tensor,
    shares: Tensor | Share,
    num_classes: int,
    centre: Tensor,
    *,
    shape: bool = True,
) -> Sums:
    """Sums of images that belong to the classes with these shares.

    A few thousand images at a time, so that neither their shares nor float64 features need exist
    of all.

    Args:
        features: N×D.
        shares: labels (N,), or a function that gives the shares of some images from features.
        num_classes: K.
        centre: (D,).
        shape: whether these images count in the covariance.
    """
    k, d = num_classes, features.shape[1]
    counts, totals = centre.new_zeros(k), centre.new_zeros(k, d)
    squares = centre.new_zeros(d, d)
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS]
        r = (
            F.one_hot(shares[start : start + ROWS], k).double()
            if isinstance(shares, Tensor)
            else shares(rows)
        )
        x = rows.double() - centre
        counts += r.sum(0)
        totals += r.T @ x
        if shape:
            squares += (x * r.sum(1, keepdim=True)).T @ x
    if shape:
        return Sums(counts, totals, squares, totals, counts)
    return Sums(counts, totals, squares, torch.zeros_like(totals), torch.zeros_like(counts))


def formula_shrinkage(num: int, num_features: int) -> float:
    """D / (N - 1 + D): the shrinkage whose precision is D ((N - 1) C + tr(C) I)^-1.

    Kubokawa & Srivastava, J. Multivariate Analysis 2008, as Wang et al., ICLR 2024, use it.
    """
    return num_features / (num - 1 + num_features)


@dataclass(frozen=True)
class Linear:
    """A linear classifier: weight K×D, bias (K,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits N×K, float64, of features N×D."""
        return torch.cat(
            [rows.double() @ self.weight.T + self.bias for rows in features.split(ROWS)]
        )

    def calibrated(self, temperature: float, prior: Tensor) -> Linear:
        """Logits of posteriors at a class distribution (K,), made less sure by a temperature."""
        log_pi = losses.log_prior(prior)
        return Linear(self.weight / temperature, self.bias / temperature + log_pi)


class Shape:
    """A covariance in its principal axes, for any number of discriminants and shrinkages."""

    def __init__(self, covariance: Tensor, centre: Tensor) -> None:
        """Shape: covariance D×D, centre (D,) that means are relative to."""
        self.centre = centre
        # More features than images leave axes without variance, which rounding makes negative.
        values, self.axes = torch.linalg.eigh(covariance)
        self.values = values.clamp_min(0)
        # Images that are all alike have no variance at all.
        self.scale = self.values.mean().clamp_min(SMALLEST)

    def classifier(
        self, means: Tensor, counts: Tensor, shrinkage: float, *, corrected: bool = True
    ) -> Linear:
        """w_k = S^-1 m_k and b_k = -m_k' S^-1 m_k / 2 + tr(S^-1 C) / (2 n_k), relative to a centre.

        S = (1 - a) C + a tr(C) / D I. The mean of n images is off by noise of covariance C / n,
        which makes m' S^-1 m too large by tr(S^-1 C) / n on average: the rarer a class, the more
        images it would lose. The last term, if `corrected`, gives them back. What all classes have
        in common is left out of weight and bias.

        Shape: means K×D, counts (K,).
        """
        shrunk = (1 - shrinkage) * self.values + shrinkage * self.scale
        weight = (means @ self.axes / shrunk) @ self.axes.T
        bias = -(weight * means).sum(1) / 2
        if corrected:
            present = counts > SMALLEST
            extra = (self.values / shrunk).sum() / (2 * counts.clamp_min(SMALLEST))
            bias = bias + torch.where(present, extra, 0)
        bias = bias - weight @ self.centre
        return Linear(weight - weight.mean(0), bias - bias.mean())


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights (N,) of images, sum 1, with which every class that has some counts as much."""
    counts = torch.bincount(labels, minlength=num_classes).double()
    return 1 / (counts[labels] * (counts > 0).sum())


def temperature(logits: Tensor, labels: Tensor, steps: int = 40) -> float:
    """The T > 0 for which softmax(logits / T) has the least log-loss, all classes counting alike.

    Golden section over log T: the loss has one minimum in 1 / T. Logits that separate the classes
    have none, and get the lower end of the range.

    Shape: logits N×K, labels (N,).
    """
    logits = logits.double()
    weights = class_weights(labels, logits.shape[1])
    spread = float((logits - logits.mean(1, keepdim=True)).abs().mean().clamp_min(SMALLEST))

    def loss(log_t: float) -> float:
        own = (logits * math.exp(-log_t)).log_softmax(1).gather(1, labels[:, None])[:, 0]
        return -float((weights * own).sum())

    low, high = math.log(spread) - 4, math.log(spread) + 4
    for _ in range(steps):
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return math.exp((low + high) / 2)
