"""SAW: FixMatch whose losses weigh classes by smoothed counts of labels and of pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.labeled import class_weights
from ssl_selmix.methods.pseudo_labels import last_rows
from ssl_selmix.models import Classifier


class SAW(FixMatch):
    """Lai, Wang, Gunawan, Cheung & Chuah, ICML 2022: class weights that follow the pool.

    An image of the pool counts with its latest weak prediction, sure or not. The published code
    passes every view through the network apart; here all share batch statistics.
    """

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters."""

        logit_adjustment: float = 0.0  # tau of the labeled loss; 1 in SAW + LA
        strong_views: int = at_least(1, 2)  # how many strong views every unlabeled image has
        # beta of the effective number of images; None: 1 - 1/N for N images a class on average.
        # The published scripts have both, and 0.99
        weight_beta: float | None = within("[0, 1)", None)
        periods: int = at_least(1, 500)  # equal parts of the run, after each of which weights move
        # Images that were not drawn yet. none: do not count; shipped: as the published code, count
        # for the first class
        unseen: str = one_of("none", "shipped")
        # pseudo-labels of weighted probabilities, as in the published script for STL-10
        relabel: bool = False

    config: Config
    weights: Tensor  # (K,) w^u, of the unlabeled loss
    predicted: Tensor  # (N,) latest class of every image of the pool; -1: not drawn yet

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views: Sequence[str] = ("weak", *["strong"] * config.strong_views)
        of_labels = smooth_weights(task.labeled_counts, config.weight_beta)
        self.labeled_loss = losses.LogitAdjusted(
            task.labeled_prior, config.logit_adjustment, of_labels
        )
        self.register_buffer("weights", torch.ones(task.num_classes))
        self.register_buffer("predicted", torch.full((task.num_unlabeled,), -1))

    def keep(self, p: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pseudo-labels as in FixMatch, each with the weight of its class."""
        if self.training:
            classes = p.argmax(1)
            self.predicted[batch.index_u] = classes[last_rows(batch.index_u)]
        weights = self.weights.to(p.dtype)
        if self.config.relabel:
            p = p * weights / (p @ weights)[:, None]
        classes, counts = super().keep(p, batch)
        return classes, counts * weights[classes]

    def objective(
        self, logits_x: Tensor, y: Tensor, kept: tuple[Tensor, Tensor], logits_s: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch's losses; `mask_rate` counts images, whatever their class weighs."""
        found, _ = super().objective(logits_x, y, kept, logits_s)
        classes, weight = kept
        return found, {"mask_rate": (weight / self.weights[classes]).mean()}

    def after_step(self, ctx: Context) -> None:
        """At the end of a period the weights follow the pool's pseudo-labels."""
        super().after_step(ctx)
        before, now = (step * self.config.periods // ctx.total for step in (ctx.step - 1, ctx.step))
        if now != before:
            self.weights.copy_(smooth_weights(self.pool_counts(), self.config.weight_beta))

    def pool_counts(self) -> Tensor:
        """How many images of the pool were predicted as each class, (K,)."""
        seen = self.predicted
        if self.config.unseen == "shipped":
            seen = seen.clamp_min(0)
        counts = torch.zeros(len(self.weights) + 1, dtype=torch.int64, device=seen.device)
        return counts.index_add_(0, seen + 1, torch.ones_like(seen))[1:]

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Weights of the unlabeled loss, and what the pool seems to hold."""
        found = super().on_validation(evaluation, ctx)
        counts = self.pool_counts().double()
        share = (
            counts / counts.sum()
            if bool(counts.any())
            else torch.ones_like(counts).div(len(counts))
        )
        return {"estimated_prior": share, **found, "class_weights": self.weights.clone()}


def smooth_weights(counts: Tensor, beta: float | None) -> Tensor:
    """Weights of mean 1, one over the effective number of images; no images count as one.

    With N images a class on average beta = (N - 1) / N unless it is given, so that a class of N
    images counts for about 0.63 N.

    Shape: counts (K,) -> (K,) float64.
    """
    mean = counts.double().mean().clamp_min(1)
    return class_weights(
        "effective", counts.clamp_min(1), (mean - 1) / mean if beta is None else beta
    )
