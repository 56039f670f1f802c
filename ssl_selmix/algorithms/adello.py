"""ADELLO: logits are aligned with a prior that moves from the pool's to a nearly uniform one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, keeps_rows
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.labeled_in_pool import KnowsLabeled
from ssl_selmix.methods.pool_prior import given_shares
from ssl_selmix.methods.views import Guessing, Look, guide
from ssl_selmix.models import Classifier

EPSILON = 1e-9  # added to frequencies before the logarithm, as in the published code


class ADELLO(KnowsLabeled):
    """Sanchez Aimar et al., ECCV 2024: FixMatch with flexible distribution alignment.

    Losses are those of logits shifted from the prior Q to that of their images. What is not
    confident is distilled with soft targets, at a temperature that grows with the pool's skew.
    """

    forwards: Sequence[str] = ("joint", "split", "lazy")
    contract_cases: Sequence[Mapping[str, Any]] = (
        *pseudo_labels.CONTRACT_CASES,
        {"threshold": 0.6, "distill_from": 0.0},
    )

    @dataclass
    class Config(Algorithm.PoolConfig, Guessing):
        """Hyper-parameters."""

        threshold: float = within("[0, 1]", 0.95)  # tau, from which a pseudo-label counts
        lambda_u: float = at_least(0, 1.0)  # lambda_u, weight of the unlabeled loss
        # weight of what p, the mean of predictions, was before the step
        memory: float = within("[0, 1)", 0.999)
        # the last exponent: Q is p^alpha_min at the end; 0: uniform
        alpha_min: float = within("[0, 1]", 0.1)
        power: float = at_least(0, 2.0)  # d: alpha = 1 - (1 - alpha_min) (t / T)^d
        # equal parts of the run, after each of which alpha moves; 0: with every step
        alpha_periods: int = at_least(0, 0)
        prior_given: list[float] = field(default_factory=list)  # K shares, in the place of p in Q
        distill: bool = True  # learn from images that are not confident, too (CCR)
        distill_from: float = within("[0, 1]", 0.191)  # share of the steps before: 50,000 of 2^18
        lambda_c: float = at_least(0, 1.0)  # lambda_c, weight of the distillation
        # adaptive: T = exp KL(uniform | p) when the distillation begins; shipped: 1, as the
        # published configurations leave it
        distill_temperature: str = one_of("adaptive", "shipped")
        # whether predictions for labeled images that are in the pool, too, enter p; true: shipped
        count_labeled: bool = False

    config: Config
    log_pi: Tensor  # (K,) log(pi + 1e-9) of the labeled images, float64
    pool: Tensor  # (K,) p, mean prediction for the pool, float64
    given: Tensor  # (K,) prior_given, or empty
    temperature: Tensor  # T of the distillation; 0 before it

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        k = task.num_classes
        known = given_shares(config.prior_given, k) if config.prior_given else torch.empty(0)
        self.register_buffer("log_pi", (task.labeled_prior.double() + EPSILON).log())
        self.register_buffer("pool", torch.full((k,), 1 / k, dtype=torch.float64))
        self.register_buffer("given", known)
        self.register_buffer("temperature", torch.zeros((), dtype=torch.float64))
        self.register_labeled(task)

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled loss, loss of confident images, and distillation of the others."""
        cfg, look = self.config, Look(self.net, batch, guide(self, ctx))
        weak = look.weak_logits().float()
        q = weak.softmax(1)
        shift_x, shift_s = (s.to(q.dtype) for s in self.shifts(ctx.step, ctx.total))
        self.remember(q, batch.index_u)
        kept = losses.pseudo_label(q, cfg.threshold)
        distils = cfg.distill and ctx.step >= round(cfg.distill_from * ctx.total)
        logits_x, logits_s = look.rest_logits(None if distils else kept[1] > 0)
        logits_s = logits_s + shift_s
        found = {
            "labeled": F.cross_entropy(logits_x + shift_x, batch.y),
            "unlabeled": cfg.lambda_u * losses.masked_cross_entropy(logits_s, *kept),
        }
        if distils:
            found["distillation"] = cfg.lambda_c * self.distillation(logits_s, weak, 1 - kept[1])
        alpha = torch.full((), self.alpha(ctx.step, ctx.total), device=q.device)
        return found, {"mask_rate": kept[1].mean(), "alpha": alpha}

    def alpha(self, step: int, total: int) -> float:
        """Exponent of the pool's frequencies in Q: from 1 down to about `alpha_min`."""
        parts = self.config.alpha_periods
        done = step * parts // total / parts if parts else step / total
        return 1 - (1 - self.config.alpha_min) * float(done**self.config.power)

    def shifts(self, step: int, total: int) -> tuple[Tensor, Tensor]:
        """What is added to the logits of labeled and of unlabeled images, (K,) each.

        log of the frequencies of their classes over those of Q, so that the raw logits follow Q.
        """
        target = (self.given if len(self.given) else self.pool) ** self.alpha(step, total)
        log_q = (target / target.sum() + EPSILON).log()
        return self.log_pi - log_q, (self.pool + EPSILON).log() - log_q

    def remember(self, q: Tensor, index: Tensor) -> None:
        """Move p towards the mean prediction M×K for these positions (M,) in the pool."""
        seen = torch.ones_like(index, dtype=torch.float64)
        if not self.config.count_labeled:
            seen = seen * ~self.labeled_too[index]
        mean = seen @ q.double() / seen.sum().clamp_min(1)
        self.pool.lerp_(torch.where(seen.sum() > 0, mean, self.pool), 1 - self.config.memory)

    def distillation(self, logits_s: Tensor, logits_w: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of strong views M×K with the weak views' predictions, both at T."""
        if self.config.distill_temperature == "adaptive":
            # Fixed by the step in which the distillation begins.
            begun = self.temperature > 0
            self.temperature.copy_(torch.where(begun, self.temperature, skew(self.pool)))
        else:
            self.temperature.fill_(1)
        t = self.temperature.to(logits_w.dtype)
        return losses.masked_cross_entropy(logits_s / t, (logits_w / t).softmax(1), mask)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """The pool as the network sees it, and the temperature (0 before the distillation)."""
        return {"estimated_prior": self.pool.clone(), "temperature": self.temperature.clone()}


def skew(prior: Tensor) -> Tensor:
    """How skewed frequencies are: exp KL(uniform | prior), 1 for equal ones, more for others."""
    log_p = (prior / prior.sum()).clamp_min(EPSILON).log()
    return (-log_p.mean()).exp() / len(prior)
