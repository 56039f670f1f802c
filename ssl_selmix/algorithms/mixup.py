"""Mixup fine-tuning: convex combinations of labeled images and of their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from ssl_selmix import losses
from ssl_selmix.algorithm import Context, weighs_labels
from ssl_selmix.common.rules import positive
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch
from ssl_selmix.selmix.fine_tuning import FineTuning


class Mixup(FineTuning):
    """Zhang et al., ICLR 2018, as a second stage: what SelMix is without selection."""

    @dataclass
    class Config(FineTuning.Config):
        """Hyper-parameters."""

        alpha: float = positive(1.0)  # lambda ~ Beta(alpha, alpha); 1 on CIFAR, 0.2 on ImageNet
        balanced: bool = False  # draw every class equally often

    config: Config

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of the mixed images against the mixed labels."""
        partner = torch.randperm(len(batch.x), device=batch.x.device)
        x, share = self.mix(batch.x, batch.x[partner])
        y = losses.as_masses(batch.target, self.task.num_classes).to(x.dtype)
        return {"mixed": F.cross_entropy(self.net(x), torch.lerp(y[partner], y, share))}, {}

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Labeled images, by their own frequencies or class by class."""
        cfg = self.config
        return data.batches((), cfg.batch, 0, start, balanced=cfg.balanced)

    def mix(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The images lambda x + (1 - lambda) x' and lambda, one for all as in the authors' code.

        Shape: B×C×H×W twice -> B×C×H×W, scalar.
        """
        share = self.draw_share(first)
        return torch.lerp(second, first, share), share

    def draw_share(self, like: Tensor) -> Tensor:
        """A scalar lambda ~ Beta(alpha, alpha)."""
        alpha = torch.full((), self.config.alpha, device=like.device)
        share: Tensor = Beta(alpha, alpha, validate_args=False).sample()  # type: ignore[no-untyped-call]
        return share
