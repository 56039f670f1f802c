"""Self-training: several heads vote about every image of the pool, and learn from the vote."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Algorithm, Context, Evaluation, keeps_rows
from ssl_selmix.common.rules import at_least, one_of, within
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import labeled
from ssl_selmix.methods.pool_prior import PoolPrior
from ssl_selmix.methods.views import joint_features
from ssl_selmix.methods.voting import VotingHeads
from ssl_selmix.models import Classifier, heads


class SelfTraining(Algorithm):
    """Pseudo-labels of an ensemble, made anew a few times: for networks that know much already.

    The idea of V-PET (Zhang et al., NeurIPS 2025): models that differ vote about the pool, and
    self-training follows the vote. There they are fine-tuned networks; here, heads on one body.
    """

    views: Sequence[str] = ("strong",)
    head_name = "voting"
    contract_cases = ({"warmup": 0.0},)

    @dataclass
    class Config(Algorithm.PoolConfig, PoolPrior.Config):
        """Hyper-parameters."""

        heads: int = at_least(1, 5)  # H, classifiers whose votes make the pseudo-labels
        share: float = within("(0, 1]", 0.5)  # share of the features that a head sees
        warmup: float = within("[0, 1)", 0.25)  # share of the steps on labeled images alone
        rounds: int = at_least(1, 2)  # how often pseudo-labels are made, evenly after that
        # soft: the vote itself is learned; hard: its arg-max
        targets: str = one_of("soft", "hard")
        # the largest share of the vote from which an image counts
        threshold: float = within("[0, 1]", 0.0)
        lambda_u: float = at_least(0, 1.0)  # weight of the pseudo-labeled images
        logit_adjustment: float = at_least(0, 1.0)  # tau, by the frequencies of labels and votes
        prior: str = "estimated"

    config: Config
    targets: Tensor  # M×K float16, rows of images that do not count are 0
    log_mass: Tensor  # (K,) log of the class frequencies of the targets

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(heads.ended(net), task, config)
        self.voting = VotingHeads(net.classifier, config.heads, config.share)
        if net.classifier.bias is None:
            net.classifier.bias = nn.Parameter(torch.zeros_like(net.classifier.weight[:, 0]))
        net.classifier.requires_grad_(False)  # the heads' mean takes its place in `export`
        k = task.num_classes
        self.labeled_loss = losses.LogitAdjusted(task.labeled_prior, config.logit_adjustment)
        self.pool_prior = PoolPrior(task, config)
        shape = (task.num_unlabeled, k)
        self.register_buffer("targets", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("log_mass", torch.zeros(k))

    @property
    def warmup(self) -> int:
        """Steps before the first pseudo-labels."""
        return math.ceil(self.config.warmup * self.config.steps)

    def begins(self, step: int) -> bool:
        """Whether pseudo-labels are made before this step."""
        total, rounds = self.config.steps, self.config.rounds
        starts = (self.warmup + r * (total - self.warmup) // rounds for r in range(rounds))
        return step < total and step in starts

    def evaluation_due(self, step: int) -> bool:
        """Also when pseudo-labels are made."""
        return self.begins(step) or super().evaluation_due(step)

    def needs_features(self, step: int) -> Collection[str]:
        """Of the pool, to vote about."""
        return ("pool",) if self.begins(step) else ()

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mean loss of all heads: labels, and after the warm-up pseudo-labels as well."""
        if ctx.step < self.warmup:
            return {"labeled": self._labeled(self.net.features(batch.x), batch.y)}, {}
        h_x, h_u = joint_features(self.net, batch)
        targets = self.targets[batch.index_u].float()
        logits = self.voting(h_u) + self.config.logit_adjustment * self.log_mass
        each = -(targets[:, None] * logits.log_softmax(2)).sum(2)
        found = {
            "labeled": self._labeled(h_x, batch.y),
            "unlabeled": self.config.lambda_u * each.mean(),
        }
        return found, {"mask_rate": (targets.sum(1) > 0).float().mean()}

    def _labeled(self, features: Tensor, y: Tensor) -> Tensor:
        logits = self.voting(features)
        num = self.config.heads
        found: Tensor = self.labeled_loss(logits.flatten(0, 1), y.repeat_interleave(num))
        return found

    @torch.no_grad()
    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Let the teacher's heads vote, if it is time to."""
        if not self.begins(ctx.step) or evaluation.pool_features is None:
            return {}
        assert isinstance(ctx.teacher, SelfTraining)
        voting = ctx.teacher.voting
        voting.calibrate(evaluation.features, evaluation.labels)
        self.voting.temperature.copy_(voting.temperature)
        votes = voting.votes(evaluation.pool_features)
        p, logs = self._of_pool(votes, voting.votes(evaluation.features), evaluation)
        counts = p.amax(1) >= self.config.threshold
        if self.config.targets == "hard":
            p = F.one_hot(p.argmax(1), p.shape[1]).to(p)
        self.targets.copy_(p * counts[:, None])
        mass = self.targets.double().sum(0)
        # An image more of every class: none is impossible.
        self.log_mass.copy_(((mass + 1) / (mass + 1).sum()).log())
        return logs | {
            "votes": mass / mass.sum().clamp_min(1e-12),
            "votes_counted": counts.double().mean(),
            "temperature": voting.temperature.mean(),
        }

    def _of_pool(
        self, votes: Tensor, held_out: Tensor, evaluation: Evaluation
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Votes M×K that follow the pool's class distribution, if it is known; what to log.

        Shape: votes M×K and held_out N×K follow pi^(1 - tau), the balanced classes for tau = 1.
        """
        if not self.pool_prior.used:
            return votes, {}
        logs = {}
        if self.config.prior == "estimated":
            seen, pool = (losses.log_prior(p) for p in (held_out, votes))
            logs = self.pool_prior.estimate(replace(evaluation, logits=seen, pool_logits=pool))
        if not self.pool_prior.known:
            return votes, logs
        balance = (1 - self.config.logit_adjustment) * self.labeled_loss.log_pi.double()
        shifted = losses.log_prior(votes) + losses.log_prior(self.pool_prior.q) - balance
        return shifted.softmax(1), logs

    def head(self, features: Tensor) -> Tensor:
        """The mean of all heads' logits, N×K, which is one linear layer."""
        return F.linear(features, *self.voting.folded())

    def export(self) -> Classifier:
        """The network with that layer for its classifier."""
        return labeled.with_classifier(super().export(), *self.voting.folded())
