"""What a classifier achieves per class: recalls, coverage, their means, and calibration.

K classes, n examples. Confusion matrices are joint distributions, rows = true class.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Reliability = dict[str, list[float | None]]
Metrics = dict[str, float | list[float | None] | Reliability]

NAMES = (
    "mean_recall",
    "min_recall",
    "min_ht_recall",
    "g_mean",
    "h_mean",
    "min_coverage",
    "accuracy",
    "ece",
    "classwise_ece",
    "per_class_recall",
    "per_class_coverage",
    "reliability",
)

_ECE_BINS = 15
_PIECE = 1 << 22  # probabilities that are binned at once


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Joint distribution of (true class, predicted class) on the device of the labels.

    On an accelerator the values are not checked, since that would wait for the device.

    Shape: labels (n,), predictions (n,) -> (K, K) float64, sums to 1.

    >>> confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2).tolist()
    [[0.25, 0.25], [0.0, 0.5]]
    """
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            "labels and predictions must be 1-D and of equal length, got "
            f"{tuple(labels.shape)} and {tuple(predictions.shape)}; logits need .argmax(1)"
        )
    if len(labels) == 0:
        raise ValueError("a confusion matrix needs at least 1 example, got 0")
    if labels.is_floating_point() or predictions.is_floating_point():
        raise ValueError(
            f"classes must be integers, got {labels.dtype} labels and {predictions.dtype} "
            "predictions; convert them with .long()"
        )
    if labels.device.type == "cpu":
        _check_range("labels", labels, num_classes)
        _check_range("predictions", predictions, num_classes)
    cell = labels.long() * num_classes + predictions.long()
    ones = torch.ones(len(cell), dtype=torch.float64, device=cell.device)
    counts = torch.zeros(num_classes**2, dtype=torch.float64, device=cell.device)
    # Not bincount: it waits for the device to learn the length of its result.
    return counts.scatter_add_(0, cell, ones).view(num_classes, num_classes) / len(cell)


def from_confusion(confusion: Tensor, tail: Sequence[int] | None = None) -> Metrics:
    """The metrics that follow from a confusion matrix (a matrix of counts will do as well).

    Recall of class i is C_ii / sum_j C_ij, coverage of class j is sum_i C_ij: the share of
    predictions that it gets. A class without examples has recall None, and means and minima of
    recalls run over the other classes. `min_ht_recall` is the smaller of the mean recalls of head
    and tail; the tail is the last max(1, round(K / 10)) classes unless `tail` lists its classes.

    >>> from_confusion(torch.tensor([[0.5, 0.0], [0.25, 0.25]]))["per_class_recall"]
    [1.0, 0.5]
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or len(confusion) < 2:
        raise ValueError(
            f"a confusion matrix is square with 2 classes or more, got {tuple(confusion.shape)}"
        )
    of_tail = tail_classes(len(confusion), tail)
    joint = confusion.detach().to("cpu", torch.float64)
    total = float(joint.sum())
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"a confusion matrix sums to 1 (or to its examples), got {total}")
    joint = joint / total
    rows: list[float] = joint.sum(1).tolist()
    hits: list[float] = joint.diagonal().tolist()
    coverage: list[float] = joint.sum(0).clamp(max=1).tolist()
    recall = [hit / row if row > 0 else None for hit, row in zip(hits, rows, strict=True)]
    present = [r for r in recall if r is not None]
    return {
        "mean_recall": _mean(present),
        "min_recall": min(present),
        "min_ht_recall": _min_ht_recall(recall, of_tail),
        "g_mean": _g_mean(present),
        "h_mean": _h_mean(present),
        "min_coverage": min(coverage),
        "accuracy": min(1.0, math.fsum(hits)),
        "per_class_recall": recall,
        "per_class_coverage": [*coverage],
    }


def expected_calibration_error(probs: Tensor, labels: Tensor) -> Tensor:
    """How far confidence is from accuracy, on average over 15 equal bins of confidence.

    ECE = sum_b |B_b| / n * |accuracy(B_b) - mean confidence(B_b)|, where confidence is the largest
    probability of an example and B_b holds the confidences in (b / 15, (b + 1) / 15].

    Shape: probs (n, K), labels (n,) -> scalar.
    """
    confidence, predictions = probs.double().max(1)
    excess = (predictions == labels).double() - confidence
    # |B| / n * |mean of the excess in B| = |sum of the excess in B| / n
    return _sums(_bins(confidence), excess, _ECE_BINS).abs().sum() / len(labels)


def classwise_calibration_error(probs: Tensor, labels: Tensor) -> Tensor:
    """How far the probability of each class is from its frequency, the mean over all classes.

    For each class k it is the ECE of p_k as the probability of "the label is k", over all examples
    and the same bins. ECE asks about predicted classes only, and lets one class that is
    overestimated make up for another that is underestimated. Kull et al., NeurIPS 2019, section 2;
    https://arxiv.org/abs/1910.12656.

    Shape: probs (n, K), labels (n,) -> scalar.
    """
    n, num_classes = probs.shape
    places = _ECE_BINS * torch.arange(num_classes, device=probs.device)
    gaps = probs.new_zeros(num_classes * _ECE_BINS, dtype=torch.float64)
    # By pieces, in order: several matrices of n × K are more than a machine may have.
    size = max(1, _PIECE // num_classes)
    for some, of in zip(probs.split(size), labels.split(size), strict=True):
        p = some.double()
        excess = p.neg().scatter_add_(1, of[:, None], torch.ones_like(p[:, :1]))
        gaps.scatter_add_(0, _bins(p).add_(places).flatten(), excess.flatten())
    return gaps.abs().sum() / (n * num_classes)


def reliability(probs: Tensor, labels: Tensor) -> Reliability:
    """What a reliability diagram shows: 15 values each, for the bins of the ECE.

    `confidence` is the mean of the largest probabilities in (b / 15, (b + 1) / 15], `accuracy` the
    share of these examples that is right (both None where there is none), `count` their number.

    Shape: probs (n, K), labels (n,).
    """
    confidence, predictions = probs.double().max(1)
    bins = _bins(confidence)
    hits = (predictions == labels).double()
    parts = (torch.ones_like(hits), confidence, hits)
    count, total, right = (_sums(bins, part, _ECE_BINS).tolist() for part in parts)
    mean, accuracy = (
        [value / n if n else None for value, n in zip(values, count, strict=True)]
        for values in (total, right)
    )
    return {"confidence": mean, "accuracy": accuracy, "count": [int(n) for n in count]}


def _bins(confidence: Tensor) -> Tensor:
    return (confidence * _ECE_BINS).ceil().long().sub(1).clamp(0, _ECE_BINS - 1)


def _sums(cells: Tensor, values: Tensor, num_cells: int) -> Tensor:
    return values.new_zeros(num_cells).scatter_add_(0, cells, values)


def evaluate(
    logits: Tensor, labels: Tensor, num_classes: int, tail: Sequence[int] | None = None
) -> Metrics:
    """All metrics of results.json, as plain values; all but counts are fractions in [0, 1].

    Shape: logits (n, K), labels (n,).
    """
    if logits.ndim != 2 or logits.shape != (len(labels), num_classes):
        raise ValueError(
            f"logits must have the shape (examples, num_classes) = ({len(labels)}, {num_classes}), "
            f"got {tuple(logits.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("metrics need at least 1 example, got 0")
    # The results leave the device anyway, and its sums may depend on who comes first.
    logits, labels = logits.detach().cpu(), labels.cpu()
    _check_range("labels", labels, num_classes)
    probs = logits.double().softmax(1)
    if probs.isnan().any():
        raise ValueError(
            "logits contain NaN or infinity, so they rank no class: training diverged; "
            "lower the learning rate or look for the first bad loss"
        )
    metrics = from_confusion(confusion_matrix(labels, logits.argmax(1), num_classes), tail)
    metrics["ece"] = float(expected_calibration_error(probs, labels))
    metrics["classwise_ece"] = float(classwise_calibration_error(probs, labels))
    metrics["reliability"] = reliability(probs, labels)
    return {name: metrics[name] for name in NAMES}


def _check_range(name: str, classes: Tensor, num_classes: int) -> None:
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must lie in 0..{num_classes - 1}, got {low}..{high}; "
            "drop unlabeled examples, count classes from 0"
        )


def tail_size(num_classes: int) -> int:
    """Number of tail classes: the rarest tenth, at least one; the head is all others."""
    return max(1, round(0.1 * num_classes))


def tail_classes(num_classes: int, tail: Iterable[int] | None) -> set[int]:
    """The given tail classes, or the last `tail_size` ones.

    Raises:
        ValueError: they are no classes, or none of them, or all, or one is named twice.
    """
    if tail is None:
        return set(range(num_classes - tail_size(num_classes), num_classes))
    given = [int(i) for i in tail]
    inside = all(0 <= i < num_classes for i in given)
    if not inside or len(set(given)) != len(given) or not 0 < len(given) < num_classes:
        raise ValueError(
            f"tail must be some but not all of the classes 0..{num_classes - 1}, each once, got "
            f"{given}; the default is the last {tail_size(num_classes)}"
        )
    return set(given)


def _min_ht_recall(recall: list[float | None], tail: set[int]) -> float:
    head = [r for i, r in enumerate(recall) if r is not None and i not in tail]
    last = [r for i, r in enumerate(recall) if r is not None and i in tail]
    return min(_mean(group) for group in (head, last) if group)


def _mean(values: list[float]) -> float:
    return min(1.0, math.fsum(values) / len(values))


def geometric_mean(recall: Tensor) -> Tensor:
    """Geometric mean of recalls (K,) > 0, to be differentiated; results have that of `evaluate`."""
    return recall.log().mean().exp()


def harmonic_mean(recall: Tensor) -> Tensor:
    """Harmonic mean of recalls (K,) > 0, to be differentiated; results have that of `evaluate`."""
    return recall.reciprocal().mean().reciprocal()


# The same means of plain numbers: sums are exact, so that results do not depend on an order, and
# a recall of 0 has a mean.


def _g_mean(recall: list[float]) -> float:
    if min(recall) == 0:
        return 0.0
    # Logarithms: the product of 1,000 small recalls underflows.
    return math.exp(math.fsum(math.log(r) for r in recall) / len(recall))


def _h_mean(recall: list[float]) -> float:
    if min(recall) == 0:
        return 0.0
    return min(1.0, len(recall) / math.fsum(1 / r for r in recall))
