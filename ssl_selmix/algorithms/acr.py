"""ACR: two heads; how far the pool's classes are from the labeled ones sets the adjustment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, keeps_rows
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.methods.labeled_in_pool import KnowsLabeled
from ssl_selmix.methods.views import Guessing, Look, guesser, guide
from ssl_selmix.models import Classifier


class ACR(KnowsLabeled):
    """Wei & Gan, CVPR 2023: a standard head f that guesses and a balanced head g that predicts.

    Both heads learn the standard head's guesses after logit adjustment, of a fixed strength for g,
    and for f of one that is small where the pool looks like the labeled images. g starts as a copy
    of f, so that a later stage begins with the predictions of the one before.
    """

    forwards: Sequence[str] = ("joint", "split", "lazy")
    head_name = "balanced"
    contract_cases = pseudo_labels.CONTRACT_CASES

    @dataclass
    class Config(Algorithm.PoolConfig, Guessing):
        """Hyper-parameters."""

        threshold: float = within("[0, 1]", 0.95)  # rho, from which a pseudo-label counts
        strong_views: int = at_least(1, 2)  # how many strong views every unlabeled image has
        tau_max: float = at_least(0, 2.0)  # tau1, adjustment of f's targets at most, and at first
        tau_pseudo: float = at_least(0, 2.0)  # tau12, adjustment of g's targets
        tau_balanced: float = at_least(0, 2.0)  # tau2, adjustment of g's labeled loss
        memory: float = within("[0, 1)", 0.99)  # m, of the pool's histogram
        periods: int = at_least(1, 500)  # equal parts of the run, after each of which tau moves
        # share of the steps before the histogram is counted: 6 of 500 periods in the paper
        adapt_from: float = within("[0, 1]", 0.012)
        # counts: confident predictions of g by class; shipped: as the published code has it, 1 for
        # each class whose last image in the batch is confident, 0 for the others
        histogram: str = one_of("counts", "shipped")
        # mean: distances are averaged over the steps that counted any image, and tau stays where
        # there was none; shipped: over all, so that the first adaptive period has tau1 / 3
        tau_update: str = one_of("mean", "shipped")

    config: Config
    anchors: Tensor  # (3, K) A: like the labeled images, uniform, reversed
    pool: Tensor  # (K,) P
    tau: Tensor  # of f's targets
    distances: Tensor  # (3,) D, sums over the period of the distances of P from the anchors
    counted: Tensor  # steps of the period with at least one counted image

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views: Sequence[str] = ("weak", *["strong"] * config.strong_views)
        self.balanced = copy.deepcopy(net.classifier)
        # A class without labels counts as one image: its logarithm is to be a number.
        counts = task.labeled_counts.clamp_min(1).float()
        order = counts.argsort(descending=True, stable=True)
        anchors = torch.stack([counts, counts.mean().expand_as(counts), counts])
        anchors[2, order] = counts[order.flip(0)]
        self.register_buffer("anchors", anchors / counts.sum())
        self.register_buffer("pool", self.anchors[1].clone())
        self.register_buffer("tau", torch.tensor(config.tau_max))
        self.register_buffer("distances", torch.zeros(3))
        self.register_buffer("counted", torch.zeros(()))
        self.register_labeled(task)

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labeled losses of both heads, and both heads' losses on the standard head's guesses."""
        cfg, standard, balanced = self.config, self.net.classifier, self.balanced
        look, who = Look(self.net, batch, guide(self, ctx)), guesser(self, ctx)
        weak = look.weak()
        with torch.no_grad():
            guess, own = who.net.classifier(weak).float(), who.balanced(weak).float()
        targets, of_standard = self.choose(guess, guess, self.tau)
        targets_balanced, of_balanced = self.choose(guess, own, cfg.tau_pseudo)
        own_classes, own_sure = losses.pseudo_label(own.softmax(1), cfg.threshold)
        if self.period(ctx.step, ctx.total) >= self.first_period:
            self.remember(own_classes, own_sure * ~self.labeled_too[batch.index_u])

        x, strong = look.rest((of_standard + of_balanced) > 0)
        seen = torch.cat(strong)

        def unlabeled(head: nn.Module, classes: Tensor, mask: Tensor) -> Tensor:
            num = len(strong)
            return losses.masked_cross_entropy(head(seen), classes.repeat(num), mask.repeat(num))

        adjusted = balanced(x) + self.adjustment(cfg.tau_balanced)
        found = {
            "labeled": F.cross_entropy(standard(x), batch.y),
            "balanced": F.cross_entropy(adjusted, batch.y),
            "unlabeled": unlabeled(standard, targets, of_standard),
            "unlabeled_balanced": unlabeled(balanced, targets_balanced, of_balanced),
        }
        return found, {"mask_rate": of_balanced.mean(), "tau": self.tau.clone()}

    def adjustment(self, tau: Tensor | float) -> Tensor:
        """log(pi^tau + 1e-12), (K,)."""
        return losses.log_power(self.anchors[0], tau)

    def choose(self, guess: Tensor, own: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
        """Classes (M,) of adjusted guesses M×K, and a mask (M,) of those that count.

        An image counts if the adjusted guess or the head's own unadjusted one is confident.
        """
        threshold = self.config.threshold
        classes, mask = losses.pseudo_label((guess - self.adjustment(tau)).softmax(1), threshold)
        return classes, torch.maximum(mask, losses.pseudo_label(own.softmax(1), threshold)[1])

    def period(self, step: int, total: int) -> int:
        """Which part of the run a step lies in, counted from 0."""
        return step * self.config.periods // total

    @property
    def first_period(self) -> int:
        """The first period in which the pool's histogram is counted."""
        # A share that was written as a quotient of periods means a whole number of them.
        return ceil(self.config.adapt_from * self.config.periods - 1e-6)

    def histogram(self, classes: Tensor, mask: Tensor) -> Tensor:
        """Counts (K,) of these predictions, of those that count."""
        each = F.one_hot(classes, len(self.pool)).to(mask.dtype)
        if self.config.histogram == "counts":
            return mask @ each
        place = torch.arange(1, len(each) + 1, device=mask.device)[:, None]
        last = (each * place).amax(0).long()  # of every class, counted from 1; 0 where it is absent
        return torch.where(last > 0, mask[(last - 1).clamp_min(0)], 0.0)

    def remember(self, classes: Tensor, mask: Tensor) -> None:
        """Move P towards the histogram of these predictions, and sum its distances."""
        counts = self.histogram(classes, mask)
        some = counts.sum() > 0
        share = torch.where(some, counts / counts.sum().clamp_min(1), self.pool)
        self.pool.lerp_(share, 1 - self.config.memory)
        ratio = self.anchors.log() - losses.log_prior(self.pool)
        distances = ((self.anchors - self.pool) * ratio).sum(1) / 2  # KL in both directions
        self.distances.add_(distances * some)
        self.counted.add_(some)

    def after_step(self, ctx: Context) -> None:
        """At the start of a period tau follows the distances of the one before."""
        before, now = (self.period(step, ctx.total) for step in (ctx.step - 1, ctx.step))
        if now == before or now < self.first_period:
            return
        num, moves = self.counted.clamp_min(1), self.counted > 0
        if self.config.tau_update == "shipped":
            num, moves = ctx.total / torch.full_like(num, self.config.periods), moves | True
        tau = self.config.tau_max * (self.distances / num).softmax(0)[0]
        self.tau.copy_(torch.where(moves, tau, self.tau))
        self.distances.zero_()
        self.counted.zero_()

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """What the pool seems to hold."""
        return {"estimated_prior": self.pool.clone()}

    def head(self, features: Tensor) -> Tensor:
        """The balanced head predicts."""
        return self.balanced(features)  # type: ignore[no-any-return]

    def export(self) -> Classifier:
        """The next stage starts from the balanced head."""
        net = super().export()
        net.classifier.load_state_dict(self.balanced.state_dict())
        return net
