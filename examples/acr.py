"""ACR: two heads; how far the pool's classes are from the labeled ones sets the adjustment.

Wei & Gan, "Towards Realistic Long-Tailed Semi-Supervised Learning: Consistency Is All You Need",
CVPR 2023, from memory of the paper. f is a standard and g a balanced head on the same features, w
the weak and s the strong view of an unlabeled image, pi the labeled class frequencies:

    labeled     CE(f(x), y) + CE(g(x) + t2 log pi, y)
    pool        P <- m P + (1 - m) histogram of g's confident pseudo-labels
    distances   D_a = (KL(a | P) + KL(P | a)) / 2 to three anchors a: pi, uniform, pi reversed
    adjustment  t = t1 softmax(D)_pi, large if the pool is not like the labeled images
    unlabeled   CE(f(s), argmax f(w) - t log pi) + CE(g(s), argmax f(w) - t2 log pi), for images
                where the target or the head's own unadjusted prediction is confident enough

and g predicts. Uncertain: t1 = t2 = 2, m = 0.99, and t = t1 in the first 1 % of the steps. Decided
here: t follows P at every step, not once an epoch; g starts as a copy of f, so that a stage begins
with the predictions of the one before; a class without labels counts as one image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation, Task
from ssl_selmix.common.rules import at_least, within
from ssl_selmix.methods.views import joint_features
from ssl_selmix.models import Classifier


class ACR(Algorithm):
    """A standard head that guesses and a balanced head that predicts."""

    views = ("weak", "strong")
    head_name = "balanced"
    contract_cases = ({"threshold": 0.0},)

    @dataclass
    class Config(Algorithm.PoolConfig):
        """Hyper-parameters."""

        threshold: float = within("[0, 1]", 0.95)  # rho, from which a pseudo-label counts
        tau_max: float = at_least(0, 2.0)  # t1, adjustment of the standard head's targets, at most
        tau_balanced: float = at_least(0, 2.0)  # t2, of the balanced head's targets and its loss
        memory: float = within("[0, 1)", 0.99)  # m, of the pool's histogram
        warmup: float = within("[0, 1]", 0.01)  # share of the steps before t follows P

    config: Config
    anchors: Tensor  # (3, K) A: consistent, uniform, reversed
    pool: Tensor  # (K,) P
    tau: Tensor  # t

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.balanced = copy.deepcopy(net.classifier)
        counts = task.labeled_counts.clamp_min(1).float()
        order = counts.argsort(descending=True, stable=True)
        anchors = torch.stack([counts, counts.mean().expand_as(counts), counts])
        anchors[2, order] = counts[order.flip(0)]
        self.register_buffer("anchors", anchors / counts.sum())
        self.register_buffer("pool", self.anchors[1].clone())
        self.register_buffer("tau", torch.tensor(config.tau_max))

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled losses of both heads, and both heads' losses on the standard head's guesses."""
        cfg, log_pi = self.config, self.anchors[0].log()
        standard, balanced = self.net.classifier, self.balanced
        x, weak, strong = joint_features(self.net, batch)
        guess, own_guess = standard(weak).detach(), balanced(weak).detach()
        _, sure = losses.pseudo_label(guess.softmax(1), cfg.threshold)
        own, own_sure = losses.pseudo_label(own_guess.softmax(1), cfg.threshold)
        if ctx.progress >= cfg.warmup:
            self.remember(own, own_sure)

        def unlabeled(head: nn.Module, tau: Tensor | float, sure: Tensor) -> Tensor:
            classes, mask = losses.pseudo_label((guess - tau * log_pi).softmax(1), cfg.threshold)
            return losses.masked_cross_entropy(head(strong), classes, torch.maximum(mask, sure))

        found = {
            "labeled": F.cross_entropy(standard(x), batch.y),
            "balanced": losses.logit_adjusted(balanced(x), batch.y, log_pi, cfg.tau_balanced),
            "unlabeled": unlabeled(standard, self.tau, sure),
            "unlabeled_balanced": unlabeled(balanced, cfg.tau_balanced, own_sure),
        }
        return found, {"mask_rate": own_sure.mean(), "tau": self.tau.clone()}

    def remember(self, classes: Tensor, mask: Tensor) -> None:
        """Move P towards the histogram of these pseudo-labels; t follows."""
        counts = mask @ torch.eye(len(self.pool), device=mask.device)[classes]
        histogram = torch.where(counts.sum() > 0, counts / counts.sum().clamp_min(1), self.pool)
        self.pool.lerp_(histogram, 1 - self.config.memory)
        ratio = self.anchors.log() - losses.log_prior(self.pool)
        distances = ((self.anchors - self.pool) * ratio).sum(1) / 2  # KL in both directions
        self.tau.copy_(self.config.tau_max * distances.softmax(0)[0])

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Log what the pool seems to hold."""
        return {"pool_histogram": self.pool.clone()}

    def head(self, features: Tensor) -> Tensor:
        """The balanced head predicts."""
        return self.balanced(features)  # type: ignore[no-any-return]

    def export(self) -> Classifier:
        """The next stage starts from the balanced head."""
        net = super().export()
        net.classifier.load_state_dict(self.balanced.state_dict())
        return net
