"""ADSH: FixMatch with a threshold per class that lets an equal share of every class pass."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.pseudo_labels import TINY
from ssl_selmix.models import Classifier


class ADSH(FixMatch):
    """Guo & Li, ICML 2022: the head class keeps the threshold, the others follow its share.

    The share of images taken for the head class that pass is measured on the whole pool, by the
    teacher on images as they are. The published code measures the network that learns, on weak
    views.
    """

    # Looks within the few steps of the contract, at thresholds that some images pass.
    contract_cases = tuple(
        {"threshold": threshold, "threshold_every": 1, "threshold_from": 0.0}
        for threshold in (0.38, 0.0, 0.6, 0.9)
    )

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters; `threshold` is that of the head class, and the largest of all."""

        confidence: str = one_of("fixed")  # the thresholds are this method's own
        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper
        threshold_every: int = at_least(1, 512)  # steps between two looks at the pool
        # share of the steps before the first look: 1,024 of 2^18
        threshold_from: float = within("[0, 1]", 0.00390625)
        # Where no image taken for the head class is sure. strict: each class keeps its surest image
        # alone; shipped: as the published code, every image of the other classes counts
        unsure_head: str = one_of("strict", "shipped")

    config: Config
    thresholds: Tensor  # (K,) s

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.head_class = int(task.labeled_counts.argmax())
        tau = max(config.threshold, TINY)  # by which probabilities are divided
        self.register_buffer("thresholds", torch.full((task.num_classes,), tau))

    def keep(self, p: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The class of the largest p_k / s_k, which need not be that of p; and whether it is 1."""
        return losses.pseudo_label(p / self.thresholds.to(p.dtype), 1.0)

    def look_due(self, step: int) -> bool:
        """Whether the thresholds follow the pool at the validation before this step."""
        first = max(1, ceil(self.config.threshold_from * self.config.steps - 1e-6))
        return step >= first and step % self.config.threshold_every == 0

    def needs_pool(self, step: int) -> bool:
        """To set the thresholds, or to estimate the pool's class prior."""
        return self.look_due(step) or super().needs_pool(step)

    def evaluation_due(self, step: int) -> bool:
        """Also when the thresholds are due."""
        return self.look_due(step) or super().evaluation_due(step)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Thresholds from what is predicted for the pool now."""
        found = super().on_validation(evaluation, ctx)
        if self.look_due(ctx.step) and evaluation.pool_logits is not None:
            logits = self.of_pool(evaluation.pool_logits)
            found["head_share"] = self.follow((logits / self.config.temperature).softmax(1))
        return found | {"thresholds": self.thresholds.clone()}

    def follow(self, p: Tensor) -> Tensor:
        """Set s by the probabilities N×K of the pool; returns the share rho of the head class.

        s_k is the confidence that the share rho of the images taken for class k have, at most tau;
        a class that nothing is taken for keeps its threshold. rho is counted in float64 and ranks
        are rounded half to even, as in the published code.
        """
        tau = self.config.threshold
        confidence, classes = p.max(1)
        sure = classes[confidence >= tau] == self.head_class
        num = torch.bincount(classes, minlength=len(self.thresholds))
        rho = sure.sum().double() / num[self.head_class].clamp_min(1)
        if self.config.unsure_head == "shipped":
            rho = torch.where(rho > 0, rho, 1.0)
        # All images class by class, the surest of each class first.
        falling = confidence.argsort(descending=True, stable=True)
        falling = falling[classes[falling].argsort(stable=True)]
        rank = (num * rho - 1).round().clamp_min(0).long()
        place = (num.cumsum(0) - num + rank).clamp_max(len(p) - 1)
        found = confidence[falling[place]].clamp(TINY, max(tau, TINY))
        found = torch.where(num > 0, found.to(self.thresholds.dtype), self.thresholds)
        found[self.head_class] = max(tau, TINY)
        self.thresholds.copy_(found)
        return rho
