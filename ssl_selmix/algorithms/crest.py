"""CReST: generations of FixMatch, each with more pseudo-labeled images of the rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import losses
from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.common.rules import at_least, positive
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task
from ssl_selmix.data.pool import any_order
from ssl_selmix.methods import pseudo_labels
from ssl_selmix.models import Classifier


class CReST(FixMatch):
    """Wei et al., CVPR 2021. The weights handed on are the best ones of the last generation."""

    @dataclass
    class Config(FixMatch.Config):
        """Hyper-parameters."""

        generations: int = at_least(1, 5)  # G, of 50,000 steps (DASO); paper: 6 of 65,536
        alpha: float = positive(3.0)  # the power of the class rates is 1 / alpha
        schedule: str = "constant"  # the paper's cos(pi t / 16 T) never falls below 0.98
        logit_adjustment: float = 0.0  # tau, by the class frequencies of the enlarged labeled set

    config: Config
    rates: Tensor  # (K,) mu
    selected: Tensor  # (M,) bool: pool images that count as labeled in this generation
    classes: Tensor  # (M,) their pseudo-labels
    known: Tensor  # (M,) bool: pool images that are labeled ones too; they keep their labels

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.generations = min(config.generations, config.steps)
        if self.generations > 1 and net.rebuild is None:
            raise ValueError(
                "every generation starts from a new network, and this one was put together by "
                "hand: give Classifier(..., rebuild=) a function that returns an untrained one"
            )
        self.register_buffer("rates", class_rates(task.labeled_counts, config.alpha))
        self.register_buffer("selected", torch.zeros(task.num_unlabeled, dtype=torch.bool))
        self.register_buffer("classes", torch.zeros(task.num_unlabeled, dtype=torch.int64))
        self.register_buffer("known", torch.zeros(task.num_unlabeled, dtype=torch.bool))

    def generation(self, step: int) -> int:
        """g, from 0: it ends at step (g + 1) T / G, rounded down."""
        g = ((step + 1) * self.generations - 1) // self.config.steps
        return min(g, self.generations - 1)

    def clock(self, step: int) -> tuple[int, int]:
        """Rate and teacher count from the start of the generation."""
        g, total = self.generation(step), self.config.steps
        start, end = (i * total // self.generations for i in (g, g + 1))
        return step - start, end - start

    def begins(self, step: int) -> bool:
        """Whether a generation begins here that has one before it."""
        return 0 < step < self.config.steps and self.clock(step)[0] == 0

    def needs_pool(self, step: int) -> bool:
        """To choose from, when a generation ends."""
        return self.begins(step) or super().needs_pool(step)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """At the end of a generation, choose the pool images that count as labeled in the next."""
        logs = super().on_validation(evaluation, ctx)
        measured = self.generation(max(0, ctx.step - 1))
        # Weights of a later generation come before better ones of an earlier one, as in the paper.
        logs["feasibility"] = torch.tensor(measured + 1.0 - self.generations)
        if self.begins(ctx.step):
            assert evaluation.pool_logits is not None
            p = evaluation.pool_logits.double().softmax(1)
            order = any_order(len(p), p.device)  # of equally confident images, any
            chosen = select(p.masked_fill(self.known[:, None], -1)[order], self.rates)
            self.selected.zero_()[order[chosen]] = True
            self.classes.copy_(p.argmax(1))
            logs["selected"] = self._num_selected().double()
        return logs

    def _num_selected(self) -> Tensor:
        return torch.bincount(self.classes[self.selected], minlength=self.task.num_classes)

    def restart(self, ctx: Context) -> None:
        """A new network, which knows the classes of the images that were chosen."""
        self.net.begin_anew()
        fresh = pseudo_labels.build(self.task, self.config)  # thresholds forget the old network
        self.confidence.load_state_dict(fresh.state_dict())
        counts = self.task.labeled_counts.to(self.rates) + self._num_selected()
        self.labeled_loss.log_pi.copy_(losses.log_prior(counts / counts.sum()))

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """The chosen images join the original labeled ones, and stay in the pool as well."""
        self.known.copy_(torch.isin(data.unlabeled, data.labeled))
        chosen = self.selected.cpu()
        labels = torch.cat([data.labels, self.classes.cpu()[chosen]])
        labeled = torch.cat([data.labeled, data.unlabeled[chosen]])
        more = labels[len(data.labels) :]
        # Who chose the images of the pool gave them no weight: they count as the mean does.
        weights = data.weights if data.weights is None else torch.cat([data.weights, more * 0 + 1])
        shares = data.shares
        if shares is not None:
            shares = torch.cat([shares, F.one_hot(more, self.task.num_classes).to(shares)])
        data = replace(data, labeled=labeled, labels=labels, weights=weights, shares=shares)
        return super().batches(data, start)


def class_rates(counts: Tensor, alpha: float) -> Tensor:
    """Rates mu = (n_(K+1-l) / n_1)^(1 / alpha) of the l-th largest class: 1 for the rarest.

    Equal counts get the mean of their rates; a class without images counts as one with a single
    image, or the largest class would never gain any.

    Shape: labeled counts (K,) -> (K,) float64.
    """
    n = counts.double().clamp_min(1)
    ordered, order = n.sort(descending=True, stable=True)
    rates = torch.empty_like(n)
    rates[order] = (ordered.flip(0) / ordered[0]) ** (1 / alpha)
    _, group, size = n.unique(return_inverse=True, return_counts=True)
    means: Tensor = torch.zeros_like(size, dtype=n.dtype).index_add(0, group, rates) / size
    return means[group]


def select(p: Tensor, rates: Tensor) -> Tensor:
    """Positions of the most confident share `rates[k]` of the images taken for each class k.

    Class by class, most confident first; images with negative numbers do not take part.

    Shape: p M×K probabilities, rates (K,) -> (selected,).
    """
    confidence, classes = p.max(1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[confidence[order] >= 0]
    order = order[classes[order].argsort(stable=True)]
    counts = torch.bincount(classes[order], minlength=len(rates))
    most = (rates * counts + 1e-9).floor()  # 1e-9: rounding must not lose an image
    place = torch.arange(len(order), device=p.device) - (counts.cumsum(0) - counts)[classes[order]]
    return order[place < most[classes[order]]]
