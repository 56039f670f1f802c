"""ReMixMatch + ABC: a second linear head learns from a class-balanced share of unmixed images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context, weighs_labels
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.common.rules import within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.balanced_head import BalancedHead
from ssl_selmix.models import Classifier


class ReMixMatchABC(ReMixMatch):
    """Lee, Shin & Kim, NeurIPS 2021: ReMixMatch shapes the features, the second head predicts."""

    head_name = "balanced"
    contract_cases = pseudo_labels.CONTRACT_CASES

    @dataclass
    class Config(ReMixMatch.Config):
        """Hyper-parameters."""

        # share of the steps in which lambda_U, lambda_U1 rise; all of them in ABC's code
        ramp: float = 1.0
        threshold: float = within("[0, 1]", 0.95)  # tau, from which the second head follows itself
        soft_targets: bool = True  # the second head learns its prediction; False: the arg-max

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        num_features, soft = net.classifier.in_features, config.soft_targets
        self.balanced = BalancedHead(
            num_features, task.labeled_counts, config.threshold, soft_targets=soft
        )

    def head(self, features: Tensor) -> Tensor:
        """The balanced head alone."""
        return self.balanced(features)  # type: ignore[no-any-return]

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """ReMixMatch on the network's own classifier, and the balanced losses on the other one."""
        seen = self.remix.look(self.net, batch, plainly=True)
        q = self.guess(seen, batch, ctx)
        found = self.remix.losses(self.net.classifier, seen, batch.target, q, ctx.progress)
        chosen = self.balanced.choose(batch.y, self.balanced.guess(seen.weak), ctx)
        found |= self.balanced.objective(seen.labeled, batch.target, chosen, seen.views[1:])
        return found, {"confidence": q.amax(1).mean()}

    @property
    def images_per_step(self) -> int:
        """The labeled images and the other strong views are seen unmixed, too."""
        cfg = self.config
        more = round(cfg.batch * (1 + cfg.mean_mu * (cfg.strong_views - 1)))
        return super().images_per_step + more

    def export(self) -> Classifier:
        """The network with the balanced head for its classifier."""
        return self.balanced.into(super().export())
