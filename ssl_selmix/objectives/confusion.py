"""Confusion matrices: their checks, their rows, and functions of users on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ssl_selmix.common.names import blame

Function = Callable[[Tensor], Tensor]
# Below this a recall counts as this in geometric and harmonic means, whose derivative at 0 is
# infinite or undefined.
RECALL_FLOOR = 1e-7


def check_confusion(confusion: Tensor, num_classes: int | None = None) -> Tensor:
    """The confusion matrix as a floating tensor; looks at its entries once.

    Shape: (K, K) -> (K, K).

    Raises:
        ValueError: it is no square matrix of `num_classes` >= 2 classes, an entry is negative or no
            number, or a class has no image.
    """
    _check_shape(confusion, num_classes)
    confusion = confusion if confusion.is_floating_point() else confusion.double()
    entries = confusion.detach()
    sums = entries.sum(1)
    # One look: every `bool` of a tensor waits for its device.
    if bool((entries.isfinite() & (entries >= 0) & (sums != 0)[:, None]).all()):
        return confusion
    raise ValueError(_complaint(entries, sums))


def _check_shape(confusion: Tensor, num_classes: int | None) -> None:
    if not isinstance(confusion, Tensor) or confusion.ndim != 2 or len(set(confusion.shape)) != 1:
        shape = tuple(getattr(confusion, "shape", ())) or type(confusion).__name__
        raise ValueError(
            f"a confusion matrix must be a square tensor, got {shape}; pass (K, K), rows = true "
            "class"
        )
    k = len(confusion)
    if k < 2:
        raise ValueError(
            f"a confusion matrix needs at least 2 classes, got {k}; pass (K, K) with K >= 2"
        )
    if num_classes is not None and k != num_classes:
        raise ValueError(
            f"the confusion matrix must have the objective's {num_classes} classes, got {k}; build "
            f"the objective with num_classes={k}"
        )


def _complaint(entries: Tensor, sums: Tensor) -> str:
    """What is wrong with the entries (K, K), whose rows have these sums (K,)."""
    if not bool(entries.isfinite().all()):
        return (
            "confusion entries must be finite, got inf or nan; check the predictions it was "
            "counted from"
        )
    if bool((entries < 0).any()):
        return (
            f"confusion entries must be >= 0, got {float(entries.min()):g}; pass counts or "
            "frequencies"
        )
    empty = (sums == 0).nonzero().flatten().tolist()
    return (
        f"every class needs a validation image, classes {empty} have none (zero rows); add images "
        "of them to the validation set or drop the classes"
    )


def _balance(confusion: Tensor, smoothing: float = 0.0) -> Tensor:
    num_classes = len(confusion)
    conditional = confusion / confusion.sum(1, keepdim=True)
    return ((1 - smoothing) * conditional + smoothing / num_classes) / num_classes


def normalise_rows(confusion: Tensor, smoothing: float = 0.0) -> Tensor:
    """Give every class the same mass 1/K, after mixing its row with the uniform one.

    Row i becomes `((1 - smoothing) C_ij / r_i + smoothing / K) / K`. Without smoothing this only
    removes the class sizes of the validation set. Smoothing reads each row as counts plus a uniform
    prior (K / (n_i + K) is one count more in every cell; 0.01 is a mild choice): a class with
    recall 0 gets recall smoothing/K. That is what keeps its gradient alive, for the derivative with
    respect to its logits is proportional to the recall itself.

    Shape: (K, K) -> (K, K).

    Raises:
        ValueError: smoothing is no share, or the matrix is none (`check_confusion`).

    Examples:
        >>> import torch
        >>> normalise_rows(torch.tensor([[3.0, 1.0], [0.0, 2.0]])).tolist()
        [[0.375, 0.125], [0.0, 0.5]]
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1], got {smoothing}; 0 is none, 0.01 a little")
    return _balance(check_confusion(confusion), smoothing)


def _recalls(confusion: Tensor) -> Tensor:
    return confusion.diagonal() / confusion.sum(1)


def _tried(function: Function, num_classes: int) -> Function:
    """The function, once it gave something to differentiate: its first use may be hours away."""
    with torch.inference_mode(False), torch.enable_grad():
        part = torch.full((num_classes,), 0.5, dtype=torch.float64)
        value = _result(function, _balance(part.requires_grad_().diag() + 0.5 / num_classes))
    if not value.requires_grad:
        raise ValueError(
            f"{name_of(function, 'the objective')} must depend on the confusion matrix in a way "
            "that can be differentiated; compute it in torch, without .item(), .detach(), "
            "comparisons or arg-max"
        )
    return function


def _place_of(function: Function) -> torch.device:
    """Where a function is called: with a module's tensors, else on the CPU, whatever trains."""
    tensors: Iterable[Tensor] = ()
    if isinstance(function, nn.Module):
        tensors = itertools.chain(function.parameters(), function.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def _result(function: Function, confusion: Tensor) -> Tensor:
    # Constants in a user's function are where he made them, and the matrix is small.
    given, confusion = confusion, confusion.to(_place_of(function))
    try:
        value = function(confusion)
    except Exception as error:
        plain = getattr(function, "func", function)  # that of a functools.partial
        ours = str(getattr(plain, "__module__", "")).startswith("ssl_selmix.objectives.")
        if isinstance(error, ValueError) and ours:
            raise  # the examples beside this file say themselves what is wrong
        code = getattr(plain, "__code__", None)
        reason = blame(error, code.co_filename if code else "")
        raise ValueError(
            f"{name_of(function, 'the objective')} fails on a confusion matrix of "
            f"{len(confusion)} classes: {reason}; correct the function"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(
            "a function of the confusion matrix must return a scalar tensor, "
            f"{name_of(function, 'it')} returned "
            f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}; "
            "reduce it with .sum() or .mean(), in torch so that it can be differentiated"
        )
    return value.reshape(()).to(given.device)


def name_of(function: object, default: str) -> str:
    """The name of a user's function in messages."""
    # A functools.partial carries the name of what it wraps.
    return str(getattr(getattr(function, "func", function), "__name__", default)).strip("_<>")
