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
    their own; or, with `apart`, the statistics of each are those of its group's images. Statistics
    are those of all images of all processes.

    Shape: features N×D, or N×2D with the variances of the map -> G×N×D.
    """

    running_mean: Tensor  # mu, (D,); G×D apart
    running_var: Tensor  # sigma^2, the same

    def __init__(
        self,
        num_features: int,
        groups: int,
        momentum: float,
        eps: float = 1e-5,
        apart: bool = False,
    ) -> None:
        super().__init__()
        self.momentum, self.eps, self.apart = momentum, eps, apart
        # Vectors of their own, for what has two dimensions is subject to weight decay.
        self.weight = nn.ParameterList([torch.ones(num_features) for _ in range(groups)])
        self.bias = nn.ParameterList([torch.zeros(num_features) for _ in range(groups)])
        shape = (groups, num_features) if apart else (num_features,)
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

    def means(self, features: Tensor) -> Tensor:
        """What evaluation mode has of these features: the means without the variances, N×D."""
        return features[:, : self.running_mean.shape[-1]]

    def forward(
        self, features: Tensor, positions: int = 1, members: Tensor | None = None
    ) -> Tensor:
        """Normalise by the batch while training, which is remembered, and else by what was.

        Shape: members G×N, 1 for the images of each group; needed apart, while training.
        """
        mean = self.means(features)
        centre, variance = self.running_mean, self.running_var
        if self.training:
            variances = features[:, mean.shape[1] :]
            if self.apart:
                assert members is not None
                centre, variance = self._of_groups(mean, variances, members, positions)
            else:
                centre, variance = self._of_all(mean, variances, positions)
        normalised = (mean - centre.unsqueeze(-2)) * (variance.unsqueeze(-2) + self.eps).rsqrt()
        each = normalised if self.apart else [normalised] * len(self.weight)
        return torch.stack(
            [torch.addcmul(b, h, w) for w, b, h in zip(self.weight, self.bias, each, strict=True)]
        )

    def _of_all(self, mean: Tensor, variances: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the map over all images: (D,) each."""
        centre = mean.mean(0)
        # Between the images, and within them.
        variance = ((mean - centre) ** 2).mean(0)
        if variances.shape[1]:
            variance = variance + variances.mean(0)
        num = len(mean) * positions
        self.running_mean.lerp_(centre.detach(), self.momentum)
        self.running_var.lerp_(variance.detach() * (num / max(1, num - 1)), self.momentum)
        return centre, variance

    def _of_groups(
        self, mean: Tensor, variances: Tensor, members: Tensor, positions: int
    ) -> tuple[Tensor, Tensor]:
        """The same over the images of each group: G×D each.

        A group with fewer than two images has no statistics in this batch: it is normalised by
        those that are remembered, which stay as they are.
        """
        counts = members.to(mean.dtype).sum(1, keepdim=True)
        share = (members / counts.clamp_min(1)).unsqueeze(2)
        # Sums and no matrix products, which mixed precision would round.
        centre = (share * mean).sum(1)
        variance = (share * (mean - centre.unsqueeze(1)) ** 2).sum(1)
        if variances.shape[1]:
            variance = variance + (share * variances).sum(1)
        several = counts >= 2
        pixels = counts * positions
        unbiased = variance.detach() * (pixels / (pixels - 1).clamp_min(1))
        newest = self.momentum * several.to(mean.dtype)
        self.running_mean.lerp_(centre.detach(), newest)
        self.running_var.lerp_(unbiased, newest)
        return (
            torch.where(several, centre, self.running_mean),
            torch.where(several, variance, self.running_var),
        )

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight K×D and bias (K,) that give the mean over g of linear(h_g), in evaluation mode."""
        scale = (self.running_var + self.eps).rsqrt()
        gamma, beta = (torch.stack(list(part)) for part in (self.weight, self.bias))
        if self.apart:
            slope = (gamma * scale).mean(0)
            offset = (beta - gamma * scale * self.running_mean).mean(0)
        else:
            slope = gamma.mean(0) * scale
            offset = beta.mean(0) - slope * self.running_mean
        shift = linear.weight @ offset
        bias = shift if linear.bias is None else linear.bias + shift
        return linear.weight * slope, bias
