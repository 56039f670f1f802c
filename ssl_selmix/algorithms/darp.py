"""DARP: FixMatch whose pseudo-labels are refined, all at once, to the pool's class counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import one_of
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import refinement
from ssl_selmix.methods.pool_prior import SOURCES
from ssl_selmix.models import Classifier


class DARP(refinement.Refines, FixMatch):
    """Kim et al., NeurIPS 2020; the threshold applies to the refined rows.

    c is N times q of `prior`, which here shifts no logits.
    """

    @dataclass
    class Config(FixMatch.Config, refinement.Config):
        """Hyper-parameters."""

        # where the class shares of the pool come from that make the counts c
        prior: str = one_of(*SOURCES[1:], default="estimated")
        logit_adjustment: float = 0.0  # tau of the labeled loss; none in the paper

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.refinery = refinement.RefinedLabels(task, config)

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Rows of the refined table, which until the end of the warm-up are the predictions."""
        return self.refinery(super().guess(logits_w, batch, ctx), batch.index_u)  # type: ignore[no-any-return]

    def of_pool(self, logits: Tensor) -> Tensor:
        """The logits as they are: q is the target of the refinement and no shift."""
        return logits
