"""How sure a mean over a few seeds is: the interval, and when a difference is marked.

Two things vary. Seeds (split, initial weights, batches): resampled with replacement, and stretched
by t / z * sqrt(n / (n - 1)), because a plain percentile interval of n = 3 seeds never leaves the
range of the three and covers 75 % at best (the correction of Hesterberg, The American Statistician
2015, as a factor). Test images: the right answers of each class are drawn anew from a binomial
distribution, around zero, because a minimum of noisy recalls lies below the minimum of the recalls.
Its probability is (right + 1/2) / (images + 1): with a recall of 1 nothing would vary.

Shapes: n units, K classes, B draws.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

DRAWS = 2000
LEVEL = 0.95
# Even the sign test, which assumes nothing, needs 5 equal signs to get below 5 % (one-sided).
MIN_SEEDS = 5
HEAD_TAIL = "min_ht_recall"
WITH_IMAGES = ("mean_recall", "min_recall", "g_mean", "h_mean", "accuracy", HEAD_TAIL)
DIGITS = 12  # more of a difference of recalls is rounding
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over n units: its spread (n - 1; None for n = 1), interval, and p of being zero."""

    n: int
    mean: float
    spread: float | None
    interval: tuple[float, float] | None
    p: float | None  # two-sided, of Student's t; None for n = 1

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Measured:
    """One figure of one run, with what its noise can be drawn from."""

    value: float
    name: str
    figures: Mapping[str, Any]
    counts: Sequence[int] | None  # images of each class; None: unknown
    unit: tuple[int, str]
    tail: Sequence[int] | None = None  # the classes of the tail; None: unknown

    @property
    def known(self) -> bool:
        """Whether the noise by test images can be drawn."""
        if self.counts is None or self.name not in WITH_IMAGES:
            return False
        return self.name != HEAD_TAIL or self.tail is not None

    def same(self, other: Measured) -> bool:
        """Whether the predictions are the same: equal figures on the same images."""
        return self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        names = ("per_class_recall", "per_class_coverage")
        return (*(tuple(self.figures[name]) for name in names), self.value, self.unit)

    def noise(self) -> Array:
        """Deviations (B,) by the choice of test images, mean 0; zeros where it is unknown."""
        if not self.known or self.counts is None:
            return np.zeros(DRAWS)
        tail = (self.tail or ()) if self.name == HEAD_TAIL else ()
        kept = [
            (r, n, k in tail)
            for k, (r, n) in enumerate(
                zip(self.figures["per_class_recall"], self.counts, strict=True)
            )
            if r is not None and n
        ]
        # Equal figures on the same images are equal predictions: their noise is the same.
        coverage = self.figures["per_class_coverage"]
        told = repr(([one[:2] for one in kept], coverage, self.unit))
        if not kept:
            return np.zeros(DRAWS)
        return _drawn(hashlib.sha256(told.encode()).hexdigest(), tuple(kept))[self.name]


@lru_cache(maxsize=4096)
def _drawn(digest: str, kept: tuple[tuple[float, int, bool], ...]) -> dict[str, Array]:
    rng = np.random.default_rng(int(digest[:16], 16))
    recall, count, last = (np.array(column) for column in zip(*kept, strict=True))
    shrunk = (np.clip(recall, 0, 1) * count + 0.5) / (count + 1)
    found = rng.binomial(count.astype(int), shrunk, (DRAWS, len(kept))) / count
    with np.errstate(divide="ignore"):
        figures = {
            "mean_recall": found.mean(1),
            "min_recall": found.min(1),
            "g_mean": np.exp(np.log(found).mean(1)),
            "h_mean": len(kept) / (1 / found).sum(1),
            "accuracy": found @ count / count.sum(),
        }
    parts = [found[:, last == part].mean(1) for part in (False, True) if (last == part).any()]
    figures[HEAD_TAIL] = np.min(parts, axis=0)
    return {name: values - values.mean() for name, values in figures.items()}


def mean(values: Sequence[Measured]) -> Estimate:
    """A method's mean over its units."""
    return _estimate([m.value for m in values], [m.noise() for m in values], (0, 1))


def difference(before: Sequence[Measured], after: Sequence[Measured]) -> Estimate:
    """The mean of after minus before, unit by unit; exactly zero if the predictions are the same.

    Without the noise of its images the figure of head and tail has no interval, and so no mark.
    """
    pairs = list(zip(before, after, strict=True))
    changes = [b.value - a.value for a, b in pairs]
    found = _estimate(changes, [b.noise() - a.noise() for a, b in pairs], (-1, 1))
    if all(a.same(b) for a, b in pairs):
        return replace(found, interval=(0.0, 0.0))
    known = all(m.known for pair in pairs for m in pair)
    return found if known or pairs[0][0].name != HEAD_TAIL else replace(found, interval=None)


def _estimate(
    values: Sequence[float], noise: Sequence[Array], possible: tuple[float, float]
) -> Estimate:
    # Differences that agree but for rounding agree.
    values = [round(value, DIGITS) for value in values]
    n, centre = len(values), round(statistics.fmean(values), DIGITS)
    images = np.mean(noise, axis=0)
    if n == 1:
        bounds = _percentiles(centre + images, possible) if images.any() else None
        return Estimate(1, centre, None, bounds, None)
    spread = statistics.stdev(values)
    error = math.sqrt(spread**2 / n + float(images.var()))
    if not error:  # nothing is known but the signs: no interval, and the p of the sign test
        return Estimate(n, centre, 0.0, None, 2 * 0.5**n if centre else 1.0)
    deviations = np.array(values) - centre
    drawn = np.random.default_rng(0).integers(0, n, (DRAWS, n))
    seeds = stretch(n) * deviations[drawn].mean(1)
    p = 2 * float(stats.t.sf(abs(centre) / error, n - 1))
    return Estimate(n, centre, spread, _percentiles(centre + seeds + images, possible), p)


def stretch(n: int) -> float:
    """What makes the percentile interval of n normal values as long as Student's.

    >>> round(stretch(3), 2), round(stretch(5), 2), round(stretch(50), 2)
    (2.69, 1.58, 1.04)
    """
    quantile = (1 + LEVEL) / 2
    ratio = stats.t.ppf(quantile, n - 1) / stats.norm.ppf(quantile)
    return float(ratio * math.sqrt(n / (n - 1)))


def _percentiles(values: Array, possible: tuple[float, float]) -> tuple[float, float] | None:
    """The limits; None for a point, which claims more than anybody knows."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).clip(*possible)
    return (float(low), float(high)) if high > low else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for being several (Holm, 1979); those that are None do not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        corrected[i] = running
    return corrected


def earned(found: Sequence[Estimate]) -> list[bool]:
    """Which of several differences deserve a mark.

    Those over at least MIN_SEEDS units whose interval excludes zero and whose p, corrected for all
    differences of the list that have one, is below 5 %.
    """
    corrected = holm([e.p for e in found])
    return [
        e.n >= MIN_SEEDS and e.excludes_zero and p is not None and p < 1 - LEVEL
        for e, p in zip(found, corrected, strict=True)
    ]
