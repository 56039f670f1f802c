"""DASO's second opinion: a classifier by similarity to class prototypes, and when to follow it.

Oh et al., CVPR 2022. Shapes: B labeled and M unlabeled images, K classes, D features, L images
remembered per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Context
from ssl_selmix.common.rules import Checked, at_least, one_of, positive, within
from ssl_selmix.models.execution import in_mode


@dataclass
class Config(Checked):
    """The semantic classifier and how far it is followed."""

    proto_temperature: float = positive(0.05)  # T_proto, of the similarities to the prototypes
    dist_temperature: float = positive(0.3)  # T_dist; 1.5 in the paper for gamma_l = gamma_u
    distribution_aware: bool = True  # v_k follows the pseudo-label counts; False: v = blend_weight
    blend_weight: float = within("[0, 1]", 0.5)  # v of every class, unless distribution_aware
    align_weight: float = at_least(0, 1.0)  # lambda_align, weight of the alignment loss
    queue_length: int = at_least(1, 256)  # L, newest labeled images remembered of each class
    warmup: float = within("[0, 1]", 0.02)  # share of the steps before blending and alignment
    # Steps between the counts m. A number of steps and no share of them: it makes a sample, of
    # 100 * mu * B pseudo-labels, large enough to count K classes in.
    count_every: int = at_least(1, 100)
    # mode of the teacher's batch norms; train: as published
    teacher_mode: str = one_of("eval", "train")


@torch.no_grad()
def teacher_features(teacher: Algorithm, x: Tensor, mode: str = "eval") -> Tensor:
    """Features of the averaged network, whose own mode is restored.

    In evaluation mode the teacher stays as it was. In train mode, the published one, features
    come from the statistics of this batch, which also enter the teacher's running statistics;
    they stay there only with `ema_buffers=average`.

    Shape: B×C×H×W -> B×D.
    """
    with in_mode(teacher.net, training=mode == "train"):
        return teacher.net.features(x)


def similarities(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of every feature and every prototype, 0 for a prototype that is zero.

    Shape: M×D and K×D -> M×K.
    """
    unit = [F.normalize(rows, dim=1, eps=1e-8) for rows in (features, prototypes)]
    return unit[0] @ unit[1].T


class PrototypeClassifier(nn.Module):
    """A balanced memory of labeled features, its prototypes, and the counts of pseudo-labels."""

    queue: Tensor  # Q, K×L×D, a ring per class
    remembered: Tensor  # (K,) images ever put into each ring
    window: Tensor  # (K,) pseudo-labels since the last count
    counts: Tensor  # m, (K,) pseudo-labels of the last complete window

    def __init__(self, num_classes: int, num_features: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("queue", torch.zeros(num_classes, config.queue_length, num_features))
        for name in ("remembered", "window", "counts"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.int64))

    @property
    def prototypes(self) -> Tensor:
        """Means c of what is remembered of each class, K×D; zero of a class not yet seen."""
        num = self.remembered.clamp(1, self.config.queue_length)
        return self.queue.sum(1) / num[:, None]

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Put labeled features into the rings of their classes, over the oldest ones there.

        Shape: features B×D, labels (B,).
        """
        length = self.config.queue_length
        # In a part of at most L images, no two of a class get the same place.
        for h, y in zip(features.split(length), labels.split(length), strict=True):
            seen = F.one_hot(y, len(self.remembered)).cumsum(0)
            place = self.remembered[y] + seen.gather(1, y[:, None])[:, 0] - 1
            self.queue[y, place % length] = h.to(self.queue.dtype)
            self.remembered += seen[-1]

    def forward(self, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic pseudo-labels q of the weak views, and how far the strong ones are from them.

        The alignment loss, times its weight, moves the features of the strong views alone.

        Shape: features M×D twice -> q M×K, scalar.
        """
        c, temperature = self.prototypes, self.config.proto_temperature
        q = (similarities(weak.detach(), c) / temperature).softmax(1)
        loss = F.cross_entropy(similarities(strong, c) / temperature, q)
        return q, self.config.align_weight * loss

    def started(self, ctx: Context) -> bool:
        """Whether the warm-up, in which nothing is blended or aligned, is over."""
        return ctx.step >= round(self.config.warmup * ctx.total)

    @property
    def follow(self) -> Tensor:
        """How far q is followed where a class is predicted: v, (K,), 1 for the most frequent one.

        v_k = m_k^(1/T_dist) / max_j m_j^(1/T_dist). Before the first complete window, which may
        end after the warm-up of a short run, v = 0: the linear prediction alone.
        """
        if not self.config.distribution_aware:
            return torch.full_like(self.counts, self.config.blend_weight, dtype=torch.float32)
        share = self.counts.double() / self.counts.max().clamp_min(1)
        return (share ** (1 / self.config.dist_temperature)).float()

    def blend(self, p: Tensor, q: Tensor) -> Tensor:
        """Blended pseudo-labels p' = (1 - v_k) p + v_k q, k = arg-max p; all M×K."""
        v = self.follow[p.argmax(1)][:, None]
        return (1 - v) * p + v * q

    @torch.no_grad()
    def count(self, classes: Tensor, step: int) -> None:
        """Count the pseudo-labels (M,) of a step, confident or not; windows do not overlap."""
        self.window += F.one_hot(classes, len(self.window)).sum(0)
        if (step + 1) % self.config.count_every == 0:
            self.counts.copy_(self.window)
            self.window.zero_()
