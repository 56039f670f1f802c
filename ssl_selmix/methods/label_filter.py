"""Which labels are wrong: a mixture of small and of large losses of the labeled images.

A network learns the labels that fit its other images before those that do not, so that wrong ones
have large losses for a while (Arazo et al., ICML 2019; DivideMix, Li et al., ICLR 2020).

Shapes: n labeled images, B of a batch, K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation
from ssl_selmix.common.rules import Checked, one_of, within
from ssl_selmix.data import Data
from ssl_selmix.losses import as_masses

FEWEST = 50  # labeled images that two normal distributions are fitted to
ROUNDS = 100  # of expectation maximisation, at most
NARROWEST = 0.02  # deviation of a component, as a share of the range of losses
DOUBTED = 0.5  # probability of a right label below which a label is suspected


@dataclass
class Config(Checked):
    """Whether labels are judged while a method learns from them, and from when on."""

    # mixture: a label that the averaged model contradicts counts for as much as the probability
    # that it is right, by a mixture of two normal distributions of the losses
    label_filter: str = one_of("none", "mixture")
    # share of the steps before labels are judged; from then on they are at every validation
    filter_from: float = within("(0, 1)", 0.5)

    def __post_init__(self) -> None:
        """Refuse a beginning of what does not take place."""
        super().__post_init__()
        if self.label_filter == "none" and self.filter_from != type(self).filter_from:
            raise ValueError(
                f"filter_from={self.filter_from} does nothing with label_filter=none; set "
                "label_filter=mixture, too, or leave it out"
            )


@dataclass(frozen=True)
class Judged:
    """What a model makes of the labels. Shape: losses, clean and predicted (n,)."""

    losses: Tensor
    clean: Tensor  # probability that the label is right
    predicted: Tensor


class LabelFilter(nn.Module):
    """The probability of every labeled image that its label is right, as it was judged last."""

    clean: Tensor  # (n,)

    def __init__(self, num_labeled: int) -> None:
        super().__init__()
        self.register_buffer("clean", torch.ones(num_labeled))

    def weighed(self, batch: Batch, num_classes: int) -> Batch:
        """The batch whose images count by these probabilities, beside other weights."""
        weights = self.clean[batch.index_x]
        return replace(batch, masses=weights[:, None] * as_masses(batch.target, num_classes))


class Filters(Algorithm):
    """An algorithm with a `label_filter`, which judges labels at validations and weighs batches."""

    label_filter: LabelFilter | None
    labels_stay: ClassVar[bool] = True  # False: other images join the labeled ones

    def begin_filter(self, config: Config) -> None:
        """Make the filter, if the configuration wants one.

        Raises:
            ValueError: the method cannot weigh its images, or there are too few of them.
        """
        self.label_filter = None
        if config.label_filter == "none":
            return
        told = f"label_filter={config.label_filter}"
        if not (self.labels_stay and getattr(type(self).forward, "weighs_labels", False)):
            raise ValueError(
                f"{told} weighs labeled images that stay the same, which this method does not "
                "have; leave it out"
            )
        num = int(self.task.labeled_counts.sum())
        if num < FEWEST:
            raise ValueError(
                f"{told} judges labels by the distribution of their losses and needs {FEWEST} "
                f"labeled images, not {num}; leave it out"
            )
        self.label_filter = LabelFilter(num)

    @property
    def _first(self) -> int:
        return math.ceil(getattr(self.config, "filter_from", 1.0) * self.config.steps - 1e-6)

    def _judges(self, step: int) -> bool:
        return self.label_filter is not None and self._first <= step < self.config.steps

    def needs_features(self, step: int) -> Collection[str]:
        """Those of the labeled images, to judge their labels."""
        found = super().needs_features(step)
        return {*found, "labeled"} if self._judges(step) else found

    def evaluation_due(self, step: int) -> bool:
        """Also when labels are judged for the first time."""
        first = self.label_filter is not None and step == self._first
        return first or super().evaluation_due(step)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Judge the labels by the averaged model."""
        found = super().on_validation(evaluation, ctx)
        if self.label_filter is None or not self._judges(ctx.step):
            return found
        clean = judged(ctx.teacher, evaluation).clean
        self.label_filter.clean.copy_(clean)
        return {**found, "labels_doubted": (clean < DOUBTED).double().mean()}

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Batches whose labeled images count by the probability of their labels."""
        found = super().batches(data, start)
        return found if self.label_filter is None else self.weighed(found)

    def weighed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each weighed when it is drawn, by the probabilities of then."""
        assert self.label_filter is not None
        for batch in batches:
            yield self.label_filter.weighed(batch, self.task.num_classes)


@torch.no_grad()
def judged(model: Algorithm, evaluation: Evaluation) -> Judged:
    """How likely the labels are right, by the losses of a model on un-augmented images.

    A label that the model predicts itself is right. So is that of an image among the half of its
    class with the smallest losses, for no class is to lose its images to the others.
    """
    features, labels = evaluation.labeled_features, evaluation.labeled_classes
    assert features is not None and labels is not None
    logits = model.head(features).float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    predicted = logits.argmax(1)
    trusted = (predicted == labels) | lower_half(losses, labels)
    clean = torch.where(trusted, 1.0, probabilities(losses).to(losses.dtype))
    return Judged(losses, clean, predicted)


def lower_half(losses: Tensor, labels: Tensor) -> Tensor:
    """Which images are among the half of their class, rounded up, with the smallest losses.

    Shape: losses and labels (n,) -> (n,) bool.
    """
    order = losses.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    place = torch.arange(len(order), device=labels.device)
    place = place - (counts.cumsum(0) - counts)[labels[order]]
    found = torch.empty_like(labels, dtype=torch.bool)
    found[order] = place * 2 < counts[labels[order]]
    return found


def probabilities(losses: Tensor) -> Tensor:
    """Of each loss, the probability that it is of the component of small ones.

    A loss is never likelier to be small than a smaller one, although a wide component has tails on
    both sides.

    Shape: losses (n,) -> (n,) float64.
    """
    x, order = losses.double().sort(stable=True)
    small = mixture(x)
    mean = (small * x).sum() / small.sum().clamp_min(1e-12)
    found = torch.empty_like(small)
    found[order] = torch.where(x <= mean, 1.0, small).cummin(0).values
    return found


def mixture(x: Tensor) -> Tensor:
    """The probability of each value that it is of the lower of two normal distributions.

    By expectation maximisation, which begins with the lower and the upper half.

    Shape: x (n,), rising -> (n,).
    """
    x = (x - x[0]) / (x[-1] - x[0]).clamp_min(1e-12)
    small = (torch.arange(len(x), device=x.device) * 2 < len(x)).to(x)
    for _ in range(ROUNDS):
        each = torch.stack([small, 1 - small])
        mass = each.sum(1).clamp_min(1e-12)
        mean = (each @ x) / mass
        spread = (each * (x - mean[:, None]).square()).sum(1) / mass
        deviation = spread.sqrt().clamp_min(NARROWEST)
        log_p = -((x - mean[:, None]) / deviation[:, None]).square() / 2
        log_p = log_p + ((mass / len(x)).log() - deviation.log())[:, None]
        before, small = small, log_p.softmax(0)[0]
        if bool(((small - before).abs() < 1e-6).all()):
            break
    return small
