"""SMOTE in feature space: a new classifier learns from points between images of one class."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation, keeps_rows
from ssl_selmix.common.rules import at_least
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FrozenBody, new_classifier


class Smote(FrozenBody):
    """Chawla et al., JAIR 2002, on features that stay as they are, with classes equally often.

    What SelMix's pairs are compared with: they mix an image with one of another class that is
    chosen by the objective, this with a near one of its own class.
    """

    @dataclass
    class Config(FrozenBody.Config):
        """Hyper-parameters."""

        neighbours: int = at_least(1, 5)  # k, nearest images of the class, one of which is drawn

    config: Config
    known: Tensor  # (n, D) features of the labeled images as they are
    classes: Tensor  # (n,)

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        new_classifier(net)
        num = int(task.labeled_counts.sum())
        self.register_buffer("known", torch.zeros(num, net.classifier.in_features))
        self.register_buffer("classes", torch.zeros(num, dtype=torch.long))

    def needs_features(self, step: int) -> Collection[str]:
        """Those of the labeled images, once: the body stays as it is."""
        return ("labeled",) if step == 0 else ()

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Remember where the labeled images are."""
        if evaluation.labeled_features is not None and evaluation.labeled_classes is not None:
            self.known.copy_(evaluation.labeled_features)
            self.classes.copy_(evaluation.labeled_classes)
        return {}

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of h + lambda (h' - h), h' near h in its class, lambda ~ U(0, 1)."""
        with torch.no_grad():
            features = self.net.features(batch.x)
            share = torch.rand(len(features), 1, device=features.device)
            between = torch.lerp(features, self.known[self.near(features, batch.y)], share)
        return {"labeled": F.cross_entropy(self.head(between), batch.y)}, {}

    def near(self, features: Tensor, labels: Tensor) -> Tensor:
        """Places (B,) among the known images: of the k nearest of the class, a random one.

        Shape: features B×D, labels (B,). A class with fewer than k images draws from all of them.
        """
        far = torch.cdist(features.float(), self.known)
        far = far.masked_fill(labels[:, None] != self.classes, float("inf"))
        k = min(self.config.neighbours, len(self.known))
        distances, places = far.topk(k, largest=False)
        there = distances.isfinite().sum(1, keepdim=True).clamp_min(1)
        drawn = (torch.rand(len(labels), 1, device=far.device) * there).long()
        return places.gather(1, drawn.clamp_max(k - 1))[:, 0]
