"""Fitting a rule to images: start from logit adjustment, search with gradients, polish exactly.

Shape legend: N images, K classes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_selmix.decision.goal import MEAN_FLOOR, Goal
from ssl_selmix.decision.polish import best_classes, polish
from ssl_selmix.decision.rule import DecisionRule
from ssl_selmix.decision.shift import Calibration, anchor_offsets
from ssl_selmix.decision.solvers import (
    Sample,
    bisect_ratio,
    gain_scores,
    mix,
    ratio_parts,
    weight_rules,
)

Array = NDArray[Any]

# Entries of the scores up to which a fit does this many sweeps, rules of a gradient, and rounds.
_EFFORT = ((100_000, 8, 12, 60), (2_000_000, 3, 8, 40), (20_000_000, 2, 4, 15), (0, 1, 3, 8))
# With few classes a grid of starts around the anchor is cheap, and coordinate ascent can be stuck.
_GRID_CLASSES = 3
_MORE_STARTS = 4
_PENALTIES = (0.5, 2.0, 8.0)
_GRID = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)  # in units of the temperature


@dataclass(frozen=True)
class Settings:
    """What all fits of one call share."""

    goal: Goal
    rule: str
    target: Array  # (K,) the class distribution that the anchor aims at
    calibrate: bool
    protect_mean: bool  # a floor on mean recall for a worst class
    ratio: tuple[Array, Array] | None


@dataclass(frozen=True)
class Fit:
    """A rule, the logit adjustment that it may be shrunk to, and the goal it really served."""

    rule: DecisionRule
    anchor: Array  # (K,)
    goal: Goal
    calibration: Calibration | None


def settings_of(goal: Goal, rule: str, calibrate: bool, protect_mean: bool) -> Settings:
    """Settings for a goal; figures of recalls are anchored at balanced classes."""
    even = np.full(goal.num_classes, 1 / goal.num_classes)
    target = even if goal.balanced else goal.mass
    return Settings(goal, rule, target, calibrate, protect_mean, ratio_parts(goal))


def _effort(scores: Array) -> tuple[int, int, int]:
    found = [effort for entries, *effort in _EFFORT if scores.size <= entries or entries == 0]
    sweeps, gradients, rounds = found[0]
    return sweeps, gradients, rounds


def fit(scores: Array, labels: Array, how: Settings, start: Calibration | None = None) -> Fit:
    """Fit a rule to these images.

    Args:
        scores: (N, K) logits.
        labels: (N,) with every class.
        how: the settings.
        start: calibration of similar images, which saves time.
    """
    goal, calibration = how.goal, None
    if how.calibrate:
        anchor, calibration = anchor_offsets(scores, labels, how.target, start)
        temperature = calibration.temperature
    else:
        frequency = np.bincount(labels, minlength=goal.num_classes) / len(labels)
        anchor, temperature = np.log(how.target / frequency), 1.0
        anchor = anchor - anchor.mean()
    rows = np.exp(anchor / temperature) * goal.mass / how.target
    sample = Sample(scores, labels, temperature, rows / rows.max(), goal.mass)
    if how.protect_mean:
        goal = _with_floor(sample, goal, anchor)
    offsets = _fit_offsets(sample, goal, anchor, how)
    unmoved = sample.of(best_classes(scores, np.zeros_like(anchor)))
    if how.protect_mean and goal.worse(sample.of(best_classes(scores, offsets)), unmoved):
        # No rule above the floor serves the worst class as well as the scores do, which lie below.
        recall = unmoved.diagonal() / unmoved.sum(1)
        goal = goal.with_least_mean(float(recall.mean()))
        offsets = _fit_offsets(sample, goal, anchor, how)
    if how.rule == "offsets":
        rule = DecisionRule("offsets", vector=offsets - offsets.mean())
    elif how.rule == "gains":
        rule = _fit_gains(sample, goal, offsets, how)
    else:
        rule = _fit_mixture(sample, goal, offsets, how)
    return Fit(rule, anchor, goal, calibration)


def _with_floor(sample: Sample, goal: Goal, anchor: Array) -> Goal:
    """The goal under a floor a little below the best mean recall that offsets reach."""
    mean = goal.for_mean_recall()
    sweeps = min(2, _effort(sample.scores)[0])
    _, predicted = polish(sample.scores, sample.labels, mean, anchor, sweeps)
    return goal.with_least_mean(max(mean.utility(sample.of(predicted)) - MEAN_FLOOR, 0.0))


def _fit_offsets(sample: Sample, goal: Goal, anchor: Array, how: Settings) -> Array:
    """The best offsets found (K,): gradient methods propose, coordinate ascent decides."""
    sweeps, gradients, _ = _effort(sample.scores)
    scores, labels = sample.scores, sample.labels
    starts = [anchor, np.zeros_like(anchor)]
    if goal.graded:
        starts += weight_rules(sample, goal, anchor, gradients)
    if how.ratio is not None:
        gain, _ = bisect_ratio(sample.confusion, *how.ratio)
        worth = sample.scaled(gain).diagonal()
        starts.append(sample.temperature * np.log(np.maximum(worth, 1e-6 * worth.max())))
    if goal.num_classes <= _GRID_CLASSES:
        moves = itertools.product(_GRID, repeat=goal.num_classes - 1)
        starts += [anchor + sample.temperature * np.array([0.0, *move]) for move in moves]
    values = [goal.utility(sample.of(best_classes(scores, start))) for start in starts]
    # A second start costs as much as the first and helps where the ascent has several ends.
    more = _MORE_STARTS if scores.size <= _EFFORT[0][0] else 0
    if goal.known is None:
        sweeps = min(sweeps, 2 if more == 0 else 4)  # each looks at whole confusion matrices
    count = 6 if goal.num_classes <= _GRID_CLASSES else 1
    best, confusion = (-np.inf, anchor), np.eye(goal.num_classes)
    chosen = [starts[i] for i in np.argsort(values)[::-1][:count]]
    if goal.known is not None and goal.known.mean == "min":
        smooth = goal.with_harmonic_mean()
        chosen.append(polish(scores, labels, smooth, chosen[0], min(2, sweeps))[0])
    others = [starts[i] for i in np.argsort(values)[::-1][count : count + more]]
    for number, start in enumerate([*chosen, *others]):
        if number >= len(chosen) and not goal.violated(confusion):
            break  # the others are for constraints that the ascent has not met
        offsets, predicted = _climb(sample, goal, start, sweeps)
        reached = sample.of(predicted)
        if (value := goal.utility(reached)) > best[0]:
            best, confusion = (value, offsets), reached
    return best[1]


def _climb(sample: Sample, goal: Goal, start: Array, sweeps: int) -> tuple[Array, Array]:
    """Coordinate ascent, under constraints that sharpen; offsets (K,) and predictions (N,)."""
    if goal.constrained:
        for penalty in _PENALTIES:
            soft = goal.with_penalty(penalty)
            start, _ = polish(sample.scores, sample.labels, soft, start, 1)
    return polish(sample.scores, sample.labels, goal, start, sweeps)


def _diagonal(sample: Sample, offsets: Array) -> Array:
    """The gain matrix, on posteriors of the sample, of a rule with offsets. (K,) -> (K, K)."""
    worth = np.exp((offsets - offsets.max()) / sample.temperature)
    return np.diag(worth / sample.rows)


def _fit_gains(sample: Sample, goal: Goal, offsets: Array, how: Settings) -> DecisionRule:
    """The best single gain rule: of the offsets, of a mixture's members, of a ratio; polished."""
    rounds = _effort(sample.scores)[2]
    found = [_diagonal(sample, offsets)]
    if how.ratio is not None:
        found.append(bisect_ratio(sample.confusion, *how.ratio)[0])
    if goal.graded:
        found += mix(sample, goal, found, rounds).gains
    return DecisionRule(
        "gains",
        gains=_polished(sample, goal, found)[None],
        shares=np.ones(1),
        temperature=sample.temperature,
    )


def _polished(sample: Sample, goal: Goal, found: list[Array]) -> Array:
    """The best gain matrix after its columns were given their best constants. (K, K)."""
    sweeps = _effort(sample.scores)[0]
    values = [goal.utility(sample.confusion(gain)) for gain in found]
    best = (-np.inf, np.eye(len(goal.mass)))
    for index in np.argsort(values)[::-1][:2]:
        gain = sample.scaled(found[index])
        # sum_i eta_i (W_ij + c_j) = sum_i eta_i W_ij + c_j: an offset of the expected gains.
        scores = gain_scores(sample.scores, gain, sample.temperature)
        start = np.zeros(len(gain))
        columns, predicted = polish(scores, sample.labels, goal, start, sweeps)
        value = goal.utility(sample.of(predicted))
        best = max(best, (value, gain + columns), key=lambda pair: pair[0])
    return best[1]


def _fit_mixture(sample: Sample, goal: Goal, offsets: Array, how: Settings) -> DecisionRule:
    """The best mixture, its best member first; a single polished rule if that is as good."""
    rounds = _effort(sample.scores)[2]
    start = [_diagonal(sample, offsets)]
    if how.ratio is not None:
        start.append(bisect_ratio(sample.confusion, *how.ratio)[0])
    single = _polished(sample, goal, start)
    gains, shares = [single], np.ones(1)
    if goal.graded:
        unscaled = single / sample.rows[:, None]
        mixture = mix(sample, goal, [*start, unscaled], rounds)
        if goal.utility(mixture.confusion) > goal.utility(sample.confusion(unscaled)) + 1e-9:
            values = [goal.utility(sample.confusion(gain)) for gain in mixture.gains]
            order = np.argsort(values)[::-1]
            gains = [sample.scaled(mixture.gains[i]) for i in order]
            shares = mixture.shares[order]
    return DecisionRule(
        "mixture", gains=np.stack(gains), shares=shares, temperature=sample.temperature
    )
