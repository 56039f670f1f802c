"""How sure a mean over a few seeds is: the interval, and when a difference is marked.

Two things vary. Seeds (split, initial weights, batches): resampled with replacement, and stretched
by t / z * sqrt(n / (n - 1)), because a plain percentile interval of n = 3 seeds never leaves the
range of the three and covers 75 % at best (the correction of Hesterberg, The American Statistician
2015, as a factor). Test images: the right answers of each class are drawn anew from a binomial
distribution, around zero, because a minimum of noisy recalls lies below the minimum of the recalls.

Shapes: n units, K classes, B draws.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

DRAWS = 2000
LEVEL = 0.95
# Even the sign test, which assumes nothing, needs 5 equal signs to get below 5 % (one-sided).
MIN_SEEDS = 5
WITH_IMAGES = ("mean_recall", "min_recall", "g_mean", "h_mean", "accuracy")
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

    def noise(self) -> Array:
        """Deviations (B,) by the choice of test images, mean 0; zeros where it is unknown."""
        recalls = self.figures["per_class_recall"]
        if self.counts is None or self.name not in WITH_IMAGES:
            return np.zeros(DRAWS)
        kept = [(r, n) for r, n in zip(recalls, self.counts, strict=True) if r is not None and n]
        # Equal figures on the same images are equal predictions: their noise is the same.
        told = repr((kept, self.figures["per_class_coverage"], self.unit))
        drawn = _drawn(hashlib.sha256(told.encode()).hexdigest(), tuple(kept))
        return drawn[self.name]


@lru_cache(maxsize=4096)
def _drawn(digest: str, kept: tuple[tuple[float, int], ...]) -> dict[str, Array]:
    rng = np.random.default_rng(int(digest[:16], 16))
    recall, count = (np.array(column) for column in zip(*kept, strict=True))
    found = rng.binomial(count.astype(int), np.clip(recall, 0, 1), (DRAWS, len(kept))) / count
    with np.errstate(divide="ignore"):
        figures = {
            "mean_recall": found.mean(1),
            "min_recall": found.min(1),
            "g_mean": np.exp(np.log(found).mean(1)),
            "h_mean": len(kept) / (1 / found).sum(1),
            "accuracy": found @ count / count.sum(),
        }
    return {name: values - values.mean() for name, values in figures.items()}


def mean(values: Sequence[Measured]) -> Estimate:
    """A method's mean over its units."""
    return _estimate([m.value for m in values], [m.noise() for m in values], (0, 1))


def difference(before: Sequence[Measured], after: Sequence[Measured]) -> Estimate:
    """The mean of after minus before, unit by unit."""
    pairs = list(zip(before, after, strict=True))
    changes = [b.value - a.value for a, b in pairs]
    return _estimate(changes, [b.noise() - a.noise() for a, b in pairs], (-1, 1))


def _estimate(
    values: Sequence[float], noise: Sequence[Array], possible: tuple[float, float]
) -> Estimate:
    n, centre = len(values), statistics.fmean(values)
    images = np.mean(noise, axis=0)
    if n == 1:
        bounds = _percentiles(centre + images, possible) if images.any() else None
        return Estimate(1, centre, None, bounds, None)
    deviations = np.array(values) - centre
    drawn = np.random.default_rng(0).integers(0, n, (DRAWS, n))
    seeds = stretch(n) * deviations[drawn].mean(1)
    spread = statistics.stdev(values)
    error = math.sqrt(spread**2 / n + float(images.var()))
    p = 2 * float(stats.t.sf(abs(centre) / error, n - 1)) if error else 1.0
    return Estimate(n, centre, spread, _percentiles(centre + seeds + images, possible), p)


def stretch(n: int) -> float:
    """What makes the percentile interval of n normal values as long as Student's.

    >>> round(stretch(3), 2), round(stretch(5), 2), round(stretch(50), 2)
    (2.69, 1.58, 1.04)
    """
    quantile = (1 + LEVEL) / 2
    ratio = stats.t.ppf(quantile, n - 1) / stats.norm.ppf(quantile)
    return float(ratio * math.sqrt(n / (n - 1)))


def _percentiles(values: Array, possible: tuple[float, float]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).clip(*possible)
    return float(low), float(high)


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
