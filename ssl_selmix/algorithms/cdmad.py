"""CDMAD: pseudo-labels and predictions less what the network says of an image without content."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import reference
from ssl_selmix.methods.views import guesser, guide
from ssl_selmix.models import Classifier


class CDMAD(reference.Debiased, FixMatch):
    """Lee & Kim, CVPR 2024, on FixMatch: soft targets, two strong views, no threshold.

    b, the logits of the image without content, says which classes the network prefers whatever it
    sees. The pool's class distribution need not be known. The published code passes every view
    through the network apart; here all share batch statistics.
    """

    @dataclass
    class Config(FixMatch.Config, reference.TrainingConfig):
        """Hyper-parameters."""

        logit_adjustment: float = 0.0  # tau of the labeled loss; the paper has none
        threshold: float = 0.0  # every image counts, with its soft target
        strong_views: int = at_least(1, 2)  # how many strong views every unlabeled image has
        # Added to probabilities whose logarithm is a loss: 1e-8 in its code, which takes gradients
        # from images that the network is surely wrong about.
        log_floor: float = at_least(0, 0.0)

    config: Config

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views: Sequence[str] = ("weak", *["strong"] * config.strong_views)

    def guess(self, logits_w: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Probabilities of the weak views less b."""
        who = guesser(self, ctx)
        # What a teacher predicts, b as well, is what it predicts in evaluation mode.
        of_teacher = guide(self, ctx) is not None
        with reference.evaluating(who.net) if of_teacher else nullcontext():
            debiased = who.debiased(logits_w, ctx.progress)
        return super().guess(debiased, batch, ctx)

    def keep(self, p: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Soft targets M×K, and which of them count."""
        return p, self.confidence(p, batch.index_u)[1]

    def objective(
        self, logits_x: Tensor, y: Tensor, kept: tuple[Tensor, Tensor], logits_s: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses; the unlabeled one is the mean over the strong views."""
        logits_x, logits_s = self._floored(logits_x), self._floored(self.of_pool(logits_s))
        targets, weight = kept
        num = len(logits_s) // len(targets)
        classes, each = targets.argmax(1).repeat(num), weight.repeat(num)
        unlabeled = losses.masked_cross_entropy(logits_s, targets.repeat(num, 1), each)
        found = {
            "labeled": self.labeled_loss(logits_x, y),
            "unlabeled": self.config.lambda_u * unlabeled,
            **self.confidence.penalty(logits_s, classes, each),
        }
        return found, {"mask_rate": weight.mean()}

    def _floored(self, logits: Tensor) -> Tensor:
        floor = self.config.log_floor
        return (logits.softmax(1) + floor).log() if floor else logits
