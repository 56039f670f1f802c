"""Several linear heads on the same features, which vote: each sees a random part of them.

Shapes: N images, H heads, K classes, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.methods import discriminant

ROWS = 8192  # images that vote at a time


class _Scaled(torch.autograd.Function):
    """The tensor itself, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class VotingHeads(nn.Module):
    """H linear heads, each on a random share of the features (Ho, IEEE TPAMI 1998).

    Heads that differ in nothing but their start end at the same minimum; those that look at
    different features err on different images. All start at the given layer.
    """

    mask: Tensor  # H×D: 0, or what keeps the length of the features that a head sees
    temperature: Tensor  # T_h, (H,)

    def __init__(self, start: nn.Linear, num: int, share: float) -> None:
        super().__init__()
        self.num, self.num_classes = num, start.out_features
        d = start.in_features
        kept = max(1, round(share * d))
        order = torch.rand(num, d).argsort(1)
        mask = (order < kept).to(start.weight) * (d / kept) ** 0.5
        self.register_buffer("mask", mask)
        self.register_buffer("temperature", torch.ones(num, dtype=torch.float64))
        with torch.no_grad():
            # On average over masks every head is the layer itself.
            weight = start.weight.repeat(num, 1) * (d / kept) ** 0.5
            bias = torch.zeros(num * self.num_classes).to(weight)
            if start.bias is not None:
                bias += start.bias.repeat(num)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def effective(self) -> Tensor:
        """What the heads multiply all features with, H×K×D."""
        return self.weight.view(self.num, self.num_classes, -1) * self.mask[:, None]

    def forward(self, features: Tensor) -> Tensor:
        """Logits N×H×K. Of a mean over heads each gets the gradient that it would get alone."""
        weight = _Scaled.apply(self.effective(), float(self.num)).flatten(0, 1)
        bias = _Scaled.apply(self.bias, float(self.num))
        return F.linear(features, weight, bias).view(len(features), self.num, -1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight K×D and bias (K,) of the linear layer whose logits are the mean of all heads'."""
        return self.effective().mean(0), self.bias.view(self.num, -1).mean(0)

    @torch.no_grad()
    def calibrate(self, features: Tensor, labels: Tensor) -> None:
        """Fit the temperature of each head to held-out images."""
        logits = self(features)
        found = [discriminant.temperature(logits[:, h], labels) for h in range(self.num)]
        self.temperature.copy_(torch.tensor(found))

    @torch.no_grad()
    def votes(self, features: Tensor) -> Tensor:
        """Mean over heads of softmax(z_h / T_h), N×K float64."""
        parts = [self(rows).double() for rows in features.split(ROWS)]
        return torch.cat([(z / self.temperature[:, None]).softmax(2).mean(1) for z in parts])
