"""FixMatch: confident weak-view predictions teach the strong view; logit adjustment optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, positive
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.pool_prior import FollowsPool, PoolPrior
from ssl_selmix.methods.views import Guessing, Look, guide
from ssl_selmix.models import Classifier


class FixMatch(FollowsPool):
    """Sohn et al., NeurIPS 2020; with the logit-adjusted labeled loss of the SelMix baseline."""

    views: Sequence[str] = ("weak", "strong")
    weak_views = 1  # how many of them, the first ones, are looked at for pseudo-labels
    forwards: Sequence[str] = ("joint", "split", "lazy")
    contract_cases = pseudo_labels.CONTRACT_CASES

    @dataclass
    class Config(Algorithm.PoolConfig, pseudo_labels.Config, PoolPrior.Config, Guessing):
        """Hyper-parameters."""

        lambda_u: float = at_least(0, 1.0)  # lambda_u, weight of the unlabeled loss
        temperature: float = positive(1.0)  # T, divides the weak logits before the threshold
        logit_adjustment: float = at_least(0, 1.0)  # tau of the labeled loss; 0: plain FixMatch

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.labeled_loss = losses.LogitAdjusted(task.labeled_prior, config.logit_adjustment)
        self.pool_prior = PoolPrior(task, config)
        self.confidence = pseudo_labels.build(task, config)

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled loss on adjusted logits; pseudo-labels and their loss on the pool's."""
        look = Look(self.net, batch, guide(self, ctx), self.weak_views)
        p = self.guess(self.of_pool(look.weak_logits().float()), batch, ctx)
        kept = self.keep(p, batch)
        # An image may have several pseudo-labels: it is needed if any of them counts.
        needed = kept[1].reshape(-1, len(batch.index_u)).amax(0) > 0
        logits_x, logits_s = look.rest_logits(needed)
        return self.objective(logits_x, batch.target, kept, logits_s)

    def keep(self, p: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (M,) of the probabilities M×K, and the weights (M,) of their losses."""
        return self.confidence(p, batch.index_u)  # type: ignore[no-any-return]

    def objective(
        self, logits_x: Tensor, y: Tensor, kept: tuple[Tensor, Tensor], logits_s: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses, given the pseudo-labels (M,) and their weights (M,); and the logs.

        Shape: logits_x B×K; y (B,), or masses B×K; logits_s M×K, or M×K of every strong view one
        after the other.
        """
        logits_s = self.of_pool(logits_s)
        classes, weight = (rows.repeat(len(logits_s) // len(rows)) for rows in kept)
        unlabeled = losses.masked_cross_entropy(logits_s, classes, weight)
        found = {
            "labeled": self.labeled_loss(logits_x, y),
            "unlabeled": self.config.lambda_u * unlabeled,
            **self.confidence.penalty(logits_s, classes, weight),
        }
        return found, {"mask_rate": weight.mean()}

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Class probabilities M×K of the weak views, from which pseudo-labels are taken."""
        return (logits_w / self.config.temperature).softmax(1)

    def of_pool(self, logits: Tensor) -> Tensor:
        """Logits whose softmax follows the pool's class prior q, if the configuration has one.

        The labeled loss leaves logits that follow pi^(1 - tau): the balanced prior for tau = 1.

        Shape: N×K -> N×K.
        """
        if not self.pool_prior.used:
            return logits
        balance = (1 - self.config.logit_adjustment) * self.labeled_loss.log_pi
        shift = losses.log_prior(self.pool_prior.q).to(logits.dtype) - balance
        return logits + self.pool_prior.known * shift  # 0 until there is an estimate
