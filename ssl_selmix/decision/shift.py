"""Calibration on labelled images, and posteriors under another class distribution.

A posterior learned under the class distribution p_s becomes the one under p_t by the weights
p_t / p_s, as long as images of a class look the same. These are the published formulas, as
functions of arrays; `ssl_selmix.label_shift` has estimates with intervals that are safer to use.
Shape legend: N validation images, M images of the new distribution, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import log_softmax, softmax  # type: ignore[import-untyped]

from ssl_selmix.label_shift import CALIBRATION_PRIOR

Array = NDArray[Any]

# Scores beyond these temperatures are constant or one-hot, and no data tell them further apart.
_LEAST_SCALE, _MOST_SCALE = 1e-2, 1e2
# Rows times classes that a calibration looks at, and rows for each class at least; 1 + K numbers
# need no more.
_ENOUGH, _ROWS_A_CLASS = 2_000_000, 5
_SINGLE = 1_000_000  # entries above which single precision is enough, and twice as fast
# Relative gain of the likelihood at which the biases of a rule are settled: they are a start.
_SETTLED = 1e-7


@dataclass(frozen=True)
class Calibration:
    """Posteriors are softmax(scores / temperature + biases); biases (K,) have mean 0."""

    temperature: float
    biases: Array
    loss_before: float  # mean negative log-likelihood of softmax(scores), nats
    loss: float

    def posteriors(self, scores: Array) -> Array:
        """Shape: (N, K) -> (N, K)."""
        return np.asarray(softmax(scores / self.temperature + self.biases, axis=1))


def fit_calibration(
    scores: Array,
    labels: Array,
    *,
    biases: bool,
    weights: Array | None = None,
    penalty: float = 0.0,
    start: Calibration | None = None,
    tolerance: float = 1e-12,
) -> Calibration:
    """Temperature scaling, or with `biases` its bias-corrected form, by maximum likelihood.

    Alexandari et al., ICML 2020 (arXiv:1901.06852). The problem is convex in the inverse
    temperature and the biases, so that `start` changes the time and not the answer.

    Args:
        scores: (N, K) logits.
        labels: (N,) classes.
        biases: whether every class has a bias.
        weights: (N,) how much an image counts; None: all alike.
        penalty: on squares of the biases; separable classes have no finite optimum without.
        start: a solution of similar data.
        tolerance: relative gain of the likelihood at which to stop.
    """
    num_classes = scores.shape[1]
    rows = _some_rows(labels, max(_ENOUGH // num_classes, _ROWS_A_CLASS * num_classes))
    kind = np.float32 if len(rows) * num_classes > _SINGLE else np.float64
    scores = scores[rows].astype(kind)
    scores -= scores.max(1, keepdims=True)
    labels = labels[rows]
    share = np.ones(len(labels)) if weights is None else weights[rows]
    share = (share / share.sum()).astype(kind)
    own = scores[np.arange(len(labels)), labels]
    truth = np.bincount(labels, share, num_classes)

    def loss(point: Array) -> tuple[float, Array]:
        logits = kind(point[0]) * scores + point[1:].astype(kind)
        top = logits.max(1)
        logits -= top[:, None]
        np.exp(logits, out=logits)
        total = logits.sum(1)
        value = share @ (np.log(total) + top - point[0] * own) - truth @ point[1:]
        logits *= (share / total)[:, None]
        slope = np.empty_like(point)
        slope[0] = np.einsum("ij,ij->", logits, scores) - share @ own
        slope[1:] = logits.sum(0) - truth if biases else 0.0
        value += penalty * point[1:] @ point[1:] / 2
        slope[1:] += penalty * point[1:]
        return float(value), slope

    first = np.zeros(1 + num_classes)
    first[0] = 1.0
    before = loss(first)[0]
    if start is not None:
        first[0], first[1:] = 1 / start.temperature, start.biases
    # The curvature of a bias is about the share of its class: in these units all are alike.
    unit = np.concatenate([[1.0], 1 / np.sqrt(np.maximum(truth, 1e-4))])

    def scaled(point: Array) -> tuple[float, Array]:
        value, slope = loss(point * unit)
        return value, slope * unit

    bounds = [(_LEAST_SCALE, _MOST_SCALE)] + [(None, None) if biases else (0.0, 0.0)] * num_classes
    options = {"ftol": tolerance, "gtol": min(1e-4, 1e5 * tolerance), "maxiter": 200}
    found = minimize(
        scaled, first / unit, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    point = found.x * unit
    shift = point[1:] - point[1:].mean()
    return Calibration(float(1 / point[0]), shift, before, float(loss(point)[0]))


def _some_rows(labels: Array, most: int) -> Array:
    """All rows, or evenly spaced ones of the labels in order, so that classes keep their share."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    return np.asarray(np.sort(order[np.linspace(0, len(labels) - 1, most).astype(np.int64)]))


def anchor_offsets(
    scores: Array, labels: Array, target: Array, start: Calibration | None = None
) -> tuple[Array, Calibration]:
    """Logit adjustment's offsets, in the unit of the scores, with the prior read off the scores.

    Logit adjustment (Menon et al., ICLR 2021) subtracts tau log pi, where pi is the class
    distribution that the posteriors follow. After a long-tailed or semi-supervised training nobody
    knows it. Bias-corrected calibration finds it: with those biases the posteriors follow the
    frequencies of the validation images, and from there log(target / frequency) leads to the
    target. At temperature t both are worth t times as much in the unit of the scores.

    Shape: scores (N, K), labels (N,), target (K,) -> (K,) with mean 0.
    """
    frequency = np.bincount(labels, minlength=scores.shape[1]) / len(labels)
    penalty = CALIBRATION_PRIOR / len(labels)
    found = fit_calibration(
        scores, labels, biases=True, penalty=penalty, start=start, tolerance=_SETTLED
    )
    offsets = found.temperature * (found.biases + np.log(target) - np.log(frequency))
    return offsets - offsets.mean(), found


def adjusted_logits(logits: Array, prior: Array, tau: float = 1.0) -> Array:
    """Post-hoc logit adjustment with a known prior: logits - log(prior^tau + 1e-12). (N, K)."""
    return np.asarray(logits - np.log(prior**tau + 1e-12))


def reweighted(probs: Array, weights: Array) -> Array:
    """Posteriors after the class distribution changed by these factors. (M, K), (K,) -> (M, K)."""
    moved = probs * weights
    return np.asarray(moved / moved.sum(1, keepdims=True))


def em_weights(
    probs: Array, source: Array, *, tolerance: float = 1e-6, iterations: int = 100
) -> Array:
    """p_t / p_s by the EM iteration of Saerens et al. (2002), from posteriors of new images.

    The posteriors have to be calibrated: what goes in is what the iteration uses. It ends when no
    entry moves by more than the tolerance.

    Shape: probs (M, K), source (K,) -> (K,).
    """
    target = source
    for _ in range(iterations):
        moved = reweighted(probs, target / source).mean(0)
        still = bool((np.abs(moved - target) <= tolerance).all())
        target = moved
        if still:
            break
    return np.asarray(target / source)


def joint_predictions(probs: Array, labels: Array, *, soft: bool) -> tuple[Array, Array]:
    """R (K, K) = P(predicted j, true k) on validation, and the prediction frequencies of it (K,).

    `soft` takes the posterior in the place of the arg-max.
    """
    seen = _predictions(probs, soft)
    joint = seen.T @ np.eye(probs.shape[1])[labels] / len(labels)
    return joint, seen.mean(0)


def _predictions(probs: Array, soft: bool) -> Array:
    return probs if soft else np.eye(probs.shape[1])[probs.argmax(1)]


def bbse_weights(val_probs: Array, labels: Array, probs: Array, *, soft: bool) -> Array:
    """p_t / p_s from R w = u (Lipton et al., ICML 2018), negative entries set to 0.

    Raises:
        ValueError: R is singular, for instance as a class is never predicted.
    """
    joint, _ = joint_predictions(val_probs, labels, soft=soft)
    try:
        found = np.linalg.solve(joint, _predictions(probs, soft).mean(0))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "the confusion matrix must be invertible, got a singular one; a class is never "
            "predicted on validation: use em_weights or soft=True"
        ) from error
    return np.asarray(np.maximum(found, 0))


def rlls_weights(
    val_probs: Array,
    labels: Array,
    probs: Array,
    *,
    soft: bool,
    alpha: float = 0.01,
    delta: float = 0.05,
) -> Array:
    """p_t / p_s with a penalty on the shift (Azizzadenesheli et al., ICLR 2019).

    Minimises |R theta - (u - u_val)| + alpha rho |theta| over theta >= -1, where the norms are not
    squared and rho is the paper's bound on the error of R at confidence 1 - delta.
    """
    joint, usual = joint_predictions(val_probs, labels, soft=soft)
    gap = _predictions(probs, soft).mean(0) - usual
    num_classes, log_term = len(gap), np.log(2 * len(gap) / delta)
    rho = 3 * (2 * log_term / (3 * len(labels)) + np.sqrt(2 * log_term / len(labels)))

    def loss(theta: Array) -> tuple[float, Array]:
        error = joint @ theta - gap
        # The floor makes the norms smooth where they are 0.
        one, two = (float(np.sqrt(v @ v + 1e-24)) for v in (error, theta))
        return one + alpha * rho * two, joint.T @ error / one + alpha * rho * theta / two

    start = np.maximum(np.linalg.lstsq(joint, gap, rcond=None)[0], -1)
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 50_000}
    bounds = [(-1.0, None)] * num_classes
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(1 + found.x)


def calibrated_log_loss(logits: Array, labels: Array) -> float:
    """Mean negative log-likelihood, in nats. Shape: (N, K), (N,)."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
