"""Features in the place of images: what a network made of them once, with some views of each.

A view that is asked for by a name and a seed is, of each image, one of those that were drawn: the
seed chooses. Where none were drawn, weak and strong views are the plain one.

Shapes: N images, n positions among them, D features, V views of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.common.processes import World
from ssl_selmix.data.batch import Batch, SeededDraw, SeededView, Views
from ssl_selmix.data.pool import Pools, in_turn

VIEWS = ("weak", "strong")


class Rows:
    """Rows of one or several tensors one after the other, of which none is copied.

    Shape: parts n_i×..., all of one dtype; N = sum of n_i.
    """

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __add__(self, other: Rows) -> Rows:
        return Rows(*self.parts, *other.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return tuple(self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        return Rows(*(part.to(device) for part in self.parts))

    def take(self, index: Tensor, view: Tensor | None = None) -> Tensor:
        """The rows at these positions, n×...; of several views of each, the one of this number.

        Shape: index (n,), view (n,) or None, on the CPU.
        """
        if len(self.parts) == 1:
            return _chosen(self.parts[0], index, view)
        first = self.parts[0]
        found = first.new_empty(len(index), *first.shape[1 if view is None else 2 :])
        start = 0
        for part in self.parts:
            here = ((index >= start) & (index < start + len(part))).nonzero()[:, 0]
            chosen = None if view is None else view[here]
            found[here.to(found.device)] = _chosen(part, index[here] - start, chosen)
            start += len(part)
        return found


def _chosen(rows: Tensor, index: Tensor, view: Tensor | None) -> Tensor:
    if view is not None:
        index = index * rows.shape[1] + view
        rows = rows.flatten(0, 1)
    return rows.index_select(0, index.to(rows.device, non_blocking=True))


class FeatureViews:
    """Views of a batch of features, each gathered when first asked for.

    Shape: index (n,) positions in the pool.
    """

    def __init__(self, pool: FeaturePool, index: Tensor, views: Sequence[SeededView]) -> None:
        self._pool, self._index, self._views = pool, index, views
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, view: int) -> Tensor:
        if view not in self._made:
            self._made[view] = self._pool.view(self._index, self._views[view])
        return self._made[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The view of the images at `rows` (m,), m×D, as it would be in the whole batch."""
        return self._pool.view(self._index, self._views[view], rows.cpu())


@dataclass(frozen=True)
class FeaturePool:
    """Features by their position, in memory or in a mapped file.

    Shape: features N×D; drawn N×V×D by the name of the view.
    """

    features: Rows
    drawn: Mapping[str, Rows]
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,)."""
        return self.features.shape

    def take(self, index: Tensor) -> Tensor:
        """The plain features as they are kept, n×D, in float32."""
        return self.features.take(index).to(self.device, torch.float32)

    def plain(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """Plain network inputs in order, in batches of `size`."""
        for part in index.split(size):
            yield self._input(self.features.take(part))

    def view(self, index: Tensor, view: SeededView, rows: Tensor | None = None) -> Tensor:
        """Of each image one of the views drawn, n×D; only that of `rows` (m,), if given."""
        drawn = self.drawn.get(view.name)
        if drawn is None:
            return self._input(self.features.take(index if rows is None else index[rows]))
        # Chosen for all images, so that an image looks the same alone as in the whole batch.
        generator = torch.Generator().manual_seed(view.seed)
        which = torch.randint(drawn.shape[0], (len(index),), generator=generator)
        if rows is not None:
            index, which = index[rows], which[rows]
        return self._input(drawn.take(index, which))

    def _input(self, features: Tensor) -> Tensor:
        return features.to(self.device, torch.float32)

    def views(self, index: Tensor, views: Sequence[SeededView]) -> Views:
        """Views of the images, gathered when asked for."""
        return FeatureViews(self, index, views)

    def stream(self, draws: Iterable[SeededDraw], world: World | None) -> Iterator[Batch]:
        """The batches that were drawn."""
        return in_turn(self, draws)


@dataclass(frozen=True)
class FeatureSet:
    """Features as a data set: what an `ImageSet` is for images.

    Shape: train N×D, train_labels (N,); views N×V×D by name, of `train` and then of
    `extra_unlabeled`; test T×D and test_labels (T,), or None.
    """

    train: Rows
    train_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    views: Mapping[str, Rows] = field(default_factory=dict)
    test: Rows | None = None
    test_labels: npt.NDArray[np.int64] | None = None
    extra_unlabeled: Rows | None = None  # of unknown class
    apart: int = 0
    groups: npt.NDArray[np.int64] | None = None  # as of an ImageSet
    weights: npt.NDArray[np.float64] | None = None  # as of an ImageSet
    shares: npt.NDArray[np.float32] | None = None  # as of an ImageSet
    digest: str = ""  # of all numbers
    mean: tuple[float, ...] = (0.0,)  # the network takes features as they are
    std: tuple[float, ...] = (1.0,)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(D,)."""
        return self.train.shape

    def sha256(self) -> str:
        """Identity of the features."""
        return self.digest

    def preprocessing(self) -> dict[str, Any]:
        """No image file becomes what this network takes."""
        return {"kind": "features", "size": list(self.image_shape)}

    def pools(self, device: torch.device) -> Pools:
        """The features of training images and of those of unknown class; those to test on."""
        features = self.train if self.extra_unlabeled is None else self.train + self.extra_unlabeled
        drawn = self.views
        if _fits(features.nbytes + sum(rows.nbytes for rows in drawn.values()), device):
            features = features.to(device)
            drawn = {name: rows.to(device) for name, rows in drawn.items()}
        pool = FeaturePool(features, drawn, device)
        if self.test is None:
            return pool, None
        return pool, (FeaturePool(self.test, {}, device), torch.arange(len(self.test)))


def _fits(nbytes: int, device: torch.device) -> bool:
    """Whether a GPU should keep the features; otherwise each batch travels there."""
    return device.type == "cuda" and nbytes <= torch.cuda.mem_get_info(device)[0] // 2
