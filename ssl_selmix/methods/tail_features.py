"""CoSSL's tail-class feature enhancement: a linear head on features blended for rare classes.

Fan et al., CVPR 2022. Shapes: n labeled and N unlabeled images, B of a batch, K classes, D
features.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.common.rules import Checked, at_least, positive, within

BATCH = 64  # features a step of the warm-up
DECAY = 5e-4  # L2 of the head's weight in the warm-up, none of its bias
MEMORY = 0.999  # of the head's average there
NORM_FLOOR = 1e-12


@dataclass
class Config(Checked):
    """How features are blended, and how the head is warmed up."""

    blend_low: float = within("[0, 1]", 0.6)  # mu: lambda ~ U(mu, 1), share of the labeled feature
    warmup_steps: int = at_least(0, 5000)  # steps of the head alone: 10 epochs of 500
    warmup_lr: float = positive(0.002)  # rate of Adam in the warm-up
    warmup_beta: float = positive(0.75)  # lambda ~ Beta(this, this) there


def blend_share(counts: Tensor) -> Tensor:
    """Probability (n_max - n_k) / n_max with which a class is blended, (K,) of counts (K,)."""
    return (1 - counts / counts.max()).float()


def blended(
    labeled: Tensor, others: Tensor, y: Tensor, share: Tensor, coin: Tensor, weight: Tensor
) -> Tensor:
    """Features lambda f(x) + (1 - lambda) f(v) where the coin falls for the class of x, else f(x).

    Shape: labeled and others B×D, y (B,), share (K,), coin and weight (B,) in [0, 1] -> B×D.
    """
    kept = torch.where(coin < share[y], weight, torch.ones_like(weight))
    return losses.mix_features(labeled, others, kept)


def imprinted(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means of the classes' features, each of length 1; zero for a class without images.

    Shape: n×D, (n,) -> K×D.
    """
    sums = F.one_hot(labels, num_classes).to(features.dtype).T @ features
    return F.normalize(sums, eps=NORM_FLOOR)


@dataclass(frozen=True)
class Draws:
    """Random numbers of the warm-up's features, class after class.

    Shape: pick which image of the class, and weight lambda, (n_max - n_k,) for each.
    """

    pick: list[Tensor]
    weight: list[Tensor]

    @classmethod
    def of(cls, counts: Tensor, beta: float, random: np.random.Generator) -> Draws:
        """For classes with these counts (K,); none for those without images."""
        pick, weight = [], []
        for num in counts.tolist():
            missing = int(counts.max()) - num if num else 0
            pick.append(torch.from_numpy(random.integers(max(1, num), size=missing)))
            weight.append(torch.from_numpy(random.beta(beta, beta, size=missing)))
        return cls(pick, weight)


def enhanced(
    labeled: Tensor, labels: Tensor, guessed: Tensor, pool: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Features of labeled images and blends of them, equally many of every class that has any.

    A feature of class k is blended with those not labeled k that look most like it: the q-th blend
    has the q-th largest probability of k by the imprinted classifier. Pool images are ranked by
    `guessed` and blended by `pool`, two views of them.

    Shape: labeled n×D, labels (n,), guessed and pool N×D -> features m×D, classes (m,).
    """
    num_classes = len(draws.pick)
    weight = imprinted(labeled, labels, num_classes)
    looks = F.linear(torch.cat([labeled, guessed]), weight).softmax(1)
    everything = torch.cat([labeled, pool])
    features, classes = [labeled], [labels]
    for k, (pick, share) in enumerate(zip(draws.pick, draws.weight, strict=True)):
        if not len(pick):
            continue
        score = looks[:, k].clone()
        score[: len(labels)][labels == k] = -1  # they come last
        candidates = score.argsort(descending=True, stable=True)[: int((score >= 0).sum())]
        if not len(candidates):
            continue
        # If more are wanted than there are, it begins anew.
        others = everything[candidates[torch.arange(len(pick)) % len(candidates)]]
        own = labeled[labels == k][pick.to(labels.device)]
        features.append(losses.mix_features(own, others, share.to(own)))
        classes.append(torch.full_like(labels[:1], k).expand(len(pick)))
    return torch.cat(features), torch.cat(classes)


class Warmup:
    """Adam on a linear head, and the head's average."""

    def __init__(self, head: nn.Linear, lr: float) -> None:
        self.head, self.average = head, copy.deepcopy(head).requires_grad_(False)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in head.parameters() if p.ndim == 1]},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=lr)

    def step(self, features: Tensor, classes: Tensor) -> Tensor:
        """A step on features B×D of classes (B,); returns the logits before it, B×K."""
        logits: Tensor = self.head(features)
        loss = F.cross_entropy(logits, classes)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, p in zip(self.average.parameters(), self.head.parameters(), strict=True):
                mean.lerp_(p, 1 - MEMORY)
        return logits.detach()


def fitted(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    config: Config,
    random: np.random.Generator,
) -> Warmup:
    """A new head after `warmup_steps` on shuffled batches of the features."""
    bound = features.shape[1] ** -0.5  # as torch starts a linear layer
    head = nn.Linear(features.shape[1], num_classes, device=features.device)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.from_numpy(random.uniform(-bound, bound, size=tuple(p.shape))))
    made = Warmup(head, config.warmup_lr)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for _ in range(config.warmup_steps):
            if not len(order):
                order = torch.from_numpy(random.permutation(len(features)))
            rows = order[:BATCH].to(features.device)
            order = order[BATCH:]
            made.step(features[rows], classes[rows])
    return made
