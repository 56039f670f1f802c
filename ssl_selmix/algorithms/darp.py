"""DARP: FixMatch whose pseudo-labels are refined, all at once, to the pool's class counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import one_of
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import refinement
from ssl_selmix.methods.pool_prior import SOURCES
from ssl_selmix.models import Classifier


class DARP(FixMatch):
    """Kim et al., NeurIPS 2020; the threshold applies to the refined rows.

    c is N times q of `prior`, which here shifts no logits. Until there is an estimate of it,
    nothing is refined: a wrong c does more harm than none.
    """

    @dataclass
    class Config(FixMatch.Config, refinement.Config):
        """Hyper-parameters."""

        prior: str = one_of(*SOURCES[1:], default="estimated")  # of the target counts c
        logit_adjustment: float = 0.0  # plain in the paper

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.refinery = refinement.Refinery(task, config)

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Rows of the refined table, which until the end of the warm-up are the predictions."""
        return self.refinery(super().guess(logits_w, batch, ctx), batch.index_u)  # type: ignore[no-any-return]

    def of_pool(self, logits: Tensor) -> Tensor:
        """The logits as they are: q is the target of the refinement and no shift."""
        return logits

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Also log how often pseudo-labels were refined: 0 without an estimate that is trusted."""
        found = super().on_validation(evaluation, ctx)
        return found | {"refinements": self.refinery.refinements.double()}

    def after_step(self, ctx: Context) -> None:
        """Refine every few steps, as soon as c is known."""
        if self.refinery.due(ctx) and bool(self.pool_prior.known):
            self.refinery.refine(self.pool_prior.q * self.task.num_unlabeled)
