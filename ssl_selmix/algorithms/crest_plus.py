"""CReST+: CReST whose pseudo-labels follow a target that gets flatter with every generation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.crest import CReST
from ssl_selmix.common.rules import at_least, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.pseudo_labels import DistributionAlignment
from ssl_selmix.models import Classifier


class CReSTPlus(CReST):
    """Wei et al., CVPR 2021: progressive distribution alignment."""

    @dataclass
    class Config(CReST.Config):
        """Hyper-parameters."""

        t_min: float = within("[0, 1]", 0.5)  # temperature of the last target; 1: constant target
        window: int = at_least(1, 128)  # batches whose mean prediction is aligned with the target

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        # The frequencies of the original labeled set, in every generation.
        self.alignment = DistributionAlignment(task.labeled_prior, config.window)

    def temperature(self, step: int) -> float:
        """t_g = 1 - f + f t_min, f = g / (G - 1) for g = 0 .. G - 1."""
        f = self.generation(step) / max(1, self.generations - 1)
        return 1 - f + f * self.config.t_min

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Aligned probabilities: they decide confidence and pseudo-label alike."""
        p = super().guess(logits_w, batch, ctx)
        return self.alignment(p, self.temperature(ctx.step))  # type: ignore[no-any-return]

    def restart(self, ctx: Context) -> None:
        """A new network has predictions of its own; DASO's code keeps the old ones' mean."""
        super().restart(ctx)
        self.alignment.reset()
