"""Pure losses that algorithms share.

Shapes: B labeled images, M unlabeled images, K classes. Logits are B×K or M×K.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def log_prior(prior: Tensor, floor: float = 1e-12) -> Tensor:
    """Logarithm of class frequencies (K,), finite for a class without labeled images."""
    return prior.clamp_min(floor).log()


def log_power(frequencies: Tensor, exponent: Tensor | float, floor: float = 1e-12) -> Tensor:
    """log(p^exponent + floor), as published codes of logit adjustment write it.

    Shape: (K,) or any other -> the same.
    """
    return (frequencies**exponent + floor).log()


def logit_adjusted(logits: Tensor, labels: Tensor, log_pi: Tensor, tau: float = 1.0) -> Tensor:
    """Cross-entropy on logits + tau * log(pi), mean over the batch.

    Menon et al., ICLR 2021, eq. 10: the arg-max of the raw logits then aims at the balanced
    error. tau = 0 is plain cross-entropy.

    Shape: logits B×K, labels (B,) or masses B×K, log_pi (K,) -> scalar.
    """
    return F.cross_entropy(logits + tau * log_pi if tau else logits, labels)


class LogitAdjusted(nn.Module):
    """`logit_adjusted` with the labeled prior as state; tau = 0 is plain cross-entropy.

    With weights an image's loss is multiplied by that of its class, and the batch is not divided
    by their sum.

    Shape: prior and weights (K,); logits B×K, labels (B,) or masses B×K -> scalar.
    """

    log_pi: Tensor
    weights: Tensor | None

    def __init__(self, prior: Tensor, tau: float, weights: Tensor | None = None) -> None:
        super().__init__()
        self.tau = tau
        self.register_buffer("log_pi", log_prior(prior).float())
        self.register_buffer("weights", None if weights is None else weights.float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch. Shape: logits B×K, labels (B,) or masses B×K -> scalar."""
        if self.weights is None:
            return logit_adjusted(logits, labels, self.log_pi, self.tau)
        adjusted = logits + self.tau * self.log_pi
        if labels.ndim == 2:
            return F.cross_entropy(adjusted, labels * self.weights)
        return masked_cross_entropy(adjusted, labels, self.weights[labels])


def as_masses(target: Tensor, num_classes: int) -> Tensor:
    """What each class counts for in each image. Shape: labels (B,) or masses B×K -> B×K."""
    return target if target.ndim == 2 else F.one_hot(target, num_classes)


def expected(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """A loss of classes, of each image and weighed by what each class counts for in it.

    Args:
        loss: of logits n×K and classes (n,), (n,).
        logits: B×K.
        target: classes (B,) or masses B×K.

    Returns:
        (B,).
    """
    if target.ndim == 1:
        return loss(logits, target)
    rows, classes = target.nonzero(as_tuple=True)
    each = loss(logits[rows], classes)
    return each.new_zeros(len(logits)).index_add(0, rows, target[rows, classes].to(each) * each)


def pseudo_label(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Hard pseudo-labels of weak views and which of them are confident enough.

    FixMatch (Sohn et al., NeurIPS 2020), eq. 4; a confidence equal to the threshold passes.

    Shape: probabilities M×K -> classes (M,), mask (M,) float.
    """
    confidence, classes = p.max(1)
    return classes, (confidence >= threshold).to(p.dtype)


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy weighted by a mask, divided by all M images and not by the kept ones.

    Shape: logits M×K, targets (M,) classes or M×K probabilities, mask (M,) -> scalar.
    """
    return (F.cross_entropy(logits, targets, reduction="none") * mask).mean()


def mix_features(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Convex combination of two feature batches.

    Shape: first and second B×D, weight (B,) share of the first -> B×D.
    """
    return torch.lerp(second, first, weight[:, None].to(first.dtype))
