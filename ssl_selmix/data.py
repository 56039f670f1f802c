"""Image pools and endless batches.

All images of a run lie in one uint8 tensor on the training device. A batch is a function of
(seed, stage, step): every random draw comes from a generator made for that purpose, on the CPU,
so that nothing of the loader needs saving and a GPU sees the batches that a CPU would see.

Shapes: N images of the pool, B labeled and M unlabeled images of a batch, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.algorithm import Batch, Task, Views
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.distributed import World
from ssl_selmix.splits import Split, sha256_of_arrays


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class ImageSet:
    """What a dataset file returns: decoded images, labels, and how to normalise and augment.

    Shape: train N×C×H×W uint8, train_labels (N,) int64; test parts alike, or None when the test
    images are to be held out of `train`; extra_unlabeled U×C×H×W uint8 or None. mean and std are
    per channel, in units of 0..255. The last `apart` images of `train` are those of a validation
    part of its own: validation and test images are drawn from them, and no others.
    """

    train: Tensor
    train_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test: Tensor | None = None
    test_labels: np.ndarray | None = None
    extra_unlabeled: Tensor | None = None  # of unknown class; all of them join the unlabeled pool
    weak: Weak = field(default_factory=Weak)
    strong: Strong = field(default_factory=lambda: Strong(weak=Weak()))
    apart: int = 0

    def sha256(self) -> str:
        """Identity of the images: a digest of all pixels."""
        parts = (self.train, self.test, self.extra_unlabeled)
        return sha256_of_arrays(*(images.numpy() for images in parts if images is not None))

    def pools(self, test: Tensor, device: torch.device) -> tuple[type[Data], dict[str, Any]]:
        """What keeps the images of a run, and what it keeps, as arguments of its class.

        Shape: test (T,) positions in `train` of test images that are held out of it.
        """
        images = self.train
        if self.extra_unlabeled is not None:
            images = torch.cat([images, self.extra_unlabeled])
        own = self.test if self.test_labels is not None else None
        test_images = self.train[test] if own is None else own
        return Data, {"images": images.to(device), "test_images": test_images}


@dataclass(frozen=True)
class Diagnostics:
    """True labels of the unlabeled pool, for reports only: no algorithm is ever given this."""

    labels: Tensor

    def of(self, pool_logits: Tensor) -> dict[str, Tensor]:
        """How right the pseudo-labels are; nothing if the pool's labels are unknown (-1)."""
        labels = self.labels.to(pool_logits.device)
        if labels.numel() == 0 or bool((labels < 0).any()):
            return {}
        counts = torch.bincount(labels, minlength=pool_logits.shape[1]).double()
        return {
            "pool_accuracy": (pool_logits.argmax(1) == labels).double().mean(),
            "true_prior": counts / counts.sum(),
        }


@dataclass(frozen=True)
class Draw:
    """Which images make up the batch of a step.

    Shape: labeled (B,) and unlabeled (M,) positions in the images of `Data`; y (B,) labels;
    index_u (M,) what the batch calls its unlabeled images.
    """

    step: int
    labeled: Tensor
    y: Tensor
    unlabeled: Tensor
    index_u: Tensor


class Augmentation(Protocol):
    """Draws parameters on the CPU, applies them on the images' device."""

    def draw(self, num: int, generator: torch.Generator) -> Any:
        """Parameters for `num` images; their `rows(index)` are those of a subset."""

    def __call__(self, images: Tensor, params: Any) -> Tensor:
        """The augmented images."""


class LazyViews:
    """Views of one batch of unlabeled images, each augmented when first asked for."""

    def __init__(self, data: Data, index: Tensor, names: Sequence[str], step: int) -> None:
        self._data, self._index, self._names, self._step = data, index, names, step
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, view: int) -> Tensor:
        if view not in self._made:
            self._made[view] = self.select(view, torch.arange(len(self._index)))
        return self._made[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The view of the images at `rows`, as it would be in the whole batch."""
        augmentation = self._data.augmentation(self._names[view])
        generator = self._data.generator("view", view, self._step)
        params = augmentation.draw(len(self._index), generator)
        rows = rows.cpu()
        images = self._data.take(self._index[rows])
        return self._data.normalise(augmentation(images, params.rows(rows)))


@dataclass(frozen=True)
class Data:
    """The images of a run, split; labels exist for labeled, validation and test images only.

    Shape: images N×C×H×W uint8 on the training device; labeled, unlabeled, validation are index
    vectors into it on the CPU; mean and std C×1×1.
    """

    images: Tensor
    labeled: Tensor
    labels: Tensor
    unlabeled: Tensor
    validation: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    weak: Weak
    strong: Strong
    seed: int = 0
    stage: str = ""

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    @property
    def task(self) -> Task:
        """What algorithms may know."""
        counts = torch.bincount(self.labels, minlength=len(self.class_names)).double()
        return Task(self.class_names, counts, len(self.unlabeled), len(self.validation))

    def at_stage(self, stage: str) -> Data:
        """The same data with the random streams of another stage."""
        return replace(self, stage=stage)

    def shared(self, world: World | None) -> Data:
        """The same data for a process that passes its share of every batch through the network."""
        return self

    def generator(self, *purpose: int | str) -> torch.Generator:
        """A fresh CPU generator for one purpose of this seed and stage."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.stage, *purpose))

    def augmentation(self, name: str) -> Augmentation:
        """The augmentation behind a view's name."""
        if name not in ("weak", "strong"):
            raise ValueError(f"a view is weak or strong, not {name!r}; correct Algorithm.views")
        return self.weak if name == "weak" else self.strong

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions of the pool, uint8."""
        return self.images.index_select(0, index.to(self.device, non_blocking=True))

    def normalise(self, images: Tensor) -> Tensor:
        """Float network input, channels last, from uint8 images."""
        if images.is_contiguous() or images.shape[1] == 1:
            x = images.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)
            return x.contiguous(memory_format=torch.channels_last)
        # Files come channels last. Whole rows of pixels: three channels at a time would take longer
        # than decoding does.
        x = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        rows = x.permute(0, 2, 3, 1).flatten(2)
        width = images.shape[3]
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return x

    def weak_view(self, index: Tensor, purpose: str, step: int) -> Tensor:
        """Weakly augmented network input of the images at `index`."""
        params = self.weak.draw(len(index), self.generator(purpose, step))
        return self.normalise(self.weak(self.take(index), params))

    def views(self, index: Tensor, names: Sequence[str], step: int) -> Views:
        """Augmented views of the images at `index`, by name, made when asked for."""
        return LazyViews(self, index, names, step)

    def batches(
        self, views: Sequence[str], batch: int, mu: int, start: int, *, balanced: bool = False
    ) -> Iterator[Batch]:
        """Endless batches, both streams drawn uniformly with replacement.

        With `balanced`, every class that has labeled images is drawn equally often.

        Raises:
            ValueError: views of unlabeled images are wanted and there are none.
        """
        if views and not len(self.unlabeled):
            raise ValueError("this method needs unlabeled images; use --algo supervised without")
        return self.stream(self._draws(views, batch, mu, start, balanced), views)

    def _draws(
        self, views: Sequence[str], batch: int, mu: int, start: int, balanced: bool
    ) -> Iterator[Draw]:
        size = batch * mu if views else 0
        counts = torch.bincount(self.labels, minlength=len(self.class_names)).double()
        shares = (1 / counts)[self.labels].cumsum(0)
        for step in count(start):
            generator = self.generator("batch", step)
            if balanced:
                u = torch.rand(batch, dtype=torch.float64, generator=generator)
                rows = torch.searchsorted(shares, u * shares[-1], right=True)
                rows.clamp_(max=len(shares) - 1)
            else:
                rows = torch.randint(len(self.labeled), (batch,), generator=generator)
            pool = torch.randint(max(1, len(self.unlabeled)), (size,), generator=generator)
            yield Draw(step, self.labeled[rows], self.labels[rows], self.unlabeled[pool], pool)

    def stream(self, draws: Iterable[Draw], views: Sequence[str]) -> Iterator[Batch]:
        """The batches that were drawn, unlabeled images in these views."""
        for draw in draws:
            yield Batch(
                x=self.weak_view(draw.labeled, "labeled", draw.step),
                y=draw.y.to(self.device, non_blocking=True),
                u=self.views(draw.unlabeled, views, draw.step),
                index_u=draw.index_u.to(self.device, non_blocking=True),
            )

    def plain(self, index: Tensor, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the images at `index`, in order."""
        for part in index.split(size):
            yield self.normalise(self.take(part))

    def test_batches(self, rows: Tensor | None = None, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the test images, or of these rows of them, in order."""
        images = self.test_images if rows is None else self.test_images[rows]
        for part in images.split(size):
            yield self.normalise(part.to(self.device))


def assemble(
    source: ImageSet, split: Split, seed: int, device: torch.device
) -> tuple[Data, Diagnostics]:
    """Put images on the device and separate what training may see from what only reports may."""
    labels = torch.from_numpy(np.asarray(source.train_labels, dtype=np.int64))
    part = {
        name: torch.from_numpy(np.asarray(getattr(split, name), dtype=np.int64))
        for name in ("labeled", "unlabeled", "validation", "test")
    }
    if source.test is None or source.test_labels is None:
        test_labels = labels[part["test"]]
    else:
        test_labels = torch.from_numpy(np.asarray(source.test_labels, dtype=np.int64))
    extra = _where_extra(source)
    unlabeled = torch.cat([part["unlabeled"], extra])
    truth = torch.cat([labels[part["unlabeled"]], torch.full_like(extra, -1)])
    scale = [torch.tensor(v, device=device).view(-1, 1, 1) for v in (source.mean, source.std)]
    kind, pools = source.pools(part["test"], device)
    data = kind(
        **pools,
        labeled=part["labeled"],
        labels=labels[part["labeled"]],
        unlabeled=unlabeled,
        validation=part["validation"],
        validation_labels=labels[part["validation"]].to(device),
        test_labels=test_labels.to(device),
        class_names=source.class_names,
        mean=scale[0],
        std=scale[1],
        weak=source.weak,
        strong=source.strong,
        seed=seed,
    )
    return data, Diagnostics(truth)


def any_order(num: int, device: torch.device) -> Tensor:
    """A fixed order of the pool's images, (num,), which has nothing to do with their classes.

    The pool itself is sorted by true class: whoever ranks its images must not break ties by place.
    """
    return torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)


def _where_extra(source: ImageSet) -> Tensor:
    """Positions of the images without a label, which follow the training images."""
    train, extra = source.train, source.extra_unlabeled
    if extra is None:
        return torch.empty(0, dtype=torch.int64)
    if extra.shape[1:] != train.shape[1:] or extra.dtype != train.dtype:
        raise ValueError(
            f"extra unlabeled images are {tuple(extra.shape[1:])} {extra.dtype} and training "
            f"images {tuple(train.shape[1:])} {train.dtype}; make them alike"
        )
    return torch.arange(len(train), len(train) + len(extra))


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
