"""DebiasPL: FixMatch that takes its mean prediction out of pseudo-labels, and into the margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.losses import log_prior
from ssl_selmix.models import Classifier


class DebiasPL(FixMatch):
    """Wang, Wu, Lian & Yu, CVPR 2022: debiased pseudo-labels and an adaptive marginal loss.

    q^, a running mean of what is predicted for the pool, is subtracted before a pseudo-label is
    taken, and added in the loss, so that a class that is predicted often needs a larger margin.
    """

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters."""

        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper
        adjustment: float = at_least(0, 0.4)  # tau, of log q^; 1 is the whole of it
        memory: float = within("[0, 1)", 0.99)  # weight of what q^ was before the step
        # two weak and two strong views; the mean of the weak ones and each of them teach both
        multiviews: bool = False

    config: Config
    q_hat: Tensor  # (K,) q^

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        if config.multiviews:
            self.weak_views = 2
            self.views: Sequence[str] = ("weak", "weak", "strong", "strong")
        k = task.num_classes
        self.register_buffer("q_hat", torch.full((k,), 1 / k))

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Probabilities less tau log q^ of the steps before; then q^ takes up the plain ones.

        Shape: logits_w M×K, or 2M×K of two views -> M×K, or 3M×K: of their mean and of each.
        """
        views = logits_w.view(self.weak_views, len(batch.index_u), -1)
        mean = views.mean(0)
        p = super().guess(
            torch.cat([mean, logits_w] if self.weak_views > 1 else [mean]) - self.shift(mean),
            batch,
            ctx,
        )
        if self.training:
            self.q_hat.lerp_(mean.softmax(1).mean(0).to(self.q_hat), 1 - self.config.memory)
        return p

    def keep(self, p: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pseudo-labels and weights for each of the views' opinions, one after the other."""
        opinions = len(p) // len(batch.index_u)
        return self.confidence(p, batch.index_u.repeat(opinions))  # type: ignore[no-any-return]

    def objective(
        self, logits_x: Tensor, y: Tensor, kept: tuple[Tensor, Tensor], logits_s: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch's losses on strong logits plus tau log q^, which has this batch in it.

        With several opinions each teaches every strong view, and the loss is the mean over all.
        """
        logits_s = logits_s + self.shift(logits_s)
        num = len(self.views) - self.weak_views
        opinions = len(kept[0]) * num // len(logits_s)
        if opinions > 1:
            kept = tuple(  # type: ignore[assignment]
                rows.view(opinions, 1, -1).expand(-1, num, -1).reshape(-1) for rows in kept
            )
            logits_s = logits_s.repeat(opinions, 1)
        return super().objective(logits_x, y, kept, logits_s)

    def shift(self, logits: Tensor) -> Tensor:
        """What is added and subtracted: tau log q^, (K,)."""
        return (self.config.adjustment * log_prior(self.q_hat)).to(logits.dtype)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """What is predicted for the pool on average."""
        found = super().on_validation(evaluation, ctx)
        return {"estimated_prior": self.q_hat / self.q_hat.sum(), **found}
