"""Functions of the confusion matrix to use or to copy."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ssl_selmix.objectives.confusion import Function


def macro_f1(confusion: Tensor) -> Tensor:
    """Mean over classes of the F1 score. Pass the function itself: `get(macro_f1, K)`.

    Shape: (K, K) -> ().
    """
    return (2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))).mean()


def recall_of(cls: int) -> Function:
    """Recall of one class, for instance under a bound on its precision.

    Examples:
        >>> from ssl_selmix.objectives import get
        >>> objective = get(recall_of(1), 2, constraints=[precision_at_least(1, 0.7)])
        >>> confusion = torch.tensor([[0.35, 0.15], [0.20, 0.30]])
        >>> round(objective.metric(confusion), 3)
        0.6
        >>> {name: round(slack, 3) for name, slack in objective.constraints(confusion).items()}
        {'precision_at_least': -0.033}
    """
    return functools.partial(_recall_of, cls=_class_index(cls))


def precision_at_least(cls: int, bound: float) -> Function:
    """Constraint: precision of one class minus the bound; a class never predicted has 0."""
    if not 0 < bound <= 1:
        raise ValueError(
            f"a bound on precision must be in (0, 1], got {bound}; pass a fraction such as 0.8"
        )
    return functools.partial(_precision_at_least, cls=_class_index(cls), bound=bound)


def cost_matrix(costs: Tensor) -> Function:
    """Negative expected cost, where costs[i, j] is what it costs to predict j when the truth is i.

    Shape: costs (K, K).

    Examples:
        >>> from ssl_selmix.objectives import get
        >>> objective = get(cost_matrix(torch.tensor([[0.0, 1.0], [10.0, 0.0]])), 2)
        >>> objective.metric(torch.tensor([[45, 5], [2, 48]]))
        -0.25
    """
    costs = torch.as_tensor(costs)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not bool(costs.isfinite().all()):
        raise ValueError(
            f"costs must be a finite (K, K) matrix, got {tuple(costs.shape)}; rows are the "
            "true classes"
        )
    return functools.partial(_negative_cost, costs=costs)


def _class_index(cls: int) -> int:
    if isinstance(cls, bool) or not isinstance(cls, int) or cls < 0:
        raise ValueError(f"cls must be a class index >= 0, got {cls!r}; count classes from 0")
    return cls


def _recall_of(confusion: Tensor, cls: int) -> Tensor:
    if cls >= len(confusion):
        raise ValueError(
            f"cls must be below the number of classes {len(confusion)}, got {cls}; count from 0"
        )
    return confusion[cls, cls] / confusion[cls].sum()


def _precision_at_least(confusion: Tensor, cls: int, bound: float) -> Tensor:
    if cls >= len(confusion):
        raise ValueError(
            f"cls must be below the number of classes {len(confusion)}, got {cls}; count from 0"
        )
    predicted = confusion[:, cls].sum()
    return confusion[cls, cls] / predicted.clamp_min(torch.finfo(predicted.dtype).tiny) - bound


def _negative_cost(confusion: Tensor, costs: Tensor) -> Tensor:
    if costs.shape != confusion.shape:
        raise ValueError(
            f"costs must be {tuple(confusion.shape)} like the confusion matrix, got "
            f"{tuple(costs.shape)}"
        )
    return -(costs.to(confusion) * confusion).sum() / confusion.sum()
