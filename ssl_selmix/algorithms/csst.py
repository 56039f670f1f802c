"""CSST: self-training with the gain matrix of a metric, re-derived at every validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix import objectives
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, one_of, positive, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import cost_sensitive
from ssl_selmix.methods.views import Guessing, Look, guide
from ssl_selmix.models import Classifier


class CSST(Algorithm):
    """Rangwani et al., NeurIPS 2022; FixMatch with cost-sensitive losses and a KL threshold."""

    forwards = ("joint", "split", "lazy")
    figures = ("objective",)

    @dataclass
    class Config(Algorithm.PoolConfig, objectives.Config, Guessing):
        """Hyper-parameters; `objective` and its options are those of `objectives.get`."""

        evaluate_every: int = 100  # steps between updates of lambda and G; paper: 10,000 of 2^20
        select: str = "objective"
        lambda_u: float = at_least(0, 1.0)  # lambda_u, weight of the unlabeled loss
        kl_threshold: float = positive(0.05)  # kappa, divergence below which a pseudo-label counts
        # lambda: persistent (the paper), or own: the objective's
        multipliers: str = one_of("persistent", "own")
        dual_step: float = positive(0.1)  # omega, step of persistent multipliers
        population: str = one_of("labeled", "balanced")  # class masses of C: labeled is pi
        # share of a uniform row in C, so that zero recall has a gradient
        smoothing: float = within("[0, 1)", 0.01)

        def build_objective(self, num_classes: int, tail: Sequence[int]) -> objectives.Objective:
            """The configured objective, by default with the multipliers of the paper."""
            built = super().build_objective(num_classes, tail)
            if self.multipliers == "own":
                return built
            names = ("step_size", "beta", "tau", "lambda_max")
            if unused := [n for n in names if getattr(self, n) is not None]:
                raise ValueError(
                    f"{unused[0]} belongs to multipliers=own; persistent ones have dual_step"
                )
            alpha = 0.95 if self.alpha is None else self.alpha
            return cost_sensitive.persistent(built, self.dual_step, alpha)

    config: Config
    prior: Tensor  # pi, (K,); a class without labeled images counts as if it had one
    gain: Tensor  # G, K×K: gain of predicting j when the truth is i

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.objective = config.build_objective(task.num_classes, task.tail)
        counts = task.labeled_counts.double().clamp_min(1)
        self.register_buffer("prior", counts / counts.sum())
        self.register_buffer("gain", torch.diag(1 / self.prior))

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """L_x = mean l(z_x, y), L_u = mean 1[KL(Gn_yhat || p_w) < kappa] l(z_s, yhat)."""
        look = Look(self.net, batch, guide(self, ctx))
        p = look.weak_logits().float().softmax(1)
        classes, kl = cost_sensitive.divergence(p, self.gain)
        mask = (kl < self.config.kl_threshold).to(p.dtype)
        logits_x, logits_s = look.rest_logits(mask > 0)
        unlabeled = cost_sensitive.cross_entropy(logits_s, classes, self.gain) * mask
        found = {
            "labeled": cost_sensitive.cross_entropy(logits_x, batch.target, self.gain).mean(),
            "unlabeled": self.config.lambda_u * unlabeled.mean(),
        }
        return found, {"mask_rate": mask.mean()}

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Update lambda, then G, from the teacher's confusion matrix; before step 0 as well."""
        confusion = evaluation.confusion
        self.objective.update(confusion)
        balanced = torch.full_like(self.prior, 1 / len(self.prior))
        population = self.prior if self.config.population == "labeled" else balanced
        self.gain.copy_(
            cost_sensitive.gain_matrix(
                self.objective, confusion, self.prior, population, self.config.smoothing
            )
        )
        ranked = self.config.select == "objective"
        logs = objectives.report(self.objective, confusion, ranked=ranked)
        if self.objective.multipliers is not None:
            logs["multipliers"] = self.objective.multipliers.clone()
        return logs | {"gain_matrix": self.gain.clone()}
