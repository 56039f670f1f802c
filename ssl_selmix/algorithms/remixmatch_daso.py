"""ReMixMatch + DASO: guesses that follow class prototypes where a class is guessed often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context, weighs_labels
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import prototypes
from ssl_selmix.models import Classifier


class ReMixMatchDASO(ReMixMatch):
    """Oh et al., CVPR 2022, on ReMixMatch: soft blended guesses, without a threshold."""

    @dataclass
    class Config(ReMixMatch.Config, prototypes.Config):
        """Hyper-parameters."""

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        num_features = net.classifier.in_features
        self.semantic = prototypes.PrototypeClassifier(task.num_classes, num_features, config)

    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """ReMixMatch with blended guesses and, after the warm-up, the alignment loss."""
        mode = self.config.teacher_mode
        self.semantic.remember(prototypes.teacher_features(ctx.teacher, batch.x, mode), batch.y)
        seen = self.remix.look(self.net, batch)
        similar, alignment = self.semantic(seen.weak, seen.strong)
        q = self.guess(seen, batch, ctx)
        extra = {}
        if self.semantic.started(ctx):
            q = self.semantic.blend(q, similar)  # of the sharpened guess, and not sharpened again
            extra["alignment"] = alignment
        self.semantic.count(q.argmax(1), ctx.step)
        found = self.remix.losses(self.net.classifier, seen, batch.target, q, ctx.progress)
        return found | extra, {"confidence": q.amax(1).mean()}
