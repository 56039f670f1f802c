"""ABC's auxiliary head, trained on a class-balanced share of the images.

Lee, Shin & Kim, NeurIPS 2021. Shapes: B labeled and M unlabeled images, K classes, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Context
from ssl_selmix.models import Classifier

EPOCHS = 500  # E, parts of a run after which the masks of unlabeled images get stricter


@dataclass(frozen=True)
class Chosen:
    """Which images of a step the balanced head learns from, and what.

    Shape: labeled (B,) and unlabeled (M,) masks; targets (M,) classes or M×K probabilities.
    """

    labeled: Tensor
    unlabeled: Tensor
    targets: Tensor


def new_head(num_features: int, num_classes: int) -> nn.Linear:
    """A linear layer with random weights, as ABC's code and those after it begin a head."""
    head = nn.Linear(num_features, num_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class BalancedHead(nn.Module):
    """A linear head g beside the network's own, which sees frequent classes as rarely as rare ones.

    Every class k keeps a share r_k = n_min / n_k of its images, drawn anew at each step. The
    published code takes the last class for the rarest; here n_min is the least count that is not
    0. A class without labeled images has r_k = 1: its pseudo-labels are never masked.

    Shape: counts (K,) labeled images of each class.
    """

    ratio: Tensor  # r, (K,)

    def __init__(
        self, num_features: int, counts: Tensor, threshold: float, *, soft_targets: bool = True
    ) -> None:
        super().__init__()
        self.threshold, self.soft_targets = threshold, soft_targets
        self.linear = new_head(num_features, len(counts))
        least = counts[counts > 0].min()
        self.register_buffer("ratio", (least / counts.clamp_min(least)).float())

    def forward(self, features: Tensor) -> Tensor:
        """Logits N×K from features N×D."""
        return self.linear(features)  # type: ignore[no-any-return]

    def guess(self, weak: Tensor) -> Tensor:
        """Class probabilities M×K of the weak views' features, without gradient."""
        return self.linear(weak).detach().softmax(1)  # type: ignore[no-any-return]

    def kept(self, ctx: Context) -> Tensor:
        """Share of the pseudo-labels of each class that are kept: 1 - e/E (1 - r_k), (K,)."""
        # As published: 500 epochs of 500 steps. A shorter run has as many, a share of it each.
        epoch = ctx.step * EPOCHS // ctx.total
        return 1 - epoch / EPOCHS * (1 - self.ratio)

    def choose(self, y: Tensor, p: Tensor, ctx: Context) -> Chosen:
        """Draw which images count: labeled ones by class, unlabeled ones if they are sure as well.

        Shape: y (B,), p M×K of the weak views.
        """
        labeled = torch.bernoulli(self.ratio[y])
        classes, confident = losses.pseudo_label(p, self.threshold)
        mask = confident * torch.bernoulli(self.kept(ctx)[classes])
        return Chosen(labeled, mask, p if self.soft_targets else classes)

    def objective(
        self, features: Tensor, y: Tensor, chosen: Chosen, strong: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Masked losses of labeled images and of strong views, means over all images.

        Strong views of one image share its mask and add up.

        Shape: features B×D, y (B,) or masses B×K, strong M×D each.
        """
        seen = [
            losses.masked_cross_entropy(self(h), chosen.targets, chosen.unlabeled) for h in strong
        ]
        return {
            "balanced_labeled": losses.masked_cross_entropy(self(features), y, chosen.labeled),
            "balanced_unlabeled": torch.stack(seen).sum(),
        }

    def into(self, net: Classifier) -> Classifier:
        """The network with a copy of this head for its classifier."""
        net.classifier = copy.deepcopy(self.linear)
        return net
