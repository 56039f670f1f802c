"""Which images of the pool are labeled ones, for methods that count the pool without them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, Task


class KnowsLabeled(Algorithm):
    """A method that is told which images of the pool it sees with their labels, too."""

    labeled_too: Tensor  # (images of the pool,) bool

    def register_labeled(self, task: Task) -> None:
        """Make room for what `batches` finds; called once by the constructor."""
        self.register_buffer("labeled_too", torch.zeros(task.num_unlabeled, dtype=torch.bool))

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Batches as usual; notes which images of the pool are labeled ones."""
        self.labeled_too.copy_(torch.isin(data.unlabeled, data.labeled))
        return super().batches(data, start)
