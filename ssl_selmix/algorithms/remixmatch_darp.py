"""ReMixMatch + DARP: guesses are refined, all at once, to the pool's class counts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.common.rules import one_of
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import refinement, remixmatch
from ssl_selmix.methods.pool_prior import SOURCES
from ssl_selmix.models import Classifier


class ReMixMatchDARP(refinement.Refines, ReMixMatch):
    """Kim et al., NeurIPS 2020, on ReMixMatch: soft refined guesses, without a threshold.

    One q, that of `prior`, is the target of both the alignment and the refinement, as in the code
    of DASO and DARP. Neither takes place before there is an estimate of it.
    """

    @dataclass
    class Config(ReMixMatch.Config, refinement.Config):
        """Hyper-parameters."""

        prior: str = one_of(*SOURCES[1:], default="estimated")  # where q and c = N q come from

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.refinery = refinement.RefinedLabels(task, config)

    def guess(self, seen: remixmatch.Seen, batch: Batch, ctx: Context) -> Tensor:
        """Rows of the refined table; before there is one, aligned and sharpened predictions."""
        guess = super().guess(seen, batch, ctx)
        return self.refinery(guess, batch.index_u)  # type: ignore[no-any-return]
