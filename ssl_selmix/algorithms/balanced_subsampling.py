"""Fine-tuning on class-balanced subsets: as many images of each class as the rarest one has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Context, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least, one_of
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FineTuning, new_classifier


class BalancedSubsampling(FineTuning):
    """Random undersampling (Buda et al., Neural Networks 2018) as a second stage: a control.

    By default the last layer alone learns, from random weights and at the rate of cRT. With
    `classifier=kept body_lr=0.1 lr=3e-4 momentum=0 batch_norm=batch` everything learns from where
    it is, as in SelMix's fixed-step fine-tuning.
    """

    @dataclass
    class Config(FineTuning.Config):
        """Hyper-parameters."""

        # each: another subset in every epoch, so that in the end all images were seen; one: the
        # same in all epochs, as published
        subset: str = one_of("each", "one")
        # new: random weights, for a network that has no loss left on its labeled images learns
        # nothing from any subset of them
        classifier: str = one_of("new", "kept")
        lr: float = 0.025
        body_lr: float = at_least(0, 0.0)  # rate of the features as a share of lr; 0: they stay
        momentum: float = 0.9
        batch_norm: str = one_of("frozen", "batch")

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        if not config.body_lr:
            net.backbone.requires_grad_(False)
        if config.classifier == "new":
            new_classifier(net)

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of the weak view."""
        return {"labeled": F.cross_entropy(self.net(batch.x), batch.target)}, {}

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Labeled images of balanced subsets, one subset after the other."""
        renew = self.config.subset == "each"
        return data.undersampled(self.config.batch, start, renew=renew)
