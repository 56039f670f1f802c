"""A step that keeps its promise: the rate of SelMix follows how well the gains predict.

The gain is a first-order prediction, made at class centroids. Between two re-estimations three
figures tell how it fared: the *promised* change of the objective, eta * sum_ij P_ij G_ij summed
over the steps; the *moved* one, the first-order effect of how far the centroids' logits really
went; and the *actual* change on the validation images. A fall of the objective takes the last good
weights back and shrinks rate and interval. A movement too small to be seen on the validation images
lets the rate grow, as does one that had its effect; one that had hardly any shrinks it. Trust
regions: Nocedal & Wright, Numerical Optimization, ch. 4.

A relative rate starts where the promise of the first interval is what chance alone may change the
objective by, and grows quickly until it was too large for the first time.

Shapes: K classes, N validation images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Evaluation, Task
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.objectives import Objective, normalise_rows
from ssl_selmix.selmix.fine_tuning import FineTuning

# Factors of the rate after a movement that was too small to see, held, missed, or broke something.
UNSEEN, GROW, SHRINK, FAIL = 3.0, 2.0, 0.5, 0.25
HELD, MISSED = 0.25, 0.1  # shares of the first-order change that count as held, as missed
LEAST_INTERVAL = 10  # steps between re-estimations
RATE_RANGE = (1e-3, 1e3)  # of the rate, relative to the configured one
RELATIVE_RANGE = (1e-4, 1e4)  # of a relative rate, to the first one
PLAIN_STATE = ("factor", "interval", "due", "promise")  # attributes that are no buffers
RELATIVE_STATE = (*PLAIN_STATE, "first", "falls")
# Of a relative rate: the largest growth before the first fall, and the change of the objective to
# grow to, in its standard errors.
QUICK, WORTHWHILE = 10.0, 10.0
REACH = 0.03  # change of the objective that a first-order prediction may aim at
COLLAPSE = 10.0  # standard errors of a fall after which a relative rate is far too large
# The first relative rate moves no logit by more than this many temperatures in its interval, were
# all gradients as large as can be and in one direction: a promise says nothing about other images.
MOST_MOVED = 4.0


@dataclass(frozen=True)
class Verdict:
    """Changes of the objective since the last good weights, in units of the objective."""

    promised: float  # rate times expected gain, summed over the steps
    moved: float  # first-order effect of how far the centroids' logits went
    actual: float  # of the objective's merit on the validation images
    error: float  # standard error of the actual change

    def logs(self) -> dict[str, Tensor]:
        """The four figures as scalars to log."""
        return {f"change_{name}": torch.tensor(value) for name, value in vars(self).items()}

    @property
    def broken(self) -> bool:
        """The objective fell by more than chance explains."""
        # A change by one image equals the standard error; 1e-6 keeps rounding from counting it as
        # a fall.
        return self.actual < -self.error * (1 + 1e-6)

    @property
    def factor(self) -> float:
        """What the rate is multiplied by."""
        if self.broken:
            return FAIL
        if self.moved < -self.error:  # the logits went the wrong way
            return SHRINK
        if self.moved <= self.error:
            return UNSEEN if self.actual > -self.error / 2 else 1.0
        if self.actual >= HELD * self.moved:
            return GROW
        return SHRINK if self.actual < MISSED * self.moved else 1.0

    def relative_factor(self, quick: bool) -> float:
        """What a relative rate is multiplied by; `quick` as long as none was too large."""
        if self.broken:
            return FAIL**2 if self.actual < -COLLAPSE * self.error else FAIL
        if not quick:
            return self.factor
        if self.actual > self.error:
            wanted = min(WORTHWHILE * self.error, REACH) / max(self.actual, self.moved)
            return min(max(wanted, GROW), QUICK)
        if self.factor != UNSEEN:
            return self.factor
        # Errors shrink with the movement: twice the present one is out of sight no more.
        wanted = min(2 * self.error, REACH) / max(abs(self.moved), 1e-300)
        return min(max(wanted, UNSEEN), QUICK)


def standard_error(
    objective: Objective, confusion: Tensor, labels: Tensor, smoothing: float
) -> float:
    """Of the objective's merit at a confusion matrix of these images, to first order.

    It is not below what a single image is worth, where all or none of a class are right.

    Shape: (K, K), (N,).
    """
    k = objective.num_classes
    with torch.enable_grad():
        point = normalise_rows(confusion, smoothing).detach().requires_grad_(True)
        (weights,) = torch.autograd.grad(objective.merit(point), point)
    rows = normalise_rows(confusion) * k
    variance = (rows * weights.square()).sum(1) - (rows * weights).sum(1).square()
    counts = torch.bincount(labels, minlength=k)
    return max(
        _one_image(weights, counts), float((variance.clamp_min(0) / counts).sum().sqrt()) / k
    )


def _one_image(weights: Tensor, counts: Tensor) -> float:
    """The largest change by the prediction of one image. Shape: dψ/dC (K, K), images (K,)."""
    return float(((weights.amax(1) - weights.amin(1)) / counts).max()) / len(counts)


def measured_change(
    objective: Objective, old: Tensor, new: Tensor, labels: Tensor, smoothing: float
) -> tuple[float, float]:
    """Change of an objective's merit between two sets of predictions, and its standard error.

    The merit has no multipliers, so that raising the worst class counts for nothing if another
    falls as deep. The error is that of a paired comparison: an image counts if its prediction
    changed, and the one that weighs most counts in any case, since less than one image cannot be
    seen.

    Shape: old and new predictions (N,), labels (N,) -> change and error in objective units.
    """
    k = objective.num_classes
    first, last = (normalise_rows(confusion_matrix(labels, p, k), smoothing) for p in (old, new))
    change = float(objective.merit(last) - objective.merit(first))
    with torch.enable_grad():
        point = (0.5 * (first + last)).requires_grad_(True)
        (weights,) = torch.autograd.grad(objective.merit(point), point)
    counts = torch.bincount(labels, minlength=k)
    moved = (weights[labels, new] - weights[labels, old]) / (k * counts[labels])
    return change, max(_one_image(weights, counts), float(moved.square().sum().sqrt()))


class TrustRegion(nn.Module):
    """The last good weights, what was promised from them, and the rate that is trusted."""

    predictions: Tensor
    rate_sum: Tensor
    logits: Tensor
    gradient: Tensor

    def __init__(
        self, net: nn.Module, task: Task, interval: int, batch: int, relative: bool = False
    ) -> None:
        super().__init__()
        self.relative = relative
        self.good = copy.deepcopy(net).requires_grad_(False)
        predictions = torch.zeros(task.num_validation, dtype=torch.int64)
        square = torch.zeros(task.num_classes, task.num_classes, dtype=torch.float64)
        self.register_buffer("predictions", predictions)
        self.register_buffer("rate_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("logits", square)  # of the centroids, at the good weights
        self.register_buffer("gradient", square.clone())  # of the objective by those logits
        # A re-estimation must not cost more than the steps before it; those go back, too.
        cost = (task.num_validation + task.num_unlabeled) // (3 * max(1, batch))
        self.longest = interval
        self.shortest = min(interval, max(LEAST_INTERVAL, cost))
        self.factor = 1.0  # of the configured rate
        self.first = 1.0  # the factor to begin with, which its range is relative to
        self.falls = 0  # how often the rate was too large
        self.interval = self.shortest
        self.due = 0
        self.promise = 0.0  # expected gain per unit of rate

    def get_extra_state(self) -> dict[str, Any]:
        """The plain numbers, for checkpoints."""
        return {name: getattr(self, name) for name in self._names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the plain numbers, and nothing else that a checkpoint may name."""
        for name in self._names:
            setattr(self, name, state[name])

    @property
    def _names(self) -> tuple[str, ...]:
        return RELATIVE_STATE if self.relative else PLAIN_STATE

    @property
    def _range(self) -> tuple[float, float]:
        low, high = RELATIVE_RANGE if self.relative else RATE_RANGE
        return self.first * low, self.first * high

    def begin(self, error: float, reference: float) -> None:
        """Choose the first rate, where a promise was accepted.

        It is that of the default `lr`; another one is relative to it.

        Args:
            error: standard error of the objective.
            reference: how far a step of rate 1 can move logits, in temperatures.
        """
        most = MOST_MOVED / reference
        rate = min(most, min(error, REACH) / self.promise) if self.promise > 0 else most
        self.factor = self.first = rate / (FineTuning.Config.lr * self.interval)

    def judge(
        self, objective: Objective, logits: Tensor, evaluation: Evaluation, smoothing: float
    ) -> Verdict:
        """Compare the promise since the last good weights with what happened; adapt the rate.

        The objective is the one that the promise was made with. Shape: centroid logits K×K.
        """
        moved = (self.gradient * (logits - self.logits)).sum()
        actual, error = measured_change(
            objective, self.predictions, evaluation.logits.argmax(1), evaluation.labels, smoothing
        )
        verdict = Verdict(self.promise * float(self.rate_sum), float(moved), actual, error)
        change = verdict.relative_factor(not self.falls) if self.relative else verdict.factor
        low, high = self._range
        self.factor = min(high, max(low, self.factor * change))
        self.falls += verdict.broken
        if verdict.broken:
            self.interval = max(self.shortest, self.interval // 2)
        elif verdict.factor > 1:
            self.interval = min(self.longest, self.interval * 2)
        return verdict

    def accept(
        self,
        net: nn.Module,
        evaluation: Evaluation,
        logits: Tensor,
        gradient: Tensor,
        promise: Tensor,
    ) -> None:
        """These weights are good: remember them and what is promised from here.

        Shape: centroid logits and dψ/d logits K×K; promise, a scalar, is per unit of rate.
        """
        self.good.load_state_dict(net.state_dict())
        self.predictions.copy_(evaluation.logits.argmax(1))
        self.logits.copy_(logits)
        self.gradient.copy_(gradient)
        self.promise = float(promise)

    def take_back(self, net: nn.Module) -> None:
        """Put the last good weights into the network."""
        net.load_state_dict(self.good.state_dict())

    def recover(self, net: nn.Module, step: int) -> bool:
        """Undo steps that led to what is no number; False if smaller rates did so before."""
        if self.factor <= self._range[0]:
            return False
        self.take_back(net)
        # Squared, since nothing will have moved at the next look, which triples the rate.
        self.factor = max(self._range[0], self.factor * FAIL**2)
        self.interval = self.shortest
        self.falls += 1
        self.start_interval(step)
        return True

    def start_interval(self, step: int) -> None:
        """Count the promise from here, until the next re-estimation is due."""
        self.rate_sum.zero_()
        self.due = step + self.interval
