"""Draws image pairs by a distribution over pairs of classes."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassPairSampler:
    """Draws image pairs (i, j) by a distribution over class pairs.

    Images are sorted by class once, so that a batch is three vectorised draws. A partner class
    without pseudo-labelled images uses its labeled images; a class with neither, or a first class
    without labeled images, loses its mass to the other pairs.

    Shape: labels (n1,), pseudo_labels (n2,), weights (n2,) of the pool's images within their
    class, or None for equal ones; distribution K×K (rows: class of the first image).
    """

    def __init__(
        self,
        labels: Tensor,
        pseudo_labels: Tensor,
        num_classes: int,
        weights: Tensor | None = None,
    ) -> None:
        pool = torch.cat([labels, pseudo_labels])
        source = torch.cat([torch.zeros_like(labels), torch.ones_like(pseudo_labels)])
        self._first = _ByClass(labels, torch.arange(len(labels)), num_classes)
        # Labeled images stand in the partner index only where a class has no pseudo-label.
        missing = torch.bincount(pseudo_labels, minlength=num_classes) == 0
        usable = (source == 1) | missing[pool]
        if weights is not None:
            weights = torch.cat([torch.ones(len(labels), dtype=torch.float64), weights.double()])
            weights = weights[usable]
        positions = torch.arange(len(pool))[usable]
        self._second = _ByClass(pool[usable], positions, num_classes, weights)
        self.num_classes = num_classes
        self.refresh(torch.ones(num_classes, num_classes))

    def refresh(self, distribution: Tensor) -> Tensor:
        """Draw from this distribution, K×K, from now on; returns what of it can be drawn."""
        possible = self._first.present[:, None] & self._second.present[None, :]
        kept = distribution.double().cpu() * possible
        if float(kept.sum()) <= 0:
            kept = possible.double()
        kept = kept / kept.sum()
        self._cumulative = kept.flatten().cumsum(0)
        return kept

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of first images (size,) in the labeled set and of partners (size,).

        Partner positions count the labeled images first and the pool after them.
        """
        u = torch.rand(3, size, dtype=torch.float64, generator=generator)
        pair = torch.searchsorted(self._cumulative, u[0] * self._cumulative[-1], right=True)
        pair.clamp_(max=len(self._cumulative) - 1)
        first = self._first.draw(pair // self.num_classes, u[1])
        return first, self._second.draw(pair % self.num_classes, u[2])


class _ByClass:
    """Positions grouped by class, so that one uniform number picks an image of a class."""

    def __init__(
        self, labels: Tensor, positions: Tensor, num_classes: int, weights: Tensor | None = None
    ) -> None:
        order = torch.argsort(labels, stable=True)
        self._positions = positions[order]
        if weights is None:
            weights = torch.ones(len(labels), dtype=torch.float64)
        counts = torch.bincount(labels, minlength=num_classes)
        self.present = counts > 0
        self._last = counts.cumsum(0) - 1
        self._first = self._last - counts + 1
        self._sums = weights[order].cumsum(0)
        ends = torch.cat([torch.zeros(1, dtype=torch.float64), self._sums])
        self._low, self._high = ends[self._first], ends[self._last + 1]

    def draw(self, classes: Tensor, u: Tensor) -> Tensor:
        low, high = self._low[classes], self._high[classes]
        place = torch.searchsorted(self._sums, low + u * (high - low), right=True)
        # Rounding must not push a draw into the class before or after.
        place = torch.minimum(torch.maximum(place, self._first[classes]), self._last[classes])
        return self._positions[place]
