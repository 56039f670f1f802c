"""What second stages on labeled images share: which part of a trained network learns, how fast.

They start from the network that another stage hands on (`--algo fixmatch --then crt`) and see no
unlabeled image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Batch, Context, Task, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, one_of
from ssl_selmix.data import Data
from ssl_selmix.models import Classifier
from ssl_selmix.models.batch_norm import batch_norms


class FineTuning(Algorithm):
    """All weights learn, the body slowly, at the rate of SelMix's fixed-step fine-tuning.

    SelMix and the stages that a table has beside it derive from this, so that they differ in what
    is mixed and in nothing else. Batch norms keep their stored statistics and their weights.
    """

    views: Sequence[str] = ()

    @dataclass
    class Config(Algorithm.Config):
        """Hyper-parameters."""

        steps: int = 500  # T; 10,000 in the SelMix paper
        lr: float = 3e-4  # eta, learning rate of the classifier
        body_lr: float = at_least(0, 0.1)  # rate of the features, as a share of lr
        momentum: float = 0.0
        nesterov: bool = False
        schedule: str = "cosine"
        ema: float = 0.0
        evaluate_every: int = 50
        # batch: the batch's statistics, as published; frozen: stored ones
        batch_norm: str = one_of("batch", "frozen")

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self._momenta = [module.momentum for module in batch_norms(net)]
        for module in batch_norms(net):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> FineTuning:
        """Train mode that leaves the stored batch statistics as they are."""
        super().train(mode)
        for module in batch_norms(self.net):
            module.momentum = 0.0
            # A frozen body has statistics of its own, by which its features were made.
            module.train(mode and self.config.batch_norm == "batch" and not self.net.frozen)
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """A slow body, a fast classifier; vectors are not decayed."""
        groups = super().param_groups()
        body = {id(p) for p in self.net.body.parameters()}
        return [
            {**group, "params": params, "lr_scale": group["lr_scale"] * scale}
            for group in groups
            for scale, params in (
                (self.config.body_lr, [p for p in group["params"] if id(p) in body]),
                (1.0, [p for p in group["params"] if id(p) not in body]),
            )
        ]

    def export(self) -> Classifier:
        """The network as it came: its batch norms keep statistics again."""
        net = super().export()
        for module, momentum in zip(batch_norms(net), self._momenta, strict=True):
            module.momentum = momentum
        return net


def new_classifier(net: Classifier) -> None:
    """Random weights for the last layer, drawn as `models.build` draws them."""
    net.classifier.reset_parameters()
    if net.classifier.bias is not None:
        nn.init.zeros_(net.classifier.bias)


class FrozenBody(Algorithm):
    """Only what follows the features learns, on batches that have every class equally often.

    Kang et al., ICLR 2020. Their rate is 0.2 for batches of 512 (ImageNet-LT, 10 epochs for cRT
    and 5 for LWS), which is 0.025 for batches of 64.
    """

    views: Sequence[str] = ()

    @dataclass
    class Config(Algorithm.Config):
        """Hyper-parameters."""

        steps: int = 500  # T; as many as the other second stages
        lr: float = 0.025
        nesterov: bool = False
        schedule: str = "cosine"
        ema: float = 0.0
        evaluate_every: int = 50

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        net.body.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBody:
        """Train mode in which the body stays in evaluation mode, with the stored statistics."""
        super().train(mode)
        self.net.body.eval()
        return self

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of the weak view; the body needs no gradient."""
        with torch.no_grad():
            features = self.net.features(batch.x)
        return {"labeled": F.cross_entropy(self.head(features), batch.target)}, {}

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Labeled images, every class equally often."""
        return data.batches((), self.config.batch, 0, start, balanced=True)
