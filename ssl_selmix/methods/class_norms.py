"""Batch norms side by side on the last map of a network, and the linear layer that they fold into.

Ma et al. (CPE), AAAI 2024. Shapes: N images, C = D channels of the map, G groups, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_selmix.models import Classifier


class MapMoments(nn.AdaptiveAvgPool2d):
    """The mean over each channel of a map, and while training its variance beside it.

    Batch norm before the pooling needs no more of the map. Features are then 2D wide in training
    mode, and D in evaluation mode as they were.

    Shape: N×C×H×W -> N×2C×1×1, or N×C×1×1.
    """

    positions = 1  # H W of the map that was seen last

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        """Means, and variances behind them."""
        if not self.training:
            return super().forward(x)
        self.positions = x.shape[2] * x.shape[3]
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision has no variance
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return torch.cat([mean, variance], 1)


def _pooled(net: Classifier) -> nn.Sequential | None:
    """The body, if it ends in a mean over a map, which makes the features."""
    body = net.backbone
    if net.neck is not None or not isinstance(body, nn.Sequential) or len(body) < 2:
        return None
    pools = isinstance(body[-2], nn.AdaptiveAvgPool2d) and isinstance(body[-1], nn.Flatten)
    return body if pools and body[-2].output_size == 1 else None


def observe_map(net: Classifier) -> None:
    """Let the network, in place, show the variances of its last map while training, if it can.

    Networks of other libraries and vectors show none: their features count as a map of one pixel.
    """
    if (body := _pooled(net)) is not None:
        body[-2] = MapMoments().train(body.training)


def positions(net: Classifier) -> int:
    """H W of the last map, 1 if it is not shown."""
    body = _pooled(net)
    pool = body[-2] if body is not None else None
    return pool.positions if isinstance(pool, MapMoments) else 1


def forget_map(net: Classifier) -> None:
    """Undo `observe_map`."""
    if (body := _pooled(net)) is not None:
        body[-2] = nn.AdaptiveAvgPool2d(1).train(body.training)


class ClassNorms(nn.Module):
    """G batch norms of one map, each followed by the mean over the map: h_g of the features.

    All of them see all images, so that their statistics are the same and only scale and shift are
    their own. Statistics are those of all images of all processes.

    Shape: features N×D, or N×2D with the variances of the map -> G×N×D.
    """

    running_mean: Tensor  # mu, (D,)
    running_var: Tensor  # sigma^2, (D,)

    def __init__(self, num_features: int, groups: int, momentum: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        # Vectors of their own, for what has two dimensions is subject to weight decay.
        self.weight = nn.ParameterList([torch.ones(num_features) for _ in range(groups)])
        self.bias = nn.ParameterList([torch.zeros(num_features) for _ in range(groups)])
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, features: Tensor, positions: int = 1) -> Tensor:
        """Normalise by the batch while training, which is remembered, and else by what was."""
        num = len(self.running_mean)
        mean = features[:, :num]
        centre, variance = self.running_mean, self.running_var
        if self.training:
            centre = mean.mean(0)
            # Between the images, and within them.
            variance = ((mean - centre) ** 2).mean(0)
            if features.shape[1] > num:
                variance = variance + features[:, num:].mean(0)
            self._remember(centre.detach(), variance.detach(), len(features) * positions)
        normalised = (mean - centre) * (variance + self.eps).rsqrt()
        return torch.stack(
            [torch.addcmul(b, normalised, w) for w, b in zip(self.weight, self.bias, strict=True)]
        )

    def _remember(self, mean: Tensor, variance: Tensor, num: int) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (num / max(1, num - 1)), self.momentum)

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight K×D and bias (K,) that give the mean over g of linear(h_g), in evaluation mode."""
        scale = (self.running_var + self.eps).rsqrt()
        gamma, beta = (torch.stack(list(part)).mean(0) for part in (self.weight, self.bias))
        shift = linear.weight @ (beta - gamma * scale * self.running_mean)
        bias = shift if linear.bias is None else linear.bias + shift
        return linear.weight * (gamma * scale), bias
