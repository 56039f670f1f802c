"""Kinds of objectives: means of recalls, the worst recall, constraints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn

from ssl_selmix.objectives.confusion import Function, _balance, _recalls, _result, check_confusion


class Groups(nn.Module):
    """A partition of n items: means of groups, and multipliers spread over their members."""

    index: Tensor
    size: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        # Both follow from the options, so a checkpoint need not carry them.
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.register_buffer("size", torch.bincount(self.index), persistent=False)

    def sum(self, items: Tensor) -> Tensor:
        """Shape: (n,) -> (G,)."""
        # A product, since index_add is not repeatable on a GPU.
        member = (
            self.index.to(items.device)
            == torch.arange(len(self.size), device=items.device)[:, None]
        )
        return member.to(items) @ items

    def mean(self, items: Tensor) -> Tensor:
        """Shape: (n,) -> (G,)."""
        return self.sum(items) / self.size.to(items)

    def spread(self, groups: Tensor) -> Tensor:
        """Shape: (G,) -> (n,), such that `sum` of the result is the argument again."""
        return (groups / self.size.to(groups))[self.index.to(groups.device)]


class Objective(nn.Module):
    """ψ(C) with its multipliers; larger is better. Subclasses override underscored methods.

    Public methods check the matrix that they are given and raise ValueError for one that is none
    (`check_confusion`); the underscored ones trust it.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def value(self, confusion: Tensor) -> Tensor:
        """ψ(C), differentiable, multipliers held constant. Shape: (K, K) -> ()."""
        return self._value(check_confusion(confusion, self.num_classes))

    def forward(self, confusion: Tensor) -> Tensor:
        """The same as `value`: an objective is itself a function of the confusion matrix."""
        return self.value(confusion)

    def update(self, confusion: Tensor) -> None:
        """Set the multipliers, in place, from a measured confusion matrix (K, K)."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            self._update(confusion.double())

    def merit(self, confusion: Tensor) -> Tensor:
        """What `update` and steps on `value` raise together: a potential without multipliers.

        `value` tells nothing between two measurements whose multipliers differ. Where no
        multiplier has a memory, the gradient of this is that of `value` at updated ones.

        Shape: (K, K) -> ().
        """
        return self._merit(check_confusion(confusion, self.num_classes))

    def metric(self, confusion: Tensor) -> float:
        """The figure to report at a matrix (K, K): the unrelaxed, unconstrained metric."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            return float(self._metric(confusion.double()))

    def constraints(self, confusion: Tensor) -> dict[str, float]:
        """Slack of every constraint at this confusion matrix (K, K); >= 0 means that it holds."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            return self._slacks(confusion.double())

    def feasibility(self, confusion: Tensor) -> float:
        """The smallest slack at a confusion matrix (K, K) if a constraint is violated, else 0."""
        return min([0.0, *self.constraints(confusion).values()])

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers of the classes, or None if there are none."""
        return None

    def _value(self, confusion: Tensor) -> Tensor:
        raise NotImplementedError

    def _merit(self, confusion: Tensor) -> Tensor:
        return self._value(confusion)

    def _update(self, confusion: Tensor) -> None:
        pass

    def _metric(self, confusion: Tensor) -> Tensor:
        return self._value(confusion)

    def _slacks(self, confusion: Tensor) -> dict[str, float]:
        return {}


class FunctionObjective(Objective):
    """A user's function of the confusion matrix, as it is: it sees the matrix that it is given."""

    def __init__(self, num_classes: int, function: Function) -> None:
        super().__init__(num_classes)
        self.function = function  # a Module is registered by this, so its buffers move along

    def _value(self, confusion: Tensor) -> Tensor:
        return _result(self.function, confusion)


class RecallMean(Objective):
    """A mean of the class recalls: arithmetic, geometric or harmonic."""

    def __init__(self, num_classes: int, mean: Function, floor: float) -> None:
        super().__init__(num_classes)
        self.mean, self.floor = mean, floor

    def _value(self, confusion: Tensor) -> Tensor:
        recall = _recalls(confusion)
        # The floor acts on the value and lets the gradient pass, so that a class at recall 0 can
        # still be improved.
        return self.mean(recall + (recall.clamp_min(self.floor) - recall).detach())

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.mean(_recalls(confusion))


class WorstRecall(Objective):
    """The smallest group recall, relaxed to `sum_i lam_i recall_i`.

    `update` sets the group multipliers to `lam_g^beta exp(-step_size recall_g)`, normalised; each
    is shared by the classes of its group. With beta = 0 they have no memory.
    """

    lam: Tensor

    def __init__(self, num_classes: int, groups: Groups, step_size: float, beta: float) -> None:
        super().__init__(num_classes)
        self.groups, self.step_size, self.beta = groups, step_size, beta
        start = torch.ones(len(groups.size), dtype=torch.float64) / len(groups.size)
        self.register_buffer("lam", groups.spread(start))

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers; they sum to 1."""
        return self.lam

    def _value(self, confusion: Tensor) -> Tensor:
        return (self.lam.to(confusion) * _recalls(confusion)).sum()

    def _merit(self, confusion: Tensor) -> Tensor:
        """The soft minimum, whose derivatives by the recalls are the multipliers."""
        scores = -self.step_size * self.groups.mean(_recalls(confusion))
        return -(scores.logsumexp(0) - math.log(len(scores))) / self.step_size

    def _update(self, confusion: Tensor) -> None:
        score = -self.step_size * self.groups.mean(_recalls(confusion))
        if self.beta > 0:
            previous = self.groups.sum(self.lam.to(confusion))
            # A multiplier that has underflowed would stay 0 for ever.
            score = score + self.beta * previous.clamp_min(torch.finfo(previous.dtype).tiny).log()
        self.lam.copy_(self.groups.spread(score.softmax(0)))

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.groups.mean(_recalls(confusion)).min()


class Constrained(Objective):
    """`(base + sum_j lam_j g_j) / (1 + max_j lam_j)`; group means of the g_j(C) shall be >= 0.

    `update` sets `lam = max(lambda_max (1 - exp(g / tau)), 0)` per group and shares it evenly by
    the members: no memory, zero where the constraint holds, never above lambda_max. The division
    keeps the size of the gradient comparable when multipliers are large.
    """

    lam: Tensor

    def __init__(
        self,
        base: Objective,
        terms: Function,
        groups: Groups,
        labels: Sequence[str],
        *,
        tau: float,
        lambda_max: float,
        by_class: bool,
    ) -> None:
        super().__init__(base.num_classes)
        self.base, self.terms, self.groups = base, terms, groups
        self.labels, self.by_class = tuple(labels), by_class
        self.tau, self.lambda_max = tau, lambda_max
        self.register_buffer("lam", torch.zeros(len(groups.index), dtype=torch.float64))

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers of coverage constraints; `lam` (J,) has those of other ones."""
        return self.lam if self.by_class else self.base.multipliers

    def _value(self, confusion: Tensor) -> Tensor:
        lam = self.lam.to(confusion)
        return (self.base._value(confusion) + (lam * self.terms(confusion)).sum()) / (1 + lam.max())

    def _merit(self, confusion: Tensor) -> Tensor:
        """Base minus a penalty with slope `lam`; scaled like `value` at the present multipliers."""
        violated = self._group_slack(confusion).clamp_max(0)
        penalty = self.tau * torch.expm1(violated / self.tau) - violated
        return (self.base._merit(confusion) - self.lambda_max * penalty.sum()) / (
            1 + self.lam.to(confusion).max()
        )

    def _update(self, confusion: Tensor) -> None:
        self.base._update(confusion)
        # exp(g / tau) <= 1 wherever it matters, so clamping first is exact and cannot overflow.
        pressure = torch.expm1((self._group_slack(confusion) / self.tau).clamp_max(0)).abs()
        self.lam.copy_(self.groups.spread(self.lambda_max * pressure))

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.base._metric(confusion)

    def _slacks(self, confusion: Tensor) -> dict[str, float]:
        slack = self._group_slack(confusion)
        own = slack.min()[None] if len(self.labels) == 1 else slack
        found = self.base._slacks(confusion)
        for label, value in zip(self.labels, own.tolist(), strict=True):
            found[_unlike(label, found)] = value
        return found

    def _group_slack(self, confusion: Tensor) -> Tensor:
        # Multipliers belong to the matrix at which the gradient is taken, and its rows are
        # rescaled.
        return self.groups.mean(self.terms(_balance(confusion)))


def _unlike(label: str, taken: Container[str]) -> str:
    """The label, numbered if a constraint further in has it already: none may hide another."""
    numbered = (f"{label}_{i}" for i in itertools.count(2))
    return label if label not in taken else next(n for n in numbered if n not in taken)


def _coverage_terms(confusion: Tensor, alpha: float) -> Tensor:
    return _balance(confusion).sum(0) - alpha / len(confusion)


def _stacked_terms(confusion: Tensor, functions: Sequence[Function]) -> Tensor:
    return torch.stack([_result(function, confusion) for function in functions])


def confusion_gradient(objective: Objective | Function, confusion: Tensor) -> Tensor:
    """dψ/dC, every entry of C by itself: nothing keeps the mass of a row.

    Shape: (K, K) -> (K, K).

    Raises:
        ValueError: there is no scalar to differentiate, or its derivative is not finite.

    Examples:
        >>> confusion_gradient(lambda c: c.trace(), torch.full((2, 2), 0.25)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    # Validation code often runs under no_grad or inference_mode, and calls this from there.
    with torch.inference_mode(False), torch.enable_grad():
        point = confusion.clone().requires_grad_()
        value = objective.value(point) if isinstance(objective, Objective) else objective(point)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                "an objective must return a scalar tensor that depends on the confusion matrix, "
                f"got {value!r}; compute it in torch, without .item(), .detach() or arg-max"
            )
        gradient = torch.autograd.grad(value.sum(), point, allow_unused=True)[0]
    if gradient is None or not bool(gradient.isfinite().all()):
        reason = "missing" if gradient is None else "inf or nan"
        raise ValueError(
            f"the derivative of the objective must exist and be finite, it is {reason} at this "
            "confusion matrix; use the confusion matrix in the objective, and pass smoothing=0.01 "
            "if it is singular at recall 0"
        )
    return gradient
