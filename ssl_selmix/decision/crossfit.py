"""Honest figures on few images: every image is judged by a rule that has not seen it.

Shape legend: N images, K classes, S strengths of shrinkage, B bootstrap replicates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_selmix.decision.fit import Fit, Settings, fit
from ssl_selmix.decision.goal import Goal, group_means
from ssl_selmix.decision.polish import best_classes, confusion_counts, confusion_of
from ssl_selmix.decision.rule import DecisionRule

Array = NDArray[Any]

# How much of the way from logit adjustment's offsets to the fitted ones a rule goes; None leaves
# the scores as they are, which is the best that can be done with a figure that only chance raises.
STRENGTHS = (None, 0.0, 0.25, 0.5, 0.75, 1.0)
_REPLICATES, _CHEAP_REPLICATES = 200, 2000
_EVERY_FOLD = -1


@dataclass(frozen=True)
class CrossFitted:
    """The final rule, and what is known of it from images that it did not see."""

    fit: Fit
    rule: DecisionRule
    strength: float | None  # 1: as fitted; 0: logit adjustment; None: the scores as they are
    confusion: Array  # (K, K), of the final rule on its own images
    held_out: Array  # (K, K), every image judged by a rule that did not see it
    predicted: Array  # (N,) of the same
    always_seen: list[int]  # classes with one image, which no fit can do without
    part: Array  # (N,), the fold of every image
    of_fold: dict[int, Array] | None = None  # offsets (K,) that judge the images of a fold


def folds_of(labels: Array, folds: int, seed: int) -> Array:
    """The fold of every image, classes spread evenly; an only image of its class is in -1. (N,)."""
    generator = np.random.default_rng(seed)
    found = np.full(len(labels), _EVERY_FOLD)
    for cls in range(int(labels.max()) + 1):
        own = generator.permutation(np.flatnonzero(labels == cls))
        if len(own) > 1:
            found[own] = (np.arange(len(own)) + generator.integers(folds)) % folds
    return found


def cross_fit(scores: Array, labels: Array, how: Settings, folds: int, seed: int) -> CrossFitted:
    """Fit to all images, choose the shrinkage on images left out, and judge by them.

    Shape: scores (N, K), labels (N,).
    """
    whole = fit(scores, labels, how)
    part = folds_of(labels, folds, seed)
    single = [int(labels[i]) for i in np.flatnonzero(part == _EVERY_FOLD)]
    fits = {
        f: fit(scores[part != f], labels[part != f], how, whole.calibration)
        for f in range(folds)
        if (part == f).any()
    }
    if how.rule == "offsets":
        return _shrunk(scores, labels, part, whole, fits, single)
    mass, counts = how.goal.mass, np.zeros((len(how.goal.mass),) * 2)
    predicted = np.zeros(len(labels), np.int64)
    for f in (*fits, _EVERY_FOLD):
        rows = np.flatnonzero(part == f)
        rule = fits[f].rule if f in fits else whole.rule
        if len(rows):
            for share, classes in rule.expected(scores[rows]):
                counts += share * confusion_counts(labels[rows], classes, len(mass))
            predicted[rows] = rule.classes(scores[rows])
    fitted = expected_confusion(whole.rule, scores, labels, mass)
    held_out = counts * (mass / counts.sum(1))[:, None]
    return CrossFitted(whole, whole.rule, 1.0, fitted, held_out, predicted, single, part)


def _shrunk(
    scores: Array,
    labels: Array,
    part: Array,
    whole: Fit,
    fits: dict[int, Fit],
    single: list[int],
) -> CrossFitted:
    """Offsets between logit adjustment's and the fitted ones, at the strength that does best."""
    goal, mass = whole.goal, whole.goal.mass
    judged = np.zeros((len(STRENGTHS), len(labels)), np.int32)
    for f in (*fits, _EVERY_FOLD):
        rows = np.flatnonzero(part == f)
        found = fits.get(f, whole)
        for i, strength in enumerate(STRENGTHS):
            judged[i, rows] = best_classes(scores[rows], between(found, strength))
    allowed = _allowed(scores, labels, whole)
    # Each fold takes the strength that does best on the other folds' images: a figure would be
    # too good if the images that it comes from had chosen the strength.
    predicted, of_fold = np.zeros(len(labels), np.int32), {}
    for f in np.unique(part):
        others = (part != f) | (part == _EVERY_FOLD)
        complete = len(np.unique(labels[others])) == len(mass)
        chosen = _best_strength(goal, judged, labels, allowed, others if complete else part == part)
        predicted[part == f] = judged[chosen, part == f]
        own = between(fits.get(f, whole), STRENGTHS[chosen])
        of_fold[int(f)] = own - own.mean()
    strength = STRENGTHS[_best_strength(goal, judged, labels, allowed, part == part)]
    vector = between(whole, strength)
    rule = replace(whole.rule, vector=vector - vector.mean())
    assert rule.vector is not None
    fitted = confusion_of(labels, best_classes(scores, rule.vector), mass)
    held_out = confusion_of(labels, predicted, mass)
    return CrossFitted(whole, rule, strength, fitted, held_out, predicted, single, part, of_fold)


def between(found: Fit, strength: float | None) -> Array:
    """Offsets on the line from logit adjustment's (0) to the fitted ones (1), or none. (K,)."""
    assert found.rule.vector is not None
    if strength is None:
        return np.zeros_like(found.anchor)
    return np.asarray(found.anchor + strength * (found.rule.vector - found.anchor))


def _allowed(scores: Array, labels: Array, whole: Fit) -> list[int]:
    """Strengths that keep the constraints on the fitting images, if the fitted rule keeps them.

    None may serve the objective worse there than the scores do as they are.
    """
    goal = whole.goal
    found = [
        confusion_of(labels, best_classes(scores, between(whole, strength)), goal.mass)
        for strength in STRENGTHS
    ]
    last, unmoved = len(STRENGTHS) - 1, found[STRENGTHS.index(None)]
    kept = [i for i, c in enumerate(found) if i == last or not goal.violated(c)]
    return [i for i in kept if not goal.worse(found[i], unmoved)] or [STRENGTHS.index(None)]


def _best_strength(
    goal: Goal, judged: Array, labels: Array, allowed: list[int], rows: Array
) -> int:
    """The strength with the best figure on these images; of equals the one that does least."""
    values = [goal.utility(confusion_of(labels[rows], judged[i, rows], goal.mass)) for i in allowed]
    return allowed[int(np.argmax(np.array(values) > max(values) - 1e-12))]


def expected_confusion(rule: DecisionRule, scores: Array, labels: Array, mass: Array) -> Array:
    """The confusion matrix (K, K) of a rule, a mixture's members weighed by their shares."""
    matrix = np.zeros((len(mass), len(mass)))
    for share, classes in rule.expected(scores):
        matrix += share * confusion_of(labels, classes, mass)
    return matrix


def change_interval(
    goal: Goal, labels: Array, before: Array, after: Array, seed: int
) -> tuple[float, float]:
    """95 % bootstrap interval of the change of the objective, images resampled within classes.

    The same images are drawn for both predictions, (N,) each.
    """
    generator = np.random.default_rng(seed)
    known = goal.known
    if known is not None and known.mean != "min":
        changes = _recall_changes(goal, labels, before, after, generator)
    else:
        changes = np.array(list(_changes(goal, labels, before, after, generator)))
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high)


def _recall_changes(
    goal: Goal, labels: Array, before: Array, after: Array, generator: np.random.Generator
) -> Array:
    """Changes of a mean of recalls: only who was right counts, of four kinds a class. (B,)."""
    known = goal.known
    assert known is not None
    num_classes = len(goal.mass)
    kind = labels * 4 + 2 * (before == labels) + (after == labels)
    cells = np.bincount(kind, minlength=4 * num_classes).reshape(num_classes, 4)
    counts = cells.sum(1)
    replicates = min(_CHEAP_REPLICATES, max(_REPLICATES, 2_000_000 // num_classes))
    drawn = generator.multinomial(counts, cells / counts[:, None], (replicates, num_classes))
    old, new = (drawn[..., 2:].sum(-1) / counts, drawn[..., 1::2].sum(-1) / counts)
    exact = replace(known, floor=1e-7)
    figures = [exact.restored(exact.transformed(recall).mean(1)) for recall in (old, new)]
    return np.asarray(figures[1] - figures[0])


def _changes(
    goal: Goal, labels: Array, before: Array, after: Array, generator: np.random.Generator
) -> Any:
    """Changes of any figure, by drawing images."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    start, size = (np.repeat(v, counts) for v in (np.cumsum(counts) - counts, counts))
    known = goal.known
    for _ in range(_REPLICATES if len(counts) <= 100 else _REPLICATES // 4):
        rows = order[start + (generator.random(len(labels)) * size).astype(np.int64)]
        figures = []
        for classes in (before, after):
            matrix = confusion_of(labels[rows], classes[rows], goal.mass)
            if known is not None:
                recall = matrix.diagonal() / matrix.sum(1)
                figures.append(float(group_means(recall, known.groups).min()))
            else:
                figures.append(goal.figures(matrix)["objective"])
        yield figures[1] - figures[0]
