"""Class distribution of the unlabeled pool, from held-out posteriors.

All methods assume label shift: p(x | y) is the same in both sets, only p(y) differs. A pool with
images of other classes (STL-10) violates that, and no figure returned here can tell for sure.
Shape legend: N validation images, M unlabeled images, K classes, B bootstrap replicates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ssl_selmix.common.names import unknown

METHODS = ("count", "soft_count", "bbse", "rlls", "em")
MAX_MISFIT = 0.25  # a total variation; noise alone stays below
SMALLEST = 1e-12  # probability that is told from 0
CALIBRATION_PRIOR = 0.1  # penalty on a and b, or separable classes would have no finite optimum

Draws = tuple[int, torch.Generator]  # number of bootstrap replicates, and what draws them


@dataclass(frozen=True)
class Estimate:
    """Class distribution (K,), and the 2.5 % and 97.5 % bootstrap percentiles (2, K)."""

    prior: Tensor
    interval: Tensor
    condition_number: float  # of the confusion matrix whose columns (true classes) sum to 1
    method: str  # the one that was really used
    note: str = ""  # why that is not the one asked for
    calibration: Tensor | None = None  # of em, (1 + K,): see `calibrated`


def estimate(
    method: str,
    *,
    val_probs: Tensor,
    val_labels: Tensor,
    unlabeled_probs: Tensor,
    source_prior: Tensor | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    calibrate: bool = True,
    max_condition: float = 100.0,
) -> Estimate:
    """Estimate how often each class occurs in the unlabeled pool.

    The model must not have been trained on the validation images: it would get those right, and
    with an identity for confusion matrix every method is reduced to counting.

    - "count", "soft_count": frequency of the arg-max; mean posterior. Biased to the source prior.
    - "bbse": solve R q = u, with R the confusion matrix of arg-max and u its frequencies in the
      pool (Lipton et al. 2018, arXiv:1802.03916); then the nearest point of the simplex.
    - "rlls": least squares on the simplex with a penalty on the shift (Azizzadenesheli et al. 2019,
      arXiv:1903.09734). Norms are squared, the weight is the sampling variance, and the
      shift is q minus the validation frequencies, so that rare classes may have large weights.
    - "em": the q of largest likelihood, where the EM of Saerens et al. 2002 (Neural Computation 14,
      their iteration) converges, by Newton steps.

    The prior that its posteriors follow matters to em. With `calibrate`, bias-corrected temperature
    scaling (Alexandari et al. 2020, arXiv:1901.06852) makes that the class frequencies
    of `val_labels`, whatever the model was trained on; `source_prior` only says where the biases
    start. Without, it is `source_prior`: training frequencies after plain cross-entropy, uniform
    after logit adjustment, and again the frequencies of `val_labels` if None.

    bbse, rlls and em fall back to "count" if a class has no validation image or is never predicted
    on them, if the condition number is above `max_condition`, or if a total variation above 0.25
    lies between q and the simplex (bbse) or R q and u (rlls, em; for em these hold calibrated
    posteriors). The interval resamples validation images within classes, and the pool; it leaves
    out the bias of counting, and em takes a Newton step instead of fitting each replicate.

    Shape: val_probs (N, K), val_labels (N,), unlabeled_probs (M, K), source_prior (K,).

    Examples:
        >>> val = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> pool = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]])
        >>> labels = torch.tensor([0, 0, 1, 1])  # half of class 1 is taken for class 0
        >>> estimate("bbse", val_probs=val, val_labels=labels, unlabeled_probs=pool).prior
        tensor([0.5000, 0.5000])
    """
    _check(method, val_probs, val_labels, unlabeled_probs, source_prior)
    _require(bootstrap > 0, f"bootstrap must be at least 1, got {bootstrap}; 200 is usual")
    draws = (bootstrap, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sets = _Sets.of(val_probs, val_labels, unlabeled_probs)
        solver = _solver(method, sets, source_prior, calibrate)
        confusion = class_means(solver.seen, sets.truth)
        condition = float(torch.linalg.cond(confusion))
        counts = isinstance(solver, _Counting)
        note = "" if counts else _ill_posed(sets.truth, confusion, condition, max_condition)
        solutions = None if note else solver.solve(draws)
        if solutions is not None:
            misfit = solver.misfit(solutions[0], confusion).abs().sum() / 2
            if not float(misfit) <= MAX_MISFIT:
                note = f"the solution is off by a total variation of {misfit:.2g}"
        if note or solutions is None:
            solver = _Counting(sets)
            solutions = solver.solve(draws)
        interval = solutions[1:].quantile(solutions.new_tensor([0.025, 0.975]), 0)
    prior, interval = solutions[0].to(val_probs.dtype), interval.to(val_probs.dtype)
    calibration = solver.model.parameters if isinstance(solver, _Likelihood) else None
    return Estimate(prior, interval, condition, "count" if note else method, note, calibration)


def calibrated(probs: Tensor, calibration: Tensor) -> Tensor:
    """Posteriors (N, K) as `em` sees them: they follow the prior that it calibrated them to."""
    return _posteriors(calibration, probs.double().clamp_min(SMALLEST).log())


def class_means(values: Tensor, truth: Tensor) -> Tensor:
    """Mean per class; of predictions, P(predicted | true). (N, F), one-hot (N, K) -> (F, K)."""
    return (values.T @ truth) / truth.sum(0).clamp_min(1.0)


@dataclass(frozen=True)
class _Sets:
    """What is known of both sets, float64: rows of val (N, K) and pool (M, K) sum to 1."""

    val: Tensor
    pool: Tensor
    truth: Tensor  # one-hot labels of the validation images, (N, K)

    @classmethod
    def of(cls, val_probs: Tensor, val_labels: Tensor, unlabeled_probs: Tensor) -> "_Sets":
        val, pool = (
            normalize(probs.detach().double(), p=1, dim=1) for probs in (val_probs, unlabeled_probs)
        )
        return cls(val, pool, one_hot(val_labels.long(), val.shape[1]).to(val))


class _Solver(Protocol):
    """A method: what it takes for predictions, and the class frequencies that it finds."""

    seen: Tensor  # predictions of the validation images, (N, K)

    def solve(self, draws: Draws) -> Tensor:
        """Frequencies of the data, then of every replicate: (1 + B, K)."""

    def misfit(self, prior: Tensor, confusion: Tensor) -> Tensor:
        """What the frequencies (K,) leave unexplained, (K,); its total variation is judged."""


class _Counting:
    """How often each class is predicted: of arg-max, or on average over posteriors."""

    def __init__(self, sets: _Sets, *, soft: bool = False) -> None:
        self.seen = _hard(sets.val)
        self.predicted = sets.pool if soft else _hard(sets.pool)

    def solve(self, draws: Draws) -> Tensor:
        return _means(self.predicted, None, draws)

    def misfit(self, prior: Tensor, confusion: Tensor) -> Tensor:
        return torch.zeros_like(prior)  # counting solves no equation


@dataclass
class _Matching:
    """The q that explains what is predicted: R q = u."""

    seen: Tensor  # of the validation images, (N, K)
    predicted: Tensor  # of the pool, (M, K)
    truth: Tensor

    def _equations(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """R (1 + B, K, K) and u (1 + B, K) of the data and of all replicates."""
        matrices = [
            class_means(self.seen, self.truth * w[:, None]) for w in _draw(self.truth, draws)
        ]
        return torch.stack(matrices), _means(self.predicted, None, draws)


class _Inversion(_Matching):
    """bbse: the point of the simplex nearest to the solution."""

    def solve(self, draws: Draws) -> Tensor:
        confusion, frequencies = self._equations(draws)
        # pinv, as a replicate may be singular though the data are not
        solutions = (torch.linalg.pinv(confusion) @ frequencies[..., None])[..., 0]
        return _minimise_quadratic(torch.eye(confusion.shape[1]).to(confusion), solutions)

    def misfit(self, prior: Tensor, confusion: Tensor) -> Tensor:
        solution: Tensor = torch.linalg.pinv(confusion) @ self.predicted.mean(0)
        return prior - solution


class _LeastSquares(_Matching):
    """rlls: least squares on the simplex, with a penalty on the shift."""

    def solve(self, draws: Draws) -> Tensor:
        confusion, frequencies = self._equations(draws)
        ridge, counts = self._ridge(confusion[0], frequencies[0]), self.truth.sum(0)
        target = (confusion.mT @ frequencies[..., None])[..., 0] + ridge * counts / len(self.truth)
        eye = torch.eye(len(counts)).to(confusion)
        return _minimise_quadratic(confusion.mT @ confusion + ridge * eye, target)

    def _ridge(self, confusion: Tensor, frequencies: Tensor) -> Tensor:
        """Sampling variance of an entry of R q - u where q is uniform, in units of 1/K."""
        num_classes = len(confusion)
        of_val = (confusion * (1 - confusion) / self.truth.sum(0)).sum() / num_classes
        of_pool = (frequencies * (1 - frequencies)).sum() * num_classes / len(self.predicted)
        ridge: Tensor = of_val + of_pool
        return ridge

    def misfit(self, prior: Tensor, confusion: Tensor) -> Tensor:
        return confusion @ prior - self.predicted.mean(0)


class _Likelihood:
    """em: the q of largest likelihood of the pool's calibrated posteriors."""

    def __init__(self, sets: _Sets, source: Tensor | None, fit: bool) -> None:
        val, self.logs = (probs.clamp_min(SMALLEST).log() for probs in (sets.val, sets.pool))
        self.truth, self.model = sets.truth, _calibrate(val, sets.truth, source, fit)
        self.seen = _posteriors(self.model.parameters, val)
        self.predicted = _posteriors(self.model.parameters, self.logs)

    def solve(self, draws: Draws) -> Tensor:
        """The maximum, then for every replicate that of the quadratic model around it."""
        ratios = self.predicted / self.model.prior

        def derivatives(prior: Tensor) -> tuple[Tensor, Tensor]:
            slopes = ratios / (ratios @ prior)[:, None]
            return -slopes.mean(0), slopes.T @ slopes / len(slopes)

        best = _minimise(derivatives, self.model.prior)
        slopes, hessian = ratios / (ratios @ best)[:, None], derivatives(best)[1]
        # How the mean slope answers to a and b: the posterior under q is q times the slope.
        expected = (best * slopes * self.logs).sum(1, keepdim=True)
        by_scale = (slopes * (self.logs - expected)).mean(0)
        by_bias = slopes.mean(0).diag() - hessian * best
        moved = _means(self.model.influence, self.truth, draws)
        moved = (moved - moved[0]) @ torch.cat([by_scale[None], by_bias.T])
        return _minimise_quadratic(hessian, _means(slopes, None, draws) + moved + hessian @ best)

    def misfit(self, prior: Tensor, confusion: Tensor) -> Tensor:
        return confusion @ prior - self.predicted.mean(0)


def _solver(method: str, sets: _Sets, source: Tensor | None, calibrate: bool) -> _Solver:
    if method == "em":
        return _Likelihood(sets, source, calibrate)
    if method in ("bbse", "rlls"):
        kind = _Inversion if method == "bbse" else _LeastSquares
        return kind(_hard(sets.val), _hard(sets.pool), sets.truth)
    return _Counting(sets, soft=method == "soft_count")


@dataclass(frozen=True)
class _Calibration:
    """(a, b) of the posteriors softmax(a log p + b), and what follows from them."""

    parameters: Tensor  # (1 + K,)
    prior: Tensor  # that the posteriors follow, (K,)
    influence: Tensor  # by how much every validation image changed (a, b), (N, 1 + K)


def _calibrate(logs: Tensor, truth: Tensor, source: Tensor | None, fit: bool) -> _Calibration:
    """Bias-corrected temperature scaling by Newton steps; without `fit`, none."""
    eye, frequencies = torch.eye(logs.shape[1] + 1).to(logs), truth.mean(0).clamp_min(SMALLEST)
    source = frequencies if source is None else source.to(logs) / source.sum()
    if not fit:
        return _Calibration(eye[0], source, logs.new_zeros(len(logs), len(eye)))
    params = start = torch.cat([eye[0, :1], (frequencies / source).log()])
    for _ in range(100):
        scores, hessian = _calibration_loss(params, logs, truth, CALIBRATION_PRIOR * eye)
        gradient = scores.sum(0) + CALIBRATION_PRIOR * (params - start)
        step = torch.linalg.solve(hessian, gradient)
        if float(gradient @ step) < 1e-12:
            break
        # Damped by the change of the logits, which cannot overshoot (Sun and Tran-Dinh 2019).
        size = torch.stack((step[0] * logs + step[1:]).aminmax(dim=1)).diff(dim=0).max()
        params = params - step * size.log1p() / size
    influence = -torch.linalg.solve(hessian, scores.T).T * len(logs)
    return _Calibration(params, frequencies, influence)


def _calibration_loss(
    params: Tensor, logs: Tensor, truth: Tensor, penalty: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of the cross-entropy by (a, b): every image's gradient, and the whole Hessian.

    Shape: (N, 1 + K); the Hessian and the penalty that is added to it, both (1 + K, 1 + K).
    """
    probs = _posteriors(params, logs)
    mean = torch.cat([(probs * logs).sum(1, keepdim=True), probs], 1)
    scores = mean - torch.cat([(truth * logs).sum(1, keepdim=True), truth], 1)
    hessian = torch.cat([(probs * logs.square()).sum().view(1), probs.sum(0)]).diag()
    hessian[0, 1:] = hessian[1:, 0] = (probs * logs).sum(0)
    return scores, hessian + (penalty - mean.T @ mean)


def _posteriors(params: Tensor, logs: Tensor) -> Tensor:
    return (params[0] * logs + params[1:]).softmax(1)


def _hard(probs: Tensor) -> Tensor:
    return one_hot(probs.argmax(1), probs.shape[1]).double()


def _minimise(derivatives: Callable[[Tensor], tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Minimise on the simplex by a primal-dual interior point method, from gradient and Hessian."""
    point = torch.full_like(like, 1 / like.shape[-1])
    dual = torch.ones_like(like)  # multipliers of point >= 0
    for _ in range(100):
        gradient, hessian = derivatives(point)
        barrier = 0.1 * (point * dual).mean(-1, keepdim=True) / point
        right = torch.stack([barrier - gradient, torch.ones_like(point)], -1)
        matrix = hessian + torch.diag_embed(dual / point)
        newton, shift = torch.linalg.solve(matrix, right).unbind(-1)
        excess = (point + newton).sum(-1, keepdim=True) - 1
        step = newton - excess / shift.sum(-1, keepdim=True) * shift
        dual_step = barrier - dual - dual / point * step
        # Not quite to the boundary, where the barrier is infinite.
        nearest = torch.cat([-step / point, -dual_step / dual], -1).amax(-1, keepdim=True)
        length = 0.99 / nearest.clamp_min(0.99)
        point, dual = point + length * step, dual + length * dual_step
        if float((point * dual).sum(-1).max()) < 1e-12 and float(step.abs().max()) < 1e-9:
            break
    return point / point.sum(-1, keepdim=True)


def _minimise_quadratic(hessian: Tensor, target: Tensor) -> Tensor:
    """Minimise q.Hq/2 - q.t on the simplex; with H = 1, project t. (..., K, K), (..., K)."""
    return _minimise(lambda q: ((hessian @ q[..., None])[..., 0] - target, hessian), target)


def _draw(truth: Tensor, draws: Draws) -> Iterator[Tensor]:
    """Yield ones, then for each replicate how often an image is drawn within its class. (n,)."""
    yield torch.ones_like(truth[:, 0])
    groups = truth.argmax(1).cpu()  # there the generator's numbers do not depend on the device
    order, sizes = groups.argsort(stable=True), groups.bincount()
    size, end = (s.repeat_interleave(sizes) for s in (sizes, sizes.cumsum(0)))
    for _ in range(draws[0]):
        uniform = torch.rand(len(order), generator=draws[1], dtype=torch.float64)
        yield order[end - size + (uniform * size).long()].bincount(minlength=len(order)).to(truth)


def _means(values: Tensor, truth: Tensor | None, draws: Draws) -> Tensor:
    """Mean of all rows, then of every replicate: (n, F) -> (1 + B, F)."""
    truth = torch.ones_like(values[:, :1]) if truth is None else truth
    return torch.stack([weights @ values for weights in _draw(truth, draws)]) / len(values)


def _ill_posed(truth: Tensor, confusion: Tensor, condition: float, limit: float) -> str:
    """The reason not to solve, or nothing."""
    totals = {"validation image": truth.sum(0), "prediction": confusion.sum(1)}
    for what, total in totals.items():
        if empty := (total == 0).nonzero().flatten().tolist():
            return f"there is no {what} of classes {empty}"
    return "" if condition <= limit else f"the condition number is {condition:.3g}, above {limit:g}"


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def _check(method: str, val: Tensor, labels: Tensor, pool: Tensor, source: Tensor | None) -> None:
    _require(method in METHODS, unknown("method", str(method), METHODS))
    k = val.shape[-1] if val.ndim else 0
    for name, probs in (("val_probs", val), ("unlabeled_probs", pool)):
        shape = tuple(probs.shape)
        rule = probs.ndim == 2 and len(probs) > 0 and probs.shape[1] == k > 1
        _require(rule, f"{name} must be (images, classes), got {shape}; same classes, not empty")
        bad = probs[(probs < 0).any(1) | ~((probs.double().sum(1) - 1).abs() < 0.01)]
        rule = len(bad) == 0 and probs.is_floating_point()
        _require(rule, f"rows of {name} must be float distributions, got {bad[:1]}; use softmax(1)")
    rule = labels.shape == val.shape[:1] and set(labels.unique().tolist()) <= set(range(k))
    _require(rule, f"val_labels must be integers in 0..{k - 1}, got {labels}; one per val_probs")
    rule = source is None or (source.shape == (k,) and bool((source > 0).all()))
    _require(rule, f"source_prior must be {k} positive numbers, got {source}; give 0 a floor")
