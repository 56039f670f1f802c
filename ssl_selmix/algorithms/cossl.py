"""CoSSL: FixMatch, and then a second head on blended tail features, which guesses and predicts."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation, keeps_rows
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least, within
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.methods import pseudo_labels, tail_features
from ssl_selmix.methods.labeled import with_classifier
from ssl_selmix.methods.prototypes import teacher_features
from ssl_selmix.methods.reference import Reference
from ssl_selmix.methods.views import Look, guesser
from ssl_selmix.models import Classifier


@dataclass(frozen=True)
class TwoBatches(Batch):
    """A batch, and what the head learns from: balanced labeled images and any others, all strong.

    Shape: head.x B×C×H×W, head.y (B,), head.u one view of as many images of labeled set and pool.
    """

    head: Batch | None = None


class CoSSL(FixMatch):
    """Fan et al., CVPR 2022: representation and classifier learn apart, and teach each other.

    After FixMatch a second head learns from class-balanced labeled images whose features are
    blended, if their class is rare, with those of any others. It works on the averaged body, gives
    the network its pseudo-labels, and predicts.
    """

    head_name = "tail"
    contract_cases = tuple(
        {**case, "pretrain": 0.0, "warmup_steps": 20, "warmup_lr": 0.5}
        for case in pseudo_labels.CONTRACT_CASES
    )

    @dataclass
    class Config(FixMatch.Config, tail_features.Config):
        """Hyper-parameters."""

        logit_adjustment: float = 0.0  # tau of the labeled loss; the paper has none
        strong_views: int = at_least(1, 2)  # how many strong views every unlabeled image has
        # share of the steps that are FixMatch alone: 400 of 500 epochs. 0 after another stage
        pretrain: float = within("[0, 1)", 0.8)

    config: Config
    share: Tensor  # (K,) probability that a class is blended
    begun: Tensor  # bool, whether the second head is there

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.views: Sequence[str] = ("weak", *["strong"] * config.strong_views)
        self.tail = copy.deepcopy(Reference.prepare(net).classifier)
        self.register_buffer("share", tail_features.blend_share(task.labeled_counts))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._seed = 0  # of the warm-up, which follows from the run's

    @property
    def first(self) -> int:
        """The first step of the co-learning."""
        return round(self.config.pretrain * self.config.steps)

    @property
    def images_per_step(self) -> int:
        """With those that pass the averaged network, for the head."""
        return super().images_per_step + 2 * self.config.batch

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Batches as usual, and from the co-learning on those of the head as well."""
        self._seed = seed_of(data.seed, data.stage, "warm-up")
        return self._batches(super().batches(data, start), data, start)

    def _batches(self, plain: Iterator[Batch], data: Data, start: int) -> Iterator[Batch]:
        # Steps before the co-learning have no use for a second stream.
        for _ in range(start, self.first):
            yield next(plain)
        everyone = torch.cat([data.unlabeled, data.labeled])
        beside = replace(data, unlabeled=everyone, stage=f"{data.stage} head")
        found = beside.batches(
            ("strong",),
            self.config.batch,
            1,
            max(start, self.first),
            balanced=True,
            labeled_views=("strong",),
        )
        for batch, head in zip(plain, found, strict=True):
            known = {f.name: getattr(batch, f.name) for f in fields(Batch)}
            yield TwoBatches(**known, head=head)

    @keeps_rows
    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """FixMatch; in the co-learning on the head's guesses, with the head's own loss."""
        if ctx.step < self.first:
            return super().forward(batch, ctx)
        assert isinstance(batch, TwoBatches) and batch.head is not None
        look = Look(self.net, batch, ctx.teacher.net)  # the averaged body sees the weak views
        weak = look.weak()
        with torch.no_grad():
            guess = guesser(self, ctx).tail(weak).float()
        kept = self.keep(self.guess(self.of_pool(guess), batch, ctx), batch)
        logits_x, logits_s = look.rest_logits(kept[1] > 0)
        found, logs = self.objective(logits_x, batch.y, kept, logits_s)
        logits = self.tail(self.blended(batch.head, ctx))
        return {**found, "head": F.cross_entropy(logits, batch.head.y)}, logs

    def blended(self, batch: Batch, ctx: Context) -> Tensor:
        """Features B×D of the averaged body for balanced images, blended for rare classes."""
        own = teacher_features(ctx.teacher, batch.x)
        others = teacher_features(ctx.teacher, batch.u[0])
        return tail_features.blended(own, others, batch.y, self.share, *self.draw(batch.y))

    def draw(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """A coin and a weight lambda ~ U(mu, 1) for every image, (B,) each."""
        coin, u = torch.rand(2, len(y), device=y.device)
        low = self.config.blend_low
        return coin, low + (1 - low) * u

    def evaluation_due(self, step: int) -> bool:
        """Also before the co-learning, to warm up the head."""
        return step == self.first or super().evaluation_due(step)

    def needs_features(self, step: int) -> Collection[str]:
        """Those of labeled images and of the pool, to warm up the head."""
        return ("labeled", "pool") if step == self.first else ()

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Warm up the head before the co-learning."""
        if ctx.step == self.first:
            self.warm_up(evaluation, ctx)
        return super().on_validation(evaluation, ctx)

    def warm_up(self, evaluation: Evaluation, ctx: Context) -> None:
        """Train the head on stored features; it and its average are those of the co-learning."""
        labeled, labels = evaluation.labeled_features, evaluation.labeled_classes
        pool = evaluation.pool_features
        assert labeled is not None and labels is not None and pool is not None
        k, cfg = self.task.num_classes, self.config
        random = np.random.default_rng(self._seed)
        counts = torch.bincount(labels, minlength=k)
        draws = tail_features.Draws.of(counts, cfg.warmup_beta, random)
        features, classes = tail_features.enhanced(labeled, labels, pool, pool, draws)
        made = tail_features.fitted(features, classes, k, cfg, random)
        heads = [(self, made.head)]
        if ctx.teacher is not self:
            heads.append((ctx.teacher, made.average))  # type: ignore[arg-type]
        for model, head in heads:
            model.tail.load_state_dict(head.state_dict())
            model.begun.fill_(True)

    def head(self, features: Tensor) -> Tensor:
        """The second head, once it is there."""
        return F.linear(features, *self._predicting())

    def _predicting(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the head that predicts."""
        first, second = self.net.classifier, self.tail
        weight = torch.where(self.begun, second.weight, first.weight)
        return weight, torch.where(self.begun, second.bias, first.bias)

    def export(self) -> Classifier:
        """The network with the head that predicts."""
        return with_classifier(super().export(), *self._predicting())
