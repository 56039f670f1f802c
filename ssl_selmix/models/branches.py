"""Copies of a network's last stage side by side, whose features are joined.

Shapes: N images, G branches, D features of one branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """The last stage of a body several times, on the same map: features N×GD, branch by branch.

    A linear classifier on them is the mean of G classifiers, each on the features of one branch, if
    their weights are divided by G. So a network with branches is one like any other.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Features of all branches; their first layers leave the map as it is."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def branched(bodies: Sequence[nn.Sequential], start: int) -> nn.Sequential:
    """The layers of the first body up to `start`, and behind them those of each body from there."""
    trunk = list(bodies[0].children())[:start]
    return nn.Sequential(
        *trunk, Branches([nn.Sequential(*list(body.children())[start:]) for body in bodies])
    )


def num_branches(body: nn.Module) -> int:
    """How many branches make the features; 1 of a network without."""
    last = body[-1] if isinstance(body, nn.Sequential) and len(body) else None
    return len(last.branches) if isinstance(last, Branches) else 1
