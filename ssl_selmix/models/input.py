"""What images a network takes: their size, their normalisation, how they are brought to size.

Shapes: N images, C×H×W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class InputSpec:
    """The images that a pre-trained network has learnt from.

    size: pixels a side; mean and std: per channel, in 0..1; interpolation: one of MODES.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def __str__(self) -> str:
        """Size, interpolation and normalisation."""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.size} px, {self.interpolation}, mean {mean}, std {std}"


class ToSize(nn.Module):
    """Images as the network takes them: at its size, with as many channels as it has.

    It lies before the body, so that small images are enlarged in batches, on the device, whoever
    passes them. It has no tensors, so that those of the network keep their names.
    """

    def __init__(self, size: int, interpolation: str, channels: int) -> None:
        super().__init__()
        self.size, self.interpolation, self.channels = size, interpolation, channels

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W -> N×channels×size×size; one grey channel is repeated."""
        if x.shape[1] == 1 < self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        if x.shape[-2:] == (self.size, self.size):
            return x
        aligned = None if self.interpolation == "nearest" else False
        size = (self.size, self.size)
        return F.interpolate(x, size, mode=self.interpolation, align_corners=aligned)

    def extra_repr(self) -> str:
        """Size and interpolation, for printing."""
        return f"{self.size}, {self.interpolation}"
