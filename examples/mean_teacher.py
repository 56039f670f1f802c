"""Mean Teacher: the averaged network says what the trained one should answer for the pool.

Tarvainen & Valpola, NeurIPS 2017. w and s are a weak and a strong view of an unlabeled image, p
the class probabilities of the trained network, p' those of its running average, the teacher:

    loss = CE(z(x), y) + lambda ramp(t) mean |p(s) - p'(w)|^2

ramp rises from exp(-5) to 1 in the first `ramp` of the steps. Decided here: the strong view, where
the paper has two weak ones, and the teacher in evaluation mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Batch, Context
from ssl_selmix.common.rules import at_least, within
from ssl_selmix.methods.views import joint_logits


class MeanTeacher(Algorithm):
    """Consistency with the averaged network."""

    @dataclass
    class Config(Algorithm.PoolConfig):
        """Hyper-parameters."""

        weight: float = at_least(0, 10.0)  # lambda, of the consistency loss
        ramp: float = within("[0, 1]", 0.2)  # share of the steps in which it sets in

    config: Config

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The labeled loss, and the distance of the strong view from the teacher's answer."""
        x, _, strong = joint_logits(self.net, batch)
        expected = ctx.teacher(batch.u[0]).softmax(1)
        distance = (strong.softmax(1) - expected).square().sum(1).mean()
        missing = max(0.0, 1 - ctx.progress / self.config.ramp) if self.config.ramp else 0.0
        weight = self.config.weight * math.exp(-5 * missing**2)
        found = {"labeled": F.cross_entropy(x, batch.y), "consistency": weight * distance}
        return found, {"teacher_confidence": expected.amax(1).mean()}
