"""ABC: FixMatch with a second linear head that learns from a class-balanced share of the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix.algorithm import Context, keeps_rows
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.balanced_head import BalancedHead
from ssl_selmix.methods.views import Look, guesser, guide
from ssl_selmix.models import Classifier


class ABC(FixMatch):
    """Lee, Shin & Kim, NeurIPS 2021: the first head shapes the features, the second one predicts.

    Its code passes every view through the network apart; here all of them share batch statistics,
    as in FixMatch.
    """

    head_name = "balanced"

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters; `threshold` is that of both heads."""

        logit_adjustment: float = 0.0  # tau of the first head; none in the paper
        # how many strong views every unlabeled image has; 1 in the DASO and USB codes
        strong_views: int = at_least(1, 2)
        soft_targets: bool = True  # the second head learns its prediction q; False: the arg-max

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views = ("weak", *["strong"] * config.strong_views)
        self.balanced = BalancedHead(
            net.classifier.in_features,
            task.labeled_counts,
            config.threshold,
            soft_targets=config.soft_targets,
        )

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch on the network's own classifier, and the balanced losses on the second head."""
        a, look = self.net.classifier, Look(self.net, batch, guide(self, ctx))
        h_w, who = look.weak(), guesser(self, ctx)
        p = self.guess(self.of_pool(who.net.classifier(h_w).detach()), batch, ctx)
        kept = self.confidence(p, batch.index_u)
        chosen = self.balanced.choose(batch.y, who.balanced.guess(h_w), ctx)
        h_x, strong = look.rest((kept[1] > 0) | (chosen.unlabeled > 0))
        found, logs = self.objective(a(h_x), batch.y, kept, a(torch.cat(strong)))
        return found | self.balanced.objective(h_x, batch.y, chosen, strong), logs

    def head(self, features: Tensor) -> Tensor:
        """The balanced head alone."""
        return self.balanced(features)  # type: ignore[no-any-return]

    def export(self) -> Classifier:
        """The network with the balanced head for its classifier."""
        return self.balanced.into(super().export())
