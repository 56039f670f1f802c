"""DASO: FixMatch whose pseudo-labels follow class prototypes where a class is predicted often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ssl_selmix.algorithm import Context, keeps_rows, weighs_labels
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import prototypes
from ssl_selmix.methods.balanced_head import BalancedHead
from ssl_selmix.methods.views import Look, guesser, guide
from ssl_selmix.models import Classifier


class DASO(FixMatch):
    """Oh et al., CVPR 2022; with `balanced_head`, DASO + ABC of the same paper."""

    forwards = ("joint", "split")  # the alignment loss takes every strong view

    @dataclass
    class Config(FixMatch.Config, prototypes.Config):
        """Hyper-parameters."""

        logit_adjustment: float = 0.0  # tau of the labeled loss; 1 in DASO w/ LA
        balanced_head: bool = False  # adds ABC's head and predicts with it

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        num_features = net.classifier.in_features
        self.semantic = prototypes.PrototypeClassifier(task.num_classes, num_features, config)
        self.balanced = None
        if config.balanced_head:
            self.balanced = BalancedHead(num_features, task.labeled_counts, config.threshold)
            self.head_name = "balanced"

    @keeps_rows
    @weighs_labels
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch with blended pseudo-labels p' and, after the warm-up, the alignment loss."""
        remembered = prototypes.teacher_features(ctx.teacher, batch.x, self.config.teacher_mode)
        self.semantic.remember(remembered, batch.y)
        look, who = Look(self.net, batch, guide(self, ctx)), guesser(self, ctx)
        h_w, (h_x, (h_s,)) = look.weak(), look.rest()
        q, alignment = self.semantic(h_w, h_s)
        started = self.semantic.started(ctx)

        logits_x, logits_s = (self.net.classifier(h) for h in (h_x, h_s))
        logits_w = who.net.classifier(h_w)
        p = self.guess(self.of_pool(logits_w.detach()), batch, ctx)
        p = self.semantic.blend(p, q) if started else p
        kept = self.confidence(p, batch.index_u)
        found, logs = self.objective(logits_x, batch.target, kept, logits_s)
        if started:
            found["alignment"] = alignment
        if self.balanced is not None and who.balanced is not None:
            g = who.balanced.guess(h_w)
            g = self.semantic.blend(g, q) if started else g
            chosen = self.balanced.choose(batch.y, g, ctx)
            found |= self.balanced.objective(h_x, batch.target, chosen, [h_s])
        self.semantic.count(p.argmax(1), ctx.step)
        return found, logs

    def head(self, features: Tensor) -> Tensor:
        """The balanced head, if there is one."""
        return super().head(features) if self.balanced is None else self.balanced(features)

    def export(self) -> Classifier:
        """The network with the head that `head` uses."""
        net = super().export()
        return net if self.balanced is None else self.balanced.into(net)
