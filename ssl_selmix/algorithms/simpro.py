"""SimPro: labeled and unlabeled images have class frequencies of their own, found by EM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.views import Guessing, Look, guide
from ssl_selmix.models import Classifier


class SimPro(Algorithm):
    """Du, Han & Huang, ICML 2024: soft pseudo-labels under the pool's estimated frequencies.

    The loss is adjusted by the frequencies of all training images, labeled and pseudo-labeled, so
    that the raw logits are those of equally frequent classes.
    """

    views = ("weak", "strong", "strong")
    labeled_views = ("weak", "strong")
    follows_curriculum = False  # the weight of its labeled loss is for one mu
    forwards: Sequence[str] = ("joint", "split", "lazy")
    contract_cases = pseudo_labels.CONTRACT_CASES

    @dataclass
    class Config(Algorithm.PoolConfig, Guessing):
        """Hyper-parameters."""

        threshold: float = within("[0, 1]", 0.95)  # rho, of the adjusted probability; 0.2 for K=100
        tau: float = at_least(0, 2.0)  # exponent of both frequencies: 1 in the derivation
        memory: float = within("[0, 1)", 0.9)  # m, of both frequencies, from period to period
        periods: int = at_least(1, 86)  # equal parts of the run, after each of which they move
        # of the labeled loss. exact: mu N / M, as each image counted once; floored: as the
        # published code, by the numbers of whole batches; one: none
        labeled_weight: str = one_of("exact", "floored", "one")

    config: Config
    pool: Tensor  # (K,) pi_u, class frequencies of the pool
    seen: Tensor  # (K,) phi, those of all training images
    pool_sum: Tensor  # (K,) S, soft pseudo-labels of the period that counted
    labeled_sum: Tensor  # (K,) C, labels of the period

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        k = task.num_classes
        self.register_buffer("pool", torch.full((k,), 1 / k, dtype=torch.float64))
        self.register_buffer("seen", task.labeled_prior.double())
        self.register_buffer("pool_sum", torch.zeros(k, dtype=torch.float64))
        self.register_buffer("labeled_sum", torch.zeros(k, dtype=torch.float64))
        self.weight = labeled_weight(task, config)

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Batches with a strong view of the labeled images as well."""
        cfg = self.config
        views = self.labeled_views
        return data.batches(self.views, cfg.batch, cfg.mu, start, labeled_views=views)

    @property
    def images_per_step(self) -> int:
        """Two views of labeled images, three of unlabeled ones."""
        cfg = self.config
        return cfg.batch * (len(self.labeled_views) + cfg.mu * len(self.views))

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled and unlabeled cross-entropy on logits adjusted by the same frequencies."""
        look = Look(self.net, batch, guide(self, ctx))
        q, mask = self.guess(look.weak_logits().float())
        logits_x, logits_s = look.rest_logits(mask > 0)
        y = F.one_hot(batch.y, q.shape[1]).to(self.pool)
        self.labeled_sum.add_(y.sum(0))
        self.pool_sum.add_((q * mask[:, None]).sum(0))
        adjustment = self.adjustment(self.seen).to(logits_x.dtype)
        views, num = len(logits_x) // len(batch.y), len(logits_s) // len(q)
        labeled = F.cross_entropy(logits_x + adjustment, torch.cat([batch.target] * views))
        targets, counts = q.repeat(num, 1), mask.repeat(num)
        found = {
            "labeled": self.weight * labeled,
            "unlabeled": losses.masked_cross_entropy(logits_s + adjustment, targets, counts),
        }
        return found, {"mask_rate": mask.mean()}

    def adjustment(self, frequencies: Tensor) -> Tensor:
        """log(p^tau + 1e-12), (K,)."""
        return losses.log_power(frequencies, self.config.tau)

    def guess(self, logits_w: Tensor) -> tuple[Tensor, Tensor]:
        """Soft pseudo-labels M×K of weak views under pi_u, and a mask (M,) of confident ones."""
        q = (logits_w + self.adjustment(self.pool).to(logits_w.dtype)).softmax(1)
        return q, losses.pseudo_label(q, self.config.threshold)[1]

    def after_step(self, ctx: Context) -> None:
        """At the end of a period both frequencies move towards what it counted."""
        before, now = (step * self.config.periods // ctx.total for step in (ctx.step - 1, ctx.step))
        if now == before:
            return
        keep = self.config.memory
        self.pool.mul_(keep).add_((1 - keep) * self.pool_sum / (self.pool_sum.sum() + 1))
        both = self.labeled_sum + self.pool_sum
        self.seen.mul_(keep).add_((1 - keep) * both / both.sum())
        self.pool_sum.zero_()
        self.labeled_sum.zero_()

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """The frequencies as they are estimated now."""
        return {"estimated_prior": self.pool / self.pool.sum(), "adapted_prior": self.seen.clone()}


def labeled_weight(task: Task, config: SimPro.Config) -> float:
    """What the labeled loss is multiplied with, 1/r.

    A set without a whole batch counts as one batch.
    """
    if config.labeled_weight == "one":
        return 1.0
    labeled = float(task.labeled_counts.sum()) / config.batch
    pool = task.num_unlabeled / (config.batch * config.mu)
    if config.labeled_weight == "floored":
        return max(1, int(labeled)) / max(1, int(pool))
    return labeled / pool if pool else 1.0
