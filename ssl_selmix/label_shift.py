"""Class distribution of the unlabeled pool, from held-out posteriors.

All methods assume label shift: p(x | y) is the same in both sets, only p(y) differs. A pool with
images of other classes (STL-10) violates that, and no figure returned here can tell for sure.
Shape legend: N validation images, M unlabeled images, K classes, B bootstrap replicates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ssl_selmix.common.names import unknown

METHODS = ("count", "soft_count", "bbse", "rlls", "em")
MAX_MISFIT = 0.25  # a total variation; noise alone stays below
SMALLEST = 1e-12  # probability that is told from 0
CALIBRATION_PRIOR = 0.1  # penalty on a and b, or separable classes would have no finite optimum

Draws = tuple[int, torch.Generator]
Calibration = tuple[Tensor, Tensor, Tensor]  # (1 + K,), (K,), (N, 1 + K); see _calibrate


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
    val, pool = (normalize(p.detach().double(), p=1, dim=1) for p in (val_probs, unlabeled_probs))
    hard = [one_hot(p.argmax(1), p.shape[1]).double() for p in (val, pool)]
    truth = one_hot(val_labels.long(), val.shape[1]).to(val)
    draws = (bootstrap, torch.Generator().manual_seed(seed))
    counting = method in ("count", "soft_count")
    with torch.no_grad():
        logs = [p.clamp_min(SMALLEST).log() for p in (val, pool)]
        model = _calibrate(logs[0], truth, source_prior, calibrate and method == "em")
        seen, predicted = [_posteriors(model[0], p) for p in logs] if method == "em" else hard
        confusion, mean = class_means(seen, truth), predicted.mean(0)
        condition = float(torch.linalg.cond(confusion))
        note = "" if counting else _ill_posed(confusion, truth, condition, max_condition)
        if not counting and not note:
            if method == "em":
                q = _likelihood(logs[1], truth, model, draws)
            else:
                q = _matching(seen, truth, predicted, method == "rlls", draws)
            solution = torch.linalg.pinv(confusion) @ mean
            gap = q[0] - solution if method == "bbse" else confusion @ q[0] - mean
            if not float(gap.abs().sum()) / 2 <= MAX_MISFIT:
                note = f"the solution is off by a total variation of {gap.abs().sum() / 2:.2g}"
        if counting or note:
            q = _means(pool if method == "soft_count" else hard[1], None, draws)
        q = torch.cat([q[:1], q[1:].quantile(q.new_tensor([0.025, 0.975]), 0)]).to(val_probs.dtype)
    used = "count" if note else method
    return Estimate(q[0], q[1:], condition, used, note, model[0] if used == "em" else None)


def calibrated(probs: Tensor, calibration: Tensor) -> Tensor:
    """Posteriors (N, K) as `em` sees them: they follow the prior that it calibrated them to."""
    return _posteriors(calibration, probs.double().clamp_min(SMALLEST).log())


def class_means(values: Tensor, truth: Tensor) -> Tensor:
    """Mean per class; of predictions, P(predicted | true). (N, F), one-hot (N, K) -> (F, K)."""
    return (values.T @ truth) / truth.sum(0).clamp_min(1.0)


def _minimise(derivatives: Callable[[Tensor], tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Minimise on the simplex by a primal-dual interior point method, from gradient and Hessian."""
    q, z = torch.full_like(like, 1 / like.shape[-1]), torch.ones_like(like)  # z: for q >= 0
    for _ in range(100):
        gradient, hessian = derivatives(q)
        barrier = 0.1 * (q * z).mean(-1, keepdim=True) / q
        right = torch.stack([barrier - gradient, torch.ones_like(q)], -1)
        newton, shift = torch.linalg.solve(hessian + torch.diag_embed(z / q), right).unbind(-1)
        dq = newton - ((q + newton).sum(-1, keepdim=True) - 1) / shift.sum(-1, keepdim=True) * shift
        dz = barrier - z - z / q * dq
        # Not quite to the boundary, where the barrier is infinite.
        length = 0.99 / torch.cat([-dq / q, -dz / z], -1).amax(-1, keepdim=True).clamp_min(0.99)
        q, z = q + length * dq, z + length * dz
        if float((q * z).sum(-1).max()) < 1e-12 and float(dq.abs().max()) < 1e-9:
            break
    return q / q.sum(-1, keepdim=True)


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
    return torch.stack([w @ values for w in _draw(truth, draws)]) / len(values)


def _matching(seen: Tensor, truth: Tensor, predicted: Tensor, ridged: bool, draws: Draws) -> Tensor:
    """Solve R q = u for the data and all replicates, in one batch (1 + B, K)."""
    confusion = torch.stack([class_means(seen, truth * w[:, None]) for w in _draw(truth, draws)])
    mean = _means(predicted, None, draws)[..., None]
    r, u, counts, eye = confusion[0], mean[0], truth.sum(0), torch.eye(truth.shape[1]).to(mean)
    if not ridged:  # pinv, as a replicate may be singular though the data are not
        return _minimise_quadratic(eye, (torch.linalg.pinv(confusion) @ mean)[..., 0])
    # Sampling variance of an entry of R q - u where q is uniform, in units of 1/K.
    ridge = (r * (1 - r) / counts).sum() / len(r) + (u * (1 - u)).sum() * len(r) / len(predicted)
    target = (confusion.mT @ mean)[..., 0] + ridge * counts / len(truth)
    return _minimise_quadratic(confusion.mT @ confusion + ridge * eye, target)


def _calibrate(logs: Tensor, truth: Tensor, source: Tensor | None, fit: bool) -> Calibration:
    """Return (a, b) of softmax(a log p + b), the prior it follows, (a, b)'s change by image."""
    eye, frequencies = torch.eye(logs.shape[1] + 1).to(logs), truth.mean(0).clamp_min(SMALLEST)
    source = frequencies if source is None else source.to(logs) / source.sum()
    if not fit:
        return eye[0], source, logs.new_zeros(len(logs), len(eye))
    params = start = torch.cat([eye[0, :1], (frequencies / source).log()])
    for _ in range(100):
        probs = _posteriors(params, logs)
        mean = torch.cat([(probs * logs).sum(1, keepdim=True), probs], 1)
        scores = mean - torch.cat([(truth * logs).sum(1, keepdim=True), truth], 1)
        hessian = torch.cat([(probs * logs.square()).sum().view(1), probs.sum(0)]).diag()
        hessian[0, 1:] = hessian[1:, 0] = (probs * logs).sum(0)
        hessian += CALIBRATION_PRIOR * eye - mean.T @ mean
        gradient = scores.sum(0) + CALIBRATION_PRIOR * (params - start)
        step = torch.linalg.solve(hessian, gradient)
        if float(gradient @ step) < 1e-12:
            break
        # Damped by the change of the logits, which cannot overshoot (Sun and Tran-Dinh 2019).
        size = torch.stack((step[0] * logs + step[1:]).aminmax(dim=1)).diff(dim=0).max()
        params = params - step * size.log1p() / size
    return params, frequencies, -torch.linalg.solve(hessian, scores.T).T * len(logs)


def _likelihood(logs: Tensor, truth: Tensor, model: Calibration, draws: Draws) -> Tensor:
    """Maximum likelihood, then that of its quadratic model for every replicate (1 + B, K)."""
    params, prior, influence = model
    ratios = _posteriors(params, logs) / prior

    def derivatives(q: Tensor) -> tuple[Tensor, Tensor]:
        s = ratios / (ratios @ q)[:, None]
        return -s.mean(0), s.T @ s / len(s)

    best = _minimise(derivatives, prior)
    slopes, hessian = ratios / (ratios @ best)[:, None], derivatives(best)[1]
    # How the mean slope answers to a and b: the posterior under q is q times the slope.
    by_scale = (slopes * (logs - (best * slopes * logs).sum(1, keepdim=True))).mean(0)
    by_bias = slopes.mean(0).diag() - hessian * best
    moved = _means(influence, truth, draws)
    moved = (moved - moved[0]) @ torch.cat([by_scale[None], by_bias.T])
    return _minimise_quadratic(hessian, _means(slopes, None, draws) + moved + hessian @ best)


def _posteriors(params: Tensor, logs: Tensor) -> Tensor:
    return (params[0] * logs + params[1:]).softmax(1)


def _ill_posed(confusion: Tensor, truth: Tensor, condition: float, limit: float) -> str:
    """The reason not to solve, or nothing."""
    for total, why in ((truth.sum(0), "no validation image"), (confusion.sum(1), "no prediction")):
        if empty := (total == 0).nonzero().flatten().tolist():
            return f"there is {why} of classes {empty}"
    return "" if condition <= limit else f"the condition number is {condition:.3g}, above {limit:g}"


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def _check(method: str, val: Tensor, labels: Tensor, pool: Tensor, source: Tensor | None) -> None:
    _require(method in METHODS, unknown("method", str(method), METHODS))
    for name, p in (("val_probs", val), ("unlabeled_probs", pool)):
        shape, k = tuple(p.shape), val.shape[-1] if val.ndim else 0
        rule = p.ndim == 2 and len(p) > 0 and p.shape[1] == k > 1
        _require(rule, f"{name} must be (images, classes), got {shape}; same classes, not empty")
        bad = p[(p < 0).any(1) | ~((p.double().sum(1) - 1).abs() < 0.01)]
        rule = len(bad) == 0 and p.is_floating_point()
        _require(rule, f"rows of {name} must be float distributions, got {bad[:1]}; use softmax(1)")
    rule = labels.shape == val.shape[:1] and set(labels.unique().tolist()) <= set(range(k))
    _require(rule, f"val_labels must be integers in 0..{k - 1}, got {labels}; one per val_probs")
    rule = source is None or (source.shape == (k,) and bool((source > 0).all()))
    _require(rule, f"source_prior must be {k} positive numbers, got {source}; give 0 a floor")
