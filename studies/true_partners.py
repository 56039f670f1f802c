"""SelMix whose partners are of the class that P asks for, by their true labels: a diagnosis only.

    ssl-selmix train --algo ./studies/true_partners.py algo.labels=FOLDER/train_labels.npy ...

Nobody who trains has these labels. The run shows what wrong pseudo-labels of partners cost.

Shapes: N training images, M images of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch


class TruePartners(SelMix):
    """SelMix with the true labels of the pool in the place of pseudo-labels."""

    @dataclass
    class Config(SelMix.Config):
        """Where the true labels are."""

        labels: str = ""  # .npy of the class of every training image (N,)

        def __post_init__(self) -> None:
            """Refuse a file that is not there."""
            super().__post_init__()
            if self.labels and not Path(self.labels).is_file():
                raise ValueError(f"labels={self.labels} is no file; name train_labels.npy")

    config: Config
    _truth: Tensor | None = None

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """As SelMix, with partners by their true class."""
        if not self.config.labels:
            raise ValueError("true partners need labels=FILE; name train_labels.npy")
        labels = torch.from_numpy(np.load(self.config.labels, allow_pickle=False))
        self._truth = labels[data.unlabeled]
        self._tell()
        return super().batches(data, start)

    def _estimate(
        self, evaluation: Evaluation, prototypes: Tensor, ctx: Context
    ) -> dict[str, Tensor]:
        found = super()._estimate(evaluation, prototypes, ctx)
        self._tell()
        return found

    def _tell(self) -> None:
        if self._truth is not None:
            self.pairing.pseudo_labels.copy_(self._truth)
