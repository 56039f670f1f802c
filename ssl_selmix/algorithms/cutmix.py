"""CutMix fine-tuning: a rectangle of another labeled image, and as much of its label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.algorithms.mixup import Mixup
from ssl_selmix.common.rules import within


class CutMix(Mixup):
    """Yun et al., ICCV 2019, as a second stage."""

    @dataclass
    class Config(Mixup.Config):
        """Hyper-parameters."""

        # how probable it is that a batch is mixed; 0.5 in the CIFAR code
        probability: float = within("[0, 1]", 1.0)

    config: Config

    @classmethod
    def needs_pixels(cls, config: Algorithm.Config) -> str:
        """To cut from."""
        return "it cuts rectangles out of images"

    def mix(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """First images with a rectangle of the second ones, and the share of what is left.

        The rectangle has sides H sqrt(1 - lambda) and W sqrt(1 - lambda) and its centre anywhere;
        what lies outside of the image is cut off, and lambda becomes the true share (eq. 1 and 2).

        Shape: B×C×H×W twice -> B×C×H×W, scalar.
        """
        side = (1 - self.draw_share(first)).sqrt()
        height, width = first.shape[2:]
        inside = self._interval(height, side)[:, None] & self._interval(width, side)
        inside &= torch.rand((), device=first.device) < self.config.probability
        return torch.where(inside, second, first), 1 - inside.to(first.dtype).mean()

    def _interval(self, size: int, side: Tensor) -> Tensor:
        """Which of `size` pixels lie within half a side of a random centre."""
        centre = torch.randint(size, (), device=side.device)
        half = (size * side).floor() // 2
        pixel = torch.arange(size, device=side.device)
        return (pixel >= centre - half) & (pixel < centre + half)
