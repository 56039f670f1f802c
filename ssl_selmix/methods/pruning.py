"""Leaving out labeled images that are learned already, without changing the gradient's expectation.

InfoBatch (Qin et al., ICLR 2024, https://arxiv.org/abs/2303.04947) leaves images whose last loss
lies below the mean out of an epoch. Steps here draw images with replacement and there are no
epochs, so it is decided at every draw. The batch has B images; image i of it passes the network
with probability 1 - r if its last loss is low, else always, and what it adds to the loss is divided
by that probability. The expectation over these decisions is the loss of all B images.

Shapes: B images of a batch, b of them that pass, n labeled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_selmix.common.rules import Checked, within
from ssl_selmix.models import Classifier

UNSEEN = -1.0  # in the place of the last loss of an image that was never seen
FEWEST = 2  # images that pass: a batch norm needs two


@dataclass
class Config(Checked):
    """How many labeled images with a low loss are left out, and how long."""

    # r of InfoBatch: how probable it is that a labeled image whose last loss was below the mean is
    # left out of a step, so that steps are cheaper; the paper has 0.5. 0: none is
    prune: float = within("[0, 1)", 0.0)
    # delta of InfoBatch, the share of the steps in which images are left out; all are seen after it
    prune_until: float = within("(0, 1]", 0.875)

    def __post_init__(self) -> None:
        """Refuse an end of what never begins."""
        super().__post_init__()
        if not self.prune and self.prune_until != Config.prune_until:
            raise ValueError(
                f"prune_until={self.prune_until} ends nothing with prune=0; set prune=0.5, too"
            )


def check(net: Classifier) -> None:
    """Refuse a network that cannot take batches of another size in every step.

    Raises:
        ValueError: it is compiled, or shared by several processes.
    """
    for found, told, remedy in (
        (net.execution.world is not None, "several processes", "train in one process"),
        (net.execution.compiled, "compile=true", "set compile=false"),
    ):
        if found:
            raise ValueError(
                f"prune does not go with {told}, for steps have different numbers of images; "
                f"{remedy}, or leave prune out"
            )


class Pruning(nn.Module):
    """The last loss of every labeled image, and which images of a batch pass the network."""

    last: Tensor  # (n,)

    def __init__(self, num_labeled: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("last", torch.full((num_labeled,), UNSEEN))

    def choose(self, index: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Which images pass, and what their parts of the loss are multiplied by.

        Where fewer than two would pass, one or two that are left out pass all the same, times 0.

        Args:
            index: (B,), positions among the labeled images.
            progress: share of the steps done.

        Returns:
            Rows (b,) of the batch in their order, and factors (b,).
        """
        rate = self.config.prune if progress < self.config.prune_until else 0.0
        # Drawn on the CPU, so that every device leaves out the same images.
        chance = torch.rand(len(index)).to(index.device) < rate
        seen = self.last != UNSEEN
        mean = (self.last * seen).sum() / seen.sum().clamp(min=1)
        low = (seen & (self.last < mean))[index]
        out = low & chance
        factors = torch.where(low, 1 / (1 - rate), 1.0) * ~out
        size = max(int((~out).sum()), min(FEWEST, len(index)))
        rows = out.to(torch.uint8).argsort(stable=True)[:size].sort().values
        return rows, factors[rows]

    def remember(self, index: Tensor, losses: Tensor) -> None:
        """Keep what was lost on these images; of one that was drawn twice, the larger loss.

        Shape: index (b,), losses (b,).
        """
        self.last.scatter_reduce_(
            0, index, losses.detach().to(self.last), "amax", include_self=False
        )
