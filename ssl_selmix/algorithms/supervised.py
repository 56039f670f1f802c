"""Labeled images alone: cross-entropy, logit adjustment, re-weighting, re-sampling, LDAM, focal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Context, keeps_rows, weighs_labels
from ssl_selmix.common.rules import at_least
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import label_filter, labeled, pruning, sharpness
from ssl_selmix.models import Classifier


class Supervised(label_filter.Filters):
    """The baselines that see no unlabeled image (logit adjustment: Menon et al., ICLR 2021)."""

    views = ()

    @dataclass
    class Config(
        Algorithm.Config,
        labeled.Config,
        sharpness.Config,
        pruning.Config,
        label_filter.Config,
    ):
        """Hyper-parameters."""

        resample: bool = False  # draw every class equally often
        # tau; None: 1, or 0 with another correction
        logit_adjustment: float | None = at_least(0, None)

        def __post_init__(self) -> None:
            """Resolve tau: a skew that is corrected twice is turned around."""
            if self.logit_adjustment is None:
                plain = (self.loss, self.reweight, self.resample) == ("ce", "none", False)
                self.logit_adjustment = float(plain)
            super().__post_init__()
            if self.drw and self.reweight == "none":
                raise ValueError(f"drw={self.drw} puts class weights off; set reweight=effective")
            if self.loss == "ldam" and self.logit_adjustment:
                raise ValueError("loss=ldam has margins of its own; set logit_adjustment=0")
            if self.prune and self.sam != "none":
                raise ValueError(
                    f"prune={self.prune} leaves images out of a step, whose losses sam={self.sam} "
                    "needs to move the weights by; leave one of them out"
                )

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        sharpness.rare(task.labeled_counts, config)  # refuses what moves no weights
        self.loss = labeled.LabeledLoss(task, config, config.logit_adjustment or 0.0)
        self.begin_filter(config)
        self.cosine = labeled.CosineHead(config.scale) if config.loss == "ldam" else None
        if self.cosine and net.classifier.bias is not None:
            net.classifier.bias.requires_grad_(False)  # a cosine has none
        self.pruning = None
        if config.prune:
            pruning.check(net)
            self.pruning = pruning.Pruning(int(task.labeled_counts.sum()), config)

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The configured loss of the weak view."""
        if self.config.sam != "none":
            return self._nearby(batch, ctx)
        if self.pruning is not None:
            return self._pruned(batch, ctx, self.pruning)
        return {"labeled": self._loss(self._logits(batch.x), batch, ctx)}, {}

    def _loss(self, logits: Tensor, batch: Batch, ctx: Context) -> Tensor:
        return self.loss(logits, batch.y, ctx.progress, batch.masses)  # type: ignore[no-any-return]

    def _logits(self, x: Tensor) -> Tensor:
        features = self.net.features(x)
        classifier = self.net.classifier
        return self.cosine(features, classifier) if self.cosine else classifier(features)  # type: ignore[no-any-return]

    def _pruned(
        self, batch: Batch, ctx: Context, by: pruning.Pruning
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss of the images that are not left out, and how many these are."""
        index, y = batch.index_x, batch.y
        assert index is not None
        rows, factors = by.choose(index, ctx.progress)
        target = batch.target[rows]
        each = self.loss.each(self._logits(batch.x[rows]), target)
        by.remember(index[rows], each)
        loss = (factors * self.loss.portions(y, ctx.progress)[rows] * each).sum()
        return {"labeled": loss}, {"images": loss.new_tensor(len(rows))}

    def _nearby(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss of all or of the rare classes at moved weights, and what the move adds to it."""
        cfg, y = self.config, batch.y
        sharpness.check(self.net)
        moved = sharpness.rare(self.task.labeled_counts, cfg).to(y.device)[y]

        def shares(logits: Tensor) -> Tensor:
            return self.loss.shares(logits, y, ctx.progress, batch.masses)

        loss, added = sharpness.loss_nearby(self, self._logits, shares, batch.x, moved, cfg)
        return {"labeled": loss}, {"sharpness": added}

    @property
    def images_per_step(self) -> int:
        """Twice as many if weights move, for every image is seen at both places."""
        return super().images_per_step * (1 if self.config.sam == "none" else 2)

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Labeled images, by their own frequencies or class by class."""
        cfg = self.config
        found = data.batches((), cfg.batch, 0, start, balanced=cfg.resample)
        return found if self.label_filter is None else self.weighed(found)

    def head(self, features: Tensor) -> Tensor:
        """The classifier; for ldam, the linear layer that ranks classes as the cosines do.

        Shape: N×D -> N×K.
        """
        if self.cosine is None:
            return super().head(features)
        return F.linear(features, *self.cosine.folded(self.net.classifier))

    def export(self) -> Classifier:
        """The network with that layer as its classifier."""
        net = super().export()
        if self.cosine is None:
            return net
        return labeled.with_classifier(net, *self.cosine.folded(self.net.classifier))
