"""Exact coordinate ascent on the offsets of an arg-max rule.

With all other offsets fixed, an image goes to class j as soon as j's offset passes its margin. So
the figure is a step function of that offset with a step at every margin; sorting them and summing
what each step changes gives its exact maximum. Shape legend: N images, K classes, M break points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_selmix.decision.goal import TIE, Goal, Known

Array = NDArray[Any]

# Entries of confusion matrices that are compared at once, for a figure that needs whole ones.
_AT_ONCE = 4_000_000
_LOOKS = 16  # at break points, where looking at all would be too slow
_CHUNK = 4_000_000  # entries of scores that are handled at once


def best_classes(scores: Array, offsets: Array) -> Array:
    """arg-max of scores + offsets, the first of equals, in pieces that fit the cache. (N,)."""
    rows = max(1, _CHUNK // scores.shape[1])
    offsets = offsets.astype(scores.dtype)
    found = np.empty(len(scores), np.int32)
    for i in range(0, len(scores), rows):
        found[i : i + rows] = (scores[i : i + rows] + offsets).argmax(1)
    return found


class Ascent:
    """Images with the two best classes of each, kept up to date as offsets change."""

    def __init__(self, scores: Array, labels: Array, goal: Goal, offsets: Array) -> None:
        self.scores, self.columns = scores, np.ascontiguousarray(scores.T)
        self.labels = labels.astype(np.int32)
        self.goal = goal
        self.counts = np.bincount(labels, minlength=goal.num_classes)
        self.offsets = offsets.astype(scores.dtype)
        self._hits: Array | None = None  # right predictions of each class, until an offset moves
        # Break points closer than this are not told apart in the precision of the scores.
        self.resolution = 1e-10 if scores.dtype == np.float64 else 1e-5
        size = len(labels)
        self.best, self.second = (np.zeros(size, np.int32) for _ in range(2))
        self.best_value, self.second_value = (np.zeros(size, scores.dtype) for _ in range(2))
        for start in range(0, size, rows := max(1, _CHUNK // goal.num_classes)):
            self._rank(np.arange(start, min(start + rows, size)))

    def _rank(self, rows: Array) -> None:
        values = self.scores[rows] + self.offsets
        index = np.arange(len(rows))
        for classes, tops in ((self.best, self.best_value), (self.second, self.second_value)):
            top = values.argmax(1)
            classes[rows], tops[rows] = top, values[index, top]
            values[index, top] = -np.inf

    def confusion(self) -> Array:
        """The joint confusion matrix (K, K), its rows with the masses of the goal."""
        return confusion_of(self.labels, self.best, self.goal.mass)

    def sweep(self) -> bool:
        """Every offset to its best value in turn; whether any moved."""
        moved = [self.improve(j) for j in range(self.goal.num_classes)]
        return any(moved)

    def improve(self, j: int) -> bool:
        """Move the offset of class j to where the figure is largest, if that is elsewhere."""
        other = np.where(self.best == j, self.second, self.best)
        margin = np.where(self.best == j, self.second_value, self.best_value)
        margin -= self.columns[j] + self.offsets[j]
        known = self.goal.known
        rows = self._relevant(j, other, margin) if known is not None else None
        if rows is not None:
            other, margin = other[rows], margin[rows]
        labels = self.labels if rows is None else self.labels[rows]
        order = np.argsort(margin)
        other, margin, labels = other[order], margin[order], labels[order]
        if not len(margin):
            return False
        # Where `taken` images have passed to j, the offset lies between two margins.
        edges = np.concatenate([[-np.inf], margin, [np.inf]])
        with np.errstate(invalid="ignore"):
            open_ = np.flatnonzero(np.diff(edges) > self.resolution)
        now = int(np.searchsorted(margin, 0.0))
        if known is not None:
            values = self._sums(j, labels, other, known)
        else:
            values = self._looks(j, labels, other, open_, now)
        target = open_[self._nearest_best(values[open_], edges[open_], edges[open_ + 1])]
        if not values[target] > values[now] + 1e-12:
            return False
        low, high = edges[target], edges[target + 1]
        low, high = max(low, high - 2.0) if low == -np.inf else low, high
        high = low + 2.0 if high == np.inf else high
        self._move(j, (float(low) + float(high)) / 2)
        return True

    @staticmethod
    def _nearest_best(values: Array, low: Array, high: Array) -> int:
        """Of the best places, the one nearest to where the offset is: less movement, less noise."""
        best = np.flatnonzero(values >= values.max() - 1e-12)
        away = np.maximum(low[best], 0) + np.maximum(-high[best], 0)
        return int(best[away.argmin()])

    def _relevant(self, j: int, other: Array, margin: Array) -> Array | None:
        """Images whose move can change a recall for the better, or None for all.

        Coverage sees every image. Without it, an image that is wrong either way is irrelevant, and
        so is one that is lost to j after the last image of class j is won, unless j has it now.
        """
        assert self.goal.known is not None
        if self.goal.known.covered is not None:
            return None
        own = self.labels == j
        last = max(float(margin[own].max()), 0.0)
        return np.flatnonzero(own | ((self.labels == other) & (margin <= last)))

    def _sums(self, j: int, labels: Array, other: Array, known: Known) -> Array:
        """The utility after each number of images has passed to j. Shape: (M + 1,)."""
        won, lost = labels == j, labels == other
        recall = self._recalls_without(j)
        change = won / self.counts[j] - lost / self.counts[labels]
        mean = (recall.sum() + _from_zero(change)) / len(recall)
        after = recall[labels] - _running(labels, lost / self.counts[labels])
        if known.mean == "min":
            value = self._worst(j, labels, (won, lost), known, (recall, after)) + TIE * mean
        elif known.mean == "mean":
            value = mean
        else:
            after[won] = np.arange(1, won.sum() + 1) / self.counts[j]
            before = after + np.where(won, -1, lost) / self.counts[labels]
            step = np.where(won | lost, known.transformed(after) - known.transformed(before), 0.0)
            total = known.transformed(recall).sum() + _from_zero(step)
            value = known.restored(total / len(recall))
        lacking = np.maximum(known.least_mean - mean, 0)
        if known.covered is not None:
            lacking = lacking + self._shortfall(j, labels, other, known)
        return np.asarray(value - known.penalty * lacking)

    def _recalls_without(self, j: int) -> Array:
        """Recalls if no image were given to class j; that of j is 0. Shape: (K,)."""
        if self._hits is None:
            right = self.labels[self.best == self.labels]
            self._hits = np.bincount(right, minlength=len(self.counts))
        left = self.labels[(self.best == j) & (self.second == self.labels)]
        hits = self._hits + np.bincount(left, minlength=len(self.counts))
        hits[j] = 0
        return np.asarray(hits / self.counts)

    def _worst(
        self,
        j: int,
        labels: Array,
        events: tuple[Array, Array],
        known: Known,
        recalls: tuple[Array, Array],
    ) -> Array:
        """The smallest group mean of the recalls along the line. Shape: (M + 1,)."""
        (won, lost), (recall, after) = events, recalls
        if known.groups.max() + 1 == len(recall):
            others = np.delete(recall, j).min()
            falling = np.minimum.accumulate(np.concatenate([[others], np.where(lost, after, 1)]))
            return np.asarray(np.minimum(falling, _from_zero(won) / self.counts[j]))
        change = won / self.counts[j] - lost / self.counts[labels]
        groups = known.groups
        means = [
            (recall[groups == g].sum() + _from_zero(change * (groups[labels] == g)))
            / (groups == g).sum()
            for g in range(int(groups.max()) + 1)
        ]
        return np.asarray(np.minimum.reduce(means))

    def _shortfall(self, j: int, labels: Array, other: Array, known: Known) -> Array:
        """How much coverage is missing in all, along the line. Shape: (M + 1,)."""
        assert known.covered is not None
        num_classes, groups = len(self.counts), known.covered
        weight = 1.0 / (self.counts[labels] * num_classes)
        start = np.bincount(other, weight, num_classes)
        if groups.max() + 1 == num_classes:
            after = start[other] - _running(other, weight)
            own = _from_zero(weight)
            step = _short(after, known.least) - _short(after + weight, known.least)
            first = _short(np.delete(start, j), known.least).sum()
            return np.asarray(first + _from_zero(step) + _short(own, known.least))
        total = np.zeros(len(labels) + 1)
        for g in range(int(groups.max()) + 1):
            change = weight * ((groups[j] == g) - (groups[other] == g).astype(float))
            mean = (start[groups == g].sum() + _from_zero(change)) / (groups == g).sum()
            total += _short(mean, known.least)
        return total

    def _looks(self, j: int, labels: Array, other: Array, open_: Array, now: int) -> Array:
        """The utility at all break points if that is cheap, else at some and around the best."""
        values = np.full(len(labels) + 1, -np.inf)
        places = np.union1d(open_, [now])
        looks = len(places) if len(places) * len(self.counts) ** 2 <= _AT_ONCE // 40 else _LOOKS
        low, high = 0, len(places) - 1
        while True:
            at = np.linspace(low, high, min(looks, high - low + 1)).round().astype(int)
            chosen = np.union1d(places[at], [now])
            values[chosen] = self._utilities(j, labels, other, chosen)
            spacing = (high - low) // max(1, looks - 1)
            if spacing <= 1:
                return values
            best = int(np.searchsorted(places, values.argmax()))
            low, high = max(0, best - spacing), min(len(places) - 1, best + spacing)

    def _utilities(self, j: int, labels: Array, other: Array, places: Array) -> Array:
        """The utility at some numbers of passed images, each from its whole confusion matrix."""
        size = len(self.counts)
        matrix = confusion_counts(labels, other, size).astype(np.float64)
        found, passed = [], 0
        scale = (self.goal.mass / self.counts)[:, None]
        for place in places:
            moved = slice(passed, place)
            np.subtract.at(matrix, (labels[moved], other[moved]), 1.0)
            np.add.at(matrix[:, j], labels[moved], 1.0)
            passed = int(place)
            found.append(self.goal.utility(matrix * scale))
        return np.array(found)

    def _move(self, j: int, step: float) -> None:
        """Change one offset; classes that fall out of the best two are looked up anew."""
        self._hits = None
        self.offsets[j] += np.asarray(step, self.offsets.dtype)
        first, second = self.best == j, self.second == j
        if step < 0:
            self._rank(np.flatnonzero(first | second))
            return
        value = self.columns[j] + self.offsets[j]
        self.best_value[first], self.second_value[second] = value[first], value[second]
        up = ~first & (value > self.best_value)
        self.second[up], self.second_value[up] = self.best[up], self.best_value[up]
        self.best[up], self.best_value[up] = j, value[up]
        between = ~first & ~second & ~up & (value > self.second_value)
        self.second[between], self.second_value[between] = j, value[between]


def _short(coverage: Array, least: float) -> Array:
    return np.maximum(least - coverage, 0)


def _from_zero(steps: Array) -> Array:
    """Running sums that begin with 0. Shape: (M,) -> (M + 1,)."""
    return np.concatenate([[0.0], np.cumsum(steps, dtype=np.float64)])


def _running(classes: Array, values: Array) -> Array:
    """Running sums within each class, every class by itself. Shape: (M,), (M,) -> (M,)."""
    order = np.argsort(classes.astype(np.int16), kind="stable")  # a radix sort, for 16 bits
    ranked = classes[order]
    total = np.cumsum(values[order], dtype=np.float64)
    begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    base = np.concatenate([[0.0], total])[begins]
    result = np.empty(len(values))
    result[order] = total - np.repeat(base, np.diff(np.append(begins, len(ranked))))
    return result


def confusion_counts(labels: Array, predicted: Array, num_classes: int) -> Array:
    """How many images of class i are given to class j. (N,), (N,) -> (K, K)."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def confusion_of(labels: Array, predicted: Array, mass: Array) -> Array:
    """The joint confusion matrix whose rows have these masses. (N,), (N,), (K,) -> (K, K)."""
    counts = confusion_counts(labels, predicted, len(mass))
    return np.asarray(counts * (mass / counts.sum(1))[:, None])


def polish(
    scores: Array, labels: Array, goal: Goal, offsets: Array, sweeps: int
) -> tuple[Array, Array]:
    """Coordinate ascent from these offsets: the offsets it ends at, and the predictions there.

    Shape: scores (N, K), labels (N,), offsets (K,) -> (K,), (N,).
    """
    ascent = Ascent(scores, labels, goal, offsets)
    for _ in range(sweeps):
        if not ascent.sweep():
            break
    return ascent.offsets.astype(np.float64), ascent.best
