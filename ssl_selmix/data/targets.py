"""What labeled images count for in the loss: weights, on the classes that annotators say.

Shapes: N images, n labeled ones, B images of a batch, K classes, A annotators.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(weights: npt.NDArray[np.float64] | None, labeled: Tensor) -> Tensor | None:
    """The weights of the labeled images, whose mean is 1; None if there are none.

    So a factor of all weights means nothing, and the learning rate and the weight of the unlabeled
    loss mean what they mean without weights.

    Shape: weights (N,), labeled (n,) positions among them -> (n,) float32.

    Raises:
        ValueError: all of them are 0.
    """
    if weights is None:
        return None
    found = torch.from_numpy(np.asarray(weights, dtype=np.float64))[labeled]
    if not bool((found > 0).any()):
        raise ValueError(
            f"the weights of all {len(found)} labeled images are 0 (data.weight_column), which "
            "leaves nothing to learn from; give some of them a weight above 0"
        )
    return (found / found.mean()).float()


def masses_of(y: Tensor, num_classes: int, weights: Tensor | None, shares: Tensor | None) -> Tensor:
    """The weight of each image on its class, or on its classes by the shares of annotators.

    Shape: y (B,), weights (B,) or None, shares B×K or None -> B×K float32.
    """
    masses = F.one_hot(y, num_classes).float() if shares is None else shares
    return masses if weights is None else weights[:, None] * masses


def shares_of(votes: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
    """The share of each image's annotators that are for each class, 0 where nobody said anything.

    Shape: votes N×A, -1 for none -> N×K.
    """
    counts = np.zeros((len(votes), num_classes), dtype=np.float32)
    rows, columns = np.nonzero(votes >= 0)
    np.add.at(counts, (rows, votes[rows, columns]), 1)
    said: npt.NDArray[np.float32] = np.maximum(counts.sum(1, keepdims=True), 1)
    return counts / said


def on_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """The same on a device, if it is there at all."""
    return None if tensor is None else tensor.to(device, non_blocking=True)
