"""Weight balancing: the classifier learns on with decay, and no class vector outgrows others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Context, keeps_rows
from ssl_selmix.common.rules import within
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.labeled import class_weights
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FrozenBody


class WeightBalancing(FrozenBody):
    """Alshammari et al., CVPR 2022: decay, MaxNorm and class-balanced weights on frozen features.

    MaxNorm: after every step a class vector longer than a limit is shortened to it. The limit lies
    between the shortest and the longest vector of the network that the stage starts from.
    """

    @dataclass
    class Config(FrozenBody.Config):
        """Hyper-parameters."""

        lr: float = 0.01
        weight_decay: float = 0.1
        max_norm: float = within(
            "[0, 1]", 0.1
        )  # of the way from the shortest vector to the longest
        # beta of the effective number of images; 0: no weights
        beta: float = within("[0, 1)", 0.9999)

    config: Config
    limit: Tensor  # (), longest that a class vector may be
    weights: Tensor  # (K,), of the classes in the loss

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        lengths = net.classifier.weight.detach().norm(dim=1)
        shortest, longest = lengths.min(), lengths.max()
        self.register_buffer("limit", shortest + config.max_norm * (longest - shortest))
        weights = class_weights("effective", task.labeled_counts, config.beta)
        self.register_buffer("weights", weights.float())

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Class-balanced cross-entropy of the weak view; the body needs no gradient."""
        with torch.no_grad():
            features = self.net.features(batch.x)
        each = F.cross_entropy(self.head(features), batch.y, reduction="none")
        return {"labeled": (self.weights[batch.y] * each).mean()}, {}

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        """Shorten the class vectors that are longer than the limit."""
        weight = self.net.classifier.weight
        lengths = weight.norm(dim=1, keepdim=True)
        weight.mul_((self.limit / lengths.clamp_min(1e-12)).clamp_max(1))

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Labeled images by their own frequencies, as the weights are for."""
        return data.batches((), self.config.batch, 0, start)
