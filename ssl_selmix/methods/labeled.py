"""Labeled losses for skewed classes: what is lost on an image, how much its class weighs, and when.

Shapes: B labeled images, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Task
from ssl_selmix.common.rules import Checked, at_least, one_of, positive, within
from ssl_selmix.losses import log_prior
from ssl_selmix.models import Classifier


def class_weights(kind: str, counts: Tensor, beta: float | Tensor) -> Tensor:
    """Weights of the classes that have images, mean 1 over them; 0 for the others.

    inverse: 1 / n. effective: (1 - beta) / (1 - beta^n), one over the effective number of images
    (Cui et al., CVPR 2019); beta = 0 gives equal weights, beta -> 1 gives 1 / n.

    Shape: counts (K,) -> (K,) float64.
    """
    n = counts.double()
    number = {
        "none": torch.ones_like(n),
        "inverse": n,
        "effective": effective_number(n, beta),
    }[kind]
    weights = torch.where(n > 0, 1 / number, 0)
    return weights * (n > 0).sum() / weights.sum()


def effective_number(counts: Tensor, beta: float | Tensor) -> Tensor:
    """(1 - beta^n) / (1 - beta): n images as images that are not alike (Cui et al., CVPR 2019).

    Shape: counts (K,) -> (K,) float64.
    """
    return (1 - beta ** counts.double()) / (1 - beta)


def ldam_margins(counts: Tensor, largest: float) -> Tensor:
    """Delta_k ~ n_k^(-1/4), `largest` for the rarest class that has images; 0 for absent ones.

    Cao et al., NeurIPS 2019; the constant as in their experiments.

    Shape: counts (K,) -> (K,) float64.
    """
    n = counts.double()
    margins = torch.where(n > 0, n**-0.25, 0)
    return largest * margins / margins.max()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y of every image.

    Shape: logits B×K, labels (B,) -> (B,).
    """
    return F.cross_entropy(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """-(1 - p_y)^gamma log p_y (Lin et al., ICCV 2017, eq. 4); gamma = 0 is cross-entropy.

    Shape: logits B×K, labels (B,) -> (B,).
    """
    loss = cross_entropy(logits, labels)
    missing = -torch.expm1(-loss)  # 1 - p_y
    return missing.clamp_min(1e-12) ** gamma * loss


def asymmetric(
    logits: Tensor, labels: Tensor, gammas: tuple[float, float], smoothing: float
) -> Tensor:
    """-sum_k t_k w_k log p_k: classes that an image is not in are forgotten once they are unlikely.

    w_y = (1 - p_y)^gamma_pos of the own class and p_k^gamma_neg of the others; t is the one-hot
    label, smoothed, without which the others do not count (Ridnik et al., ICCV 2021, the loss for
    one label in their code). Gammas of 0 give cross-entropy with smoothed labels.

    Args:
        logits: B×K.
        labels: (B,).
        gammas: gamma_pos and gamma_neg.
        smoothing: share of the label that all classes have alike.

    Returns:
        (B,).
    """
    log_p = logits.log_softmax(1)
    p, own = log_p.exp(), F.one_hot(labels, logits.shape[1]).to(logits)
    # 0^0 has no gradient that is a number.
    far = torch.where(own > 0, 1 - p, p).clamp_min(1e-12)
    weight = far ** torch.where(own > 0, gammas[0], gammas[1])
    target = (1 - smoothing) * own + smoothing / logits.shape[1]
    return -(target * weight * log_p).sum(1)


def ldam(cosines: Tensor, labels: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Cross-entropy of s (cos_k - Delta_k [k = y]) (Cao et al., NeurIPS 2019).

    Shape: cosines B×K, labels (B,), margins (K,) -> (B,).
    """
    required = F.one_hot(labels, len(margins)) * margins
    return cross_entropy(scale * (cosines - required), labels)


LOSSES: dict[str, Callable[[Tensor, Tensor, LabeledLoss], Tensor]] = {
    "ce": lambda logits, labels, rule: cross_entropy(logits, labels),
    "focal": lambda logits, labels, rule: focal(logits, labels, rule.config.gamma),
    "asymmetric": lambda logits, labels, rule: asymmetric(
        logits, labels, (rule.config.gamma_pos, rule.config.gamma_neg), rule.config.label_smoothing
    ),
    "ldam": lambda logits, labels, rule: ldam(logits, labels, rule.margins, rule.config.scale),
}
WEIGHTS = ("none", "inverse", "effective")


@dataclass
class Config(Checked):
    """Which loss, and which weights."""

    # ce: cross-entropy; focal; asymmetric; ldam: cross-entropy of cosines with margins
    loss: str = one_of(*LOSSES)
    gamma: float = at_least(0, 2.0)  # gamma of the focal loss
    gamma_pos: float = at_least(0, 0.0)  # gamma+ of loss=asymmetric, exponent of the own class
    gamma_neg: float = at_least(0, 4.0)  # gamma- of loss=asymmetric, exponent of the other classes
    # share of the target that loss=asymmetric spreads over all classes
    label_smoothing: float = within("[0, 1)", 0.1)
    margin: float = at_least(0, 0.5)  # C of LDAM, margin of the rarest class
    scale: float = positive(30.0)  # s of LDAM, which multiplies the cosines
    reweight: str = one_of(*WEIGHTS)  # class weights; inverse: 1 / n, effective: class-balanced
    beta: float = within("[0, 1)", 0.9999)  # beta of the effective number of images
    # share of the steps before class weights set in; LDAM-DRW: 160 of 200 epochs
    drw: float = within("[0, 1)", 0.0)


class LabeledLoss(nn.Module):
    """The configured loss of a batch: a mean weighted by class, once the weights have set in.

    sum(w_y loss) / sum(w_y) over the batch, as `torch.nn.CrossEntropyLoss` weights. The LDAM-DRW
    code puts the weighted loss into the focal factor (1 - p_y)^gamma too; here p_y is the model's.
    """

    log_pi: Tensor
    weights: Tensor
    margins: Tensor

    def __init__(self, task: Task, config: Config, logit_adjustment: float) -> None:
        super().__init__()
        self.config: Config = config
        self.tau = logit_adjustment
        counts = task.labeled_counts
        weights = class_weights(config.reweight, counts, config.beta)
        self.register_buffer("log_pi", log_prior(task.labeled_prior).float())
        self.register_buffer("weights", weights.float())
        self.register_buffer("margins", ldam_margins(counts, config.margin).float())

    def forward(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Logits B×K (cosines for ldam), labels (B,), share of the steps done -> scalar."""
        each = self._each(logits, labels)
        if progress < self.config.drw:
            return each.mean()
        weights = self.weights[labels]
        return (weights * each).sum() / weights.sum()

    def shares(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        """What each image adds to the loss: (B,), whose sum it is."""
        each = self._each(logits, labels)
        if progress < self.config.drw:
            return each / len(each)
        weights = self.weights[labels]
        return weights * each / weights.sum()

    def _each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return LOSSES[self.config.loss](logits + self.tau * self.log_pi, labels, self)


class CosineHead(nn.Module):
    """Cosines to train on, and the linear layer without bias that ranks classes as they do.

    The logits s cos(h, w_k) differ from (s / r) w_k/|w_k| . h by the factor |h| / r, which is the
    same for all classes: with r the mean |h|, the latter are as confident on average, need no
    layer of their own, and can be handed on in `models.Classifier`.
    """

    norm: Tensor  # r, over about the last ten batches

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("norm", torch.ones(()))

    def forward(self, features: Tensor, classifier: nn.Linear) -> Tensor:
        """Cosines B×K of features B×D and class vectors, for training."""
        with torch.no_grad():
            self.norm.lerp_(features.norm(dim=1).mean(), 0.1)
        return F.linear(F.normalize(features), F.normalize(classifier.weight))

    def folded(self, classifier: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias (none, or 0) of the linear layer."""
        bias = None if classifier.bias is None else torch.zeros_like(classifier.bias)
        return F.normalize(classifier.weight) * (self.scale / self.norm), bias


@torch.no_grad()
def with_classifier(net: Classifier, weight: Tensor, bias: Tensor | None) -> Classifier:
    """The network itself, with these numbers in its classifier."""
    net.classifier.weight.copy_(weight)
    if bias is not None:
        net.classifier.bias.copy_(bias)
    return net
