"""`ssl_selmix.posthoc`: the decision rule that serves an objective best, from held-out scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ssl_selmix.common.figures import limits, percent
from ssl_selmix.common.rules import shown
from ssl_selmix.decision import goal as goals
from ssl_selmix.decision.crossfit import CrossFitted, change_interval, cross_fit
from ssl_selmix.decision.fit import Settings, settings_of
from ssl_selmix.decision.polish import best_classes, confusion_of
from ssl_selmix.decision.rule import KINDS, DecisionRule, as_array, checked_scores

Array = NDArray[Any]

CALIBRATIONS = ("temperature", "none")
FEW_IMAGES = 50  # of a class, below which its figure is mostly chance

# Entries of scores above which single precision is enough, and half the memory.
_SINGLE = 20_000_000


def posthoc(
    scores: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    *,
    objective: str | goals.Figure = "h_mean",
    constraints: Sequence[goals.Constraint] = (),
    rule: str = "offsets",
    folds: int = 5,
    calibrate: str = "temperature",
    prior: Tensor | Array | Sequence[float] | None = None,
    probabilities: bool = False,
    seed: int = 0,
) -> DecisionRule:
    """Choose a decision rule for an objective, from scores of images that training did not see.

    Nothing is trained. With rule="offsets" one number a class is added to the logits, which can be
    folded into a classifier's bias. How it is done: docs/methods/posthoc.md.

    Args:
        scores: (N, K) logits of held-out images, or probabilities.
        labels: (N,) their classes; each class needs an image.
        objective: a name of `ssl_selmix.objectives`, an `Objective`, or a function of the joint
            confusion matrix, with a gradient or without. The name "min_recall" comes with a floor
            on mean recall, 2 points below the best that offsets reach on the fitting images; pass
            `objectives.get("min_recall", K)` for the worst class and nothing else.
        constraints: functions g(confusion), or pairs (name, g), which are to be >= 0.
        rule: "offsets"; "gains", a K×K matrix that can also bound coverage; or "mixture", which
            draws one of several gain matrices for each image.
        folds: of the cross-fitting, at least 2.
        calibrate: "temperature" fits a temperature, and biases that show which class distribution
            the scores follow; "none" takes softmax(scores) as posteriors at the frequencies of
            `labels`.
        prior: (K,) class distribution at deployment; None: the frequencies of `labels`. Images are
            weighed so that classes have these masses. Recalls do not depend on it; accuracy,
            precision, F1, and the reported coverages do.
        probabilities: whether `scores` are probabilities. The rule then takes probabilities, too.
        seed: of the folds and of the bootstrap.

    Returns:
        The rule, with the figures of results.json that follow from labels.

    Raises:
        ValueError: with rule, value and remedy, for input that makes no sense.

    Examples:
        >>> import numpy as np
        >>> generator = np.random.default_rng(0)
        >>> labels = np.arange(3).repeat(200)
        >>> logits = generator.normal(size=(600, 3)) + 1.5 * np.eye(3)[labels] + [2.0, 1.0, 0.0]
        >>> found = posthoc(logits, labels, objective="mean_recall")
        >>> found.cross_fitted["mean_recall"] > found.before["mean_recall"] + 0.1
        True
        >>> bool(found.offsets[2] > found.offsets[0])  # the rare class is helped
        True
    """
    values, classes = _checked(scores, labels, probabilities)
    num_classes = values.shape[1]
    _check_options(rule, folds, calibrate, seed, len(classes))
    _check_more(constraints, probabilities)
    counts = np.bincount(classes, minlength=num_classes)
    mass = _mass(prior, counts)
    built = goals.build(objective, num_classes, constraints)
    # Half an image: a class at recall 0 ranks below one with a single hit, without a spike.
    goal = goals.Goal(built, mass, least_recall=0.5 / float(counts.max()))
    protect = isinstance(objective, str) and objective == "min_recall" and not constraints
    if rule == "offsets":
        goal = goal.with_margin(len(classes))
    how = settings_of(goal, rule, calibrate == "temperature", protect)
    found = cross_fit(values, classes, how, folds, seed)
    reported = _reported(found, values, classes, how, folds, seed)
    return replace(reported, probabilities=probabilities)


def _reported(
    found: CrossFitted, scores: Array, labels: Array, how: Settings, folds: int, seed: int
) -> DecisionRule:
    """The rule with its figures, before and after, seen and unseen."""
    goal = how.goal
    first = best_classes(scores, np.zeros(goal.num_classes))
    before = goal.figures(confusion_of(labels, first, goal.mass))
    after, held_out = goal.figures(found.confusion), goal.figures(found.held_out)
    interval = change_interval(goal, labels, first, found.predicted, seed)
    optimism = {
        name: value - held_out[name] for name, value in after.items() if isinstance(value, float)
    }
    counts = np.bincount(labels)
    notes = _notes(how, found, counts, folds, (before, held_out, optimism), interval)
    return replace(
        found.rule,
        before=before,
        after=after,
        cross_fitted=held_out,
        optimism=optimism,
        interval=interval,
        notes=tuple(notes),
    )


def _notes(
    how: Settings,
    found: CrossFitted,
    counts: Array,
    folds: int,
    figures: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, float]],
    interval: tuple[float, float],
) -> list[str]:
    """What was done and what to be careful about."""
    (before, held_out, optimism), goal = figures, found.fit.goal
    notes = [f"Solver: {_solver(how)}."]
    if how.rule == "offsets" and found.strength is None:
        notes.append("No offsets did better on images left out than the scores as they are.")
    elif how.rule == "offsets":
        notes.append(
            f"Offsets go {found.strength:.0%} of the way from logit adjustment to the fitted ones, "
            f"the best of five shares over {folds} folds."
        )
    else:
        notes.append("Gain matrices are not shrunk; compare `after` with `cross_fitted`.")
    perfect = goal.figures(np.diag(goal.mass)).get("objective")
    if perfect is not None and perfect < before["objective"] - 1e-9:
        notes.append(
            f"The objective of perfect predictions is {perfect:.3g}, below "
            f"{before['objective']:.3g} of the scores as they are: larger is taken for better, so "
            "return its negative if it is a loss."
        )
    if goal.known is not None and goal.known.least_mean > 0:
        notes.append(
            f"Mean recall on the fitting images is kept above {goal.known.least_mean:.1%}, "
            f"{goals.MEAN_FLOOR:.0%} below the best of offsets: the worst class alone costs more."
        )
    if how.rule == "offsets" and goal.known is not None and goal.known.covered is not None:
        notes.append(
            f"Coverage is fitted to at least {goal.known.least * goal.num_classes:.1%} of 1/K, a "
            "margin above what was asked, so that it is kept on other images too."
        )
    few = np.flatnonzero(counts < FEW_IMAGES)
    if len(few):
        named = ", ".join(map(str, few[:10])) + (", ..." if len(few) > 10 else "")
        notes.append(
            f"{len(few)} of {len(counts)} classes have fewer than {FEW_IMAGES} images ({named}; "
            f"the least {counts.min()}): expect the objective on new images "
            f"{percent(optimism['objective'])} points below `after`."
        )
    if found.always_seen:
        notes.append(
            f"Classes {found.always_seen[:10]} have one image, which every fit saw: their "
            "cross-fitted recall is too good."
        )
    if interval[0] <= 0:
        change = held_out["objective"] - before["objective"]
        notes.append(
            f"No gain is shown: on images left out the objective changes by "
            f"{percent(change, signed=True)} points, 95 % interval "
            f"{limits(*interval, between=' to ', signed=False)}."
        )
    broken = [k for k in held_out if k.startswith("slack_") and held_out[k] < 0]
    notes += [
        f"The constraint {k.removeprefix('slack_')} is missed by {-held_out[k]:.2g} on images left "
        "out."
        for k in broken
    ]
    return notes


def _solver(how: Settings) -> str:
    """Which methods proposed rules, in words."""
    goal = how.goal
    worst = goal.known is not None and goal.known.mean == "min"
    if not goal.graded:
        found = "no gradient"
    elif worst:
        found = "multiplicative weights for the worst class"
    elif how.ratio is not None:
        found = "bisection for a ratio of linear functions, and Frank-Wolfe"
    elif goal.constrained:
        found = "Frank-Wolfe on a Lagrangian"
    else:
        found = "Frank-Wolfe" + (
            "" if goal.concave else ", as a local search: not known as concave"
        )
    if how.rule != "offsets" and goal.graded:
        shares = "a linear program" if worst and not goal.constrained else "all shares at once"
        found += f"; mixtures by {shares}"
    exact = "at all break points" if goal.known is not None else "at whole confusion matrices"
    return f"{found}; then coordinate ascent {exact}"


def _checked(
    scores: Tensor | Array, labels: Tensor | Array | Sequence[int], probabilities: bool
) -> tuple[Array, Array]:
    """Scores (N, K) as logits and labels (N,) as integers."""
    values, classes = (
        as_array(scores),
        as_array(labels if isinstance(labels, Tensor) else np.asarray(labels)),
    )
    if values.ndim != 2 or values.shape[1] < 2 or len(values) == 0:
        raise ValueError(
            f"scores must be (images, classes) with 2 classes or more, got {tuple(values.shape)}; "
            "pass the logits of all classes"
        )
    if classes.shape != values.shape[:1]:
        raise ValueError(
            f"labels must be one for each of the {len(values)} rows of scores, got "
            f"{tuple(classes.shape)}; pass class indices"
        )
    if classes.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {classes.dtype}; convert them with .long()")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= values.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{values.shape[1] - 1}, got {low}..{high}; drop unlabeled "
            "images and count classes from 0"
        )
    classes = classes.astype(np.int64)
    missing = np.flatnonzero(np.bincount(classes, minlength=values.shape[1]) == 0)
    if len(missing):
        raise ValueError(
            f"every class needs a held-out image, classes {missing[:10].tolist()} have none; add "
            "images of them, or leave their columns out of the scores"
        )
    values = checked_scores(values, probabilities)
    kind = np.float32 if values.size > _SINGLE else np.float64
    return np.ascontiguousarray(values, kind), classes


def _check_more(constraints: Any, probabilities: Any) -> None:
    if isinstance(constraints, str | bytes) or not isinstance(constraints, Sequence):
        raise ValueError(
            f"constraints must be a list of functions g(confusion), got {constraints!r}; give [g]"
        )
    if not isinstance(probabilities, bool):
        raise ValueError(f"probabilities must be True or False, got {probabilities!r}")


def _check_options(rule: str, folds: int, calibrate: str, seed: int, images: int) -> None:
    if not isinstance(rule, str) or rule not in KINDS:
        raise ValueError(f"rule must be one of {', '.join(KINDS)}, got {rule!r}")
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise ValueError(f"folds must be an integer >= 2, got {folds!r}; 5 is usual")
    if folds > images:
        raise ValueError(f"folds must be at most {images}, the images, got {folds}; 5 is usual")
    if not isinstance(calibrate, str) or calibrate not in CALIBRATIONS:
        raise ValueError(f"calibrate must be one of {', '.join(CALIBRATIONS)}, got {calibrate!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}; 0 is usual")


def _mass(prior: Tensor | Array | Sequence[float] | None, counts: Array) -> Array:
    """Class masses at deployment (K,)."""
    if prior is None:
        return np.asarray(counts / counts.sum())
    try:
        given = as_array(prior if isinstance(prior, Tensor) else np.asarray(prior, np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"prior must be {len(counts)} positive numbers, got {shown(prior)}; give class shares"
        ) from error
    mass = given.astype(np.float64)
    if mass.shape != counts.shape or not np.isfinite(mass).all() or not (mass > 0).all():
        raise ValueError(
            f"prior must be {len(counts)} positive numbers, got {given.tolist()}; give a class "
            "that does not occur a small share"
        )
    if abs(mass.sum() - 1) > 1e-3:
        raise ValueError(f"prior must sum to 1, got {mass.sum():g}; divide it by its sum")
    return np.asarray(mass / mass.sum())
