"""ReMixMatch: aligned, sharpened guesses for mixed, strongly augmented and rotated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Context, weighs_labels
from ssl_selmix.common.rules import at_least
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import remixmatch
from ssl_selmix.methods.pool_prior import FollowsPool, PoolPrior
from ssl_selmix.methods.pseudo_labels import DistributionAlignment
from ssl_selmix.models import Classifier


class ReMixMatch(FollowsPool):
    """Berthelot et al., ICLR 2020, as in the code of DASO, ABC and DARP for long-tailed pools."""

    views: Sequence[str] = ("weak", "strong", "strong")

    @dataclass
    class Config(Algorithm.PoolConfig, remixmatch.Config, PoolPrior.Config):
        """Hyper-parameters."""

        mu: int = 1  # mu, unlabeled images per labeled image; 1 in DASO, ABC, USB
        prior: str = "labeled"  # target of the alignment, as in the paper; none: no alignment
        window: int = at_least(1, 128)  # batches whose mean prediction is aligned with the target

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views = ("weak", *["strong"] * config.strong_views)
        self.remix = remixmatch.ReMix(net, config)
        self.pool_prior = PoolPrior(task, config)
        self.alignment = DistributionAlignment(self.pool_prior.q, config.window)

    @classmethod
    def needs_pixels(cls, config: Algorithm.Config) -> str:
        """To turn, unless the rotation loss is off."""
        turns = isinstance(config, remixmatch.Config) and config.lambda_r
        return "it turns images, unless lambda_r=0" if turns else ""

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Guesses from the weak views; cross-entropies of mixed, strong and rotated images."""
        seen = self.remix.look(self.net, batch)
        q = self.guess(seen, batch, ctx)
        found = self.remix.losses(self.net.classifier, seen, batch.target, q, ctx.progress)
        return found, {"confidence": q.amax(1).mean()}

    def guess(self, seen: remixmatch.Seen, batch: Batch, ctx: Context) -> Tensor:
        """Sharpened and aligned predictions q of the weak views, M×K, without gradient."""
        return self.aim(self.net.classifier(seen.weak.detach()).detach().softmax(1))

    def aim(self, p: Tensor) -> Tensor:
        """Predictions p M×K, aligned and sharpened."""
        if self.pool_prior.used:
            self.alignment.target.copy_(self.pool_prior.q)  # which may have been estimated anew
            p = torch.where(self.pool_prior.known, self.alignment(p), p)
        return remixmatch.sharpen(p, self.config.temperature)

    @property
    def images_per_step(self) -> int:
        """Weak, strong and rotated views, and all views once more to be mixed."""
        cfg = self.config
        return round(cfg.batch * (1 + cfg.mean_mu * (3 + len(self.views) - (not cfg.lambda_r))))
