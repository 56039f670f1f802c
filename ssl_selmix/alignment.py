"""Distribution alignment: predictions on the pool made to follow a target class distribution.

Shapes: M unlabeled images of a batch, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-6  # added to both distributions, as published


class DistributionAlignment(nn.Module):
    """p~ = Norm(p * (target^t / sum(target^t) + 1e-6) / (pbar + 1e-6)), Norm per image.

    Berthelot et al. (ReMixMatch), ICLR 2020; with a temperature t by Wei et al. (CReST), CVPR 2021.
    pbar is the mean prediction over the last `window` batches, the current one included, or, with
    a `momentum` (0.999 in USB), their moving average that starts at the first batch's mean.
    Batches of equal size, so that the mean of batch means is the mean over all images.

    Shape: target (K,) frequencies or counts.
    """

    target: Tensor
    means: Tensor  # of the last batches, `window` × K; with a momentum 1×K, the moving average
    seen: Tensor  # batches so far

    def __init__(self, target: Tensor, window: int = 128, momentum: float | None = None) -> None:
        super().__init__()
        self.momentum = momentum
        rows = window if momentum is None else 1
        self.register_buffer("target", target.float() / target.sum())
        self.register_buffer("means", torch.zeros(rows, len(target)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, p: Tensor, temperature: float = 1.0) -> Tensor:
        """Take up the batch p M×K, while training, and return it aligned, without gradient."""
        pbar = self._update(p.float().mean(0, keepdim=True))
        target = self.target**temperature
        aligned = p * (target / target.sum() + EPSILON) / (pbar + EPSILON)
        return aligned / aligned.sum(1, keepdim=True)

    def reset(self) -> None:
        """Forget all batches: another network's predictions say nothing about the next one's."""
        self.means.zero_()
        self.seen.zero_()

    def _update(self, mean: Tensor) -> Tensor:
        """The mean prediction 1×K, with this batch's in it while training."""
        if self.training:
            if self.momentum is not None:
                old = torch.where(self.seen == 0, mean, self.means)
                mean = torch.lerp(mean, old, self.momentum)
            place = (self.seen % len(self.means)).view(1)
            self.means.index_copy_(0, place, mean)
            self.seen += 1
        return self.means.sum(0, keepdim=True) / self.seen.clamp(1, len(self.means))
