"""TRAS: a second head learns from the first one's predictions, whose classes it evens out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, keeps_rows
from ssl_selmix.common.rules import at_least, positive, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods.balanced_head import new_head
from ssl_selmix.methods.views import Guessing, Look, guesser, guide
from ssl_selmix.models import Classifier


class TRAS(Algorithm):
    """Wei et al., Machine Learning 2022: transfer and share.

    The first head is FixMatch on pseudo-labels that are free of the labeled prior. The second one
    learns labeled images with logit adjustment, and the first head's opinion of the same strong
    view, corrected the more, the rarer the class that the image is taken for; it predicts. Both
    shape the features. The published code passes every view apart; here all share batch statistics.
    """

    forwards: Sequence[str] = ("joint", "split", "lazy")
    # Without a warm-up, so that both heads learn in the few steps of the contract.
    contract_cases = tuple(
        {"threshold": threshold, "warmup": 0.0} for threshold in (0.0, 0.38, 0.6, 0.9)
    )

    @dataclass
    class Config(Algorithm.PoolConfig, Guessing):
        """Hyper-parameters."""

        # the confidence from which both heads' own pseudo-labels count
        threshold: float = within("[0, 1]", 0.95)
        strong_views: int = at_least(1, 2)  # how many strong views every unlabeled image has
        prior_power: float = at_least(0, 1.0)  # rho, exponent of the labeled prior
        transfer_scale: float = at_least(0, 2.0)  # A, how much more rare classes are corrected
        transfer_base: float = at_least(0, 2.0)  # B, how much all logits are transformed
        # temperature of what the second head learns from the first
        teacher_temperature: float = positive(2.0)
        # share of the steps in which the first head learns alone: 11 of 500 epochs
        warmup: float = within("[0, 1)", 0.022)

    config: Config
    log_pi: Tensor  # (K,) log of the labeled prior to the power rho
    transfer: Tensor  # (K,) T
    started: Tensor  # bool: the second head has learned, and predicts

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views: Sequence[str] = ("weak", *["strong"] * config.strong_views)
        self.auxiliary = new_head(net.classifier.in_features, task.num_classes)
        # A class without labels counts as one image: its logarithm is to be a number of their size.
        counts = task.labeled_counts.clamp_min(1)
        log_pi = losses.log_power(counts / counts.sum(), config.prior_power)
        transfer = config.transfer_scale * (-log_pi).softmax(0) + config.transfer_base
        self.register_buffer("log_pi", log_pi.float())
        self.register_buffer("transfer", transfer.float())
        self.register_buffer("started", torch.tensor(False))

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch of the first head, and after the warm-up the two losses of the second."""
        main, second = self.net.classifier, self.auxiliary
        starts = ctx.progress >= self.config.warmup
        look, who = Look(self.net, batch, guide(self, ctx)), guesser(self, ctx)
        weak = look.weak()
        with torch.no_grad():
            classes, mask = self.choose(who.net.classifier(weak).float() - self.log_pi)
            taken, sure = self.choose(who.auxiliary(weak).float())
        x, strong = look.rest(mask + (sure if starts else 0) > 0)
        seen, num = torch.cat(strong), len(strong)
        first = main(seen)
        found = {
            "labeled": F.cross_entropy(main(x), batch.y),
            "unlabeled": losses.masked_cross_entropy(first, classes.repeat(num), mask.repeat(num)),
        }
        logs = {"mask_rate": mask.mean()}
        if starts:
            self.started.fill_(True)
            targets = self.evened(first.detach().float(), taken.repeat(num))
            logs["distilled_rate"] = sure.mean()
            found |= {
                "balanced": losses.logit_adjusted(second(x), batch.y, self.log_pi),
                "distilled": losses.masked_cross_entropy(second(seen), targets, sure.repeat(num)),
            }
        return found, logs

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (M,) and a mask (M,) of the confident ones."""
        return losses.pseudo_label(logits.softmax(1), self.config.threshold)

    def evened(self, logits: Tensor, taken: Tensor) -> Tensor:
        """What the second head is to learn of the first one's logits M×K, given its own guess.

        softmax((a - T_k log pi) / temperature) for an image that is taken for class k.

        Shape: logits M×K, taken (M,) -> M×K probabilities.
        """
        corrected = logits - self.transfer[taken][:, None] * self.log_pi
        return (corrected / self.config.teacher_temperature).softmax(1)

    @property
    def head_name(self) -> str:  # type: ignore[override]
        """The second head's, once it has learned."""
        return "auxiliary" if bool(self.started) else "classifier"

    def head(self, features: Tensor) -> Tensor:
        """The second head predicts; until the end of the warm-up the first one."""
        head = self.auxiliary if bool(self.started) else self.net.classifier
        return head(features)  # type: ignore[no-any-return]

    def export(self) -> Classifier:
        """The network with the head that predicts for its classifier."""
        net = super().export()
        if bool(self.started):
            net.classifier = copy.deepcopy(self.auxiliary)
        return net
