"""Which pseudo-labels count, and how much: thresholds and weights as small modules with state.

Shapes: M unlabeled images of a batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ssl_selmix import losses
from ssl_selmix.algorithm import Rules, Task


@dataclass
class Config:
    """Which pseudo-labels count."""

    threshold: float = 0.95  # tau, confidence from which a pseudo-label counts

    RULES: ClassVar[Rules] = {"threshold": "[0, 1]"}


class Confidence(nn.Module):
    """The fixed threshold of FixMatch (Sohn et al., NeurIPS 2020, eq. 4); others derive from it."""

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (M,) and the weights (M,) of their losses.

        Shape: p M×K probabilities without gradient, index (M,) positions in the pool.
        """
        return losses.pseudo_label(p, self.config.threshold)

    def penalty(self, logits_strong: Tensor, classes: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Losses that belong to the rule, by name; none here."""
        return {}


def build(task: Task, config: Config) -> Confidence:
    """The rule that the configuration names."""
    return Confidence(task, config)
