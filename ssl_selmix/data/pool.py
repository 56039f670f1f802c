"""Images in memory, and the split of a run with its endless batches.

A batch is a function of (seed, stage, step): every random draw comes from a generator made for that
purpose, on the CPU, so that nothing of the loader needs saving and a GPU sees the batches that a
CPU would see. `Data` says which images make up a batch and with which seeds; a `Pool` makes them.

Shapes: N images of the pool, n positions in it, B labeled and M unlabeled images of a batch,
K classes, T test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from ssl_selmix.common.processes import World
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data.batch import (
    Augmentation,
    Batch,
    Draw,
    Pool,
    SeededDraw,
    SeededView,
    Task,
    Views,
)
from ssl_selmix.data.targets import masses_of, on_device


@dataclass(frozen=True)
class Normalisation:
    """Makes float network inputs, channels last, of uint8 images.

    Shape: mean and std C×1×1, in units of 0..255.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Normalisation:
        """By these constants of each channel, on the device where images are normalised."""
        return cls(*(torch.tensor(v, device=device).view(-1, 1, 1) for v in (mean, std)))

    def __call__(self, images: Tensor) -> Tensor:
        """The images n×C×H×W, normalised."""
        if images.is_contiguous() or images.shape[1] == 1:
            x = images.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)
            return x.contiguous(memory_format=torch.channels_last)
        # Images from files are channels-last. Whole rows of W×3 values are normalised at once:
        # broadcasting over 3 channels is slower than decoding the file.
        x = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        rows = x.permute(0, 2, 3, 1).flatten(2)
        width = images.shape[3]
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return x


class ReadyViews:
    """Views whose images exist, each normalised when first asked for."""

    def __init__(self, images: Sequence[Tensor], normalise: Callable[[Tensor], Tensor]) -> None:
        self._images, self._normalise = images, normalise
        self._normalised: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, view: int) -> Tensor:
        if view not in self._normalised:
            self._normalised[view] = self._normalise(self._images[view])
        return self._normalised[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The view of the images at `rows` (m,), m×C×H×W."""
        images = self._images[view]
        return self._normalise(images.index_select(0, rows.to(images.device)))


class LazyViews:
    """Views of images in memory, each augmented when first asked for.

    Shape: index (n,) positions in the pool.
    """

    def __init__(self, pool: MemoryPool, index: Tensor, views: Sequence[SeededView]) -> None:
        self._pool, self._index, self._views = pool, index, views
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, view: int) -> Tensor:
        if view not in self._made:
            self._made[view] = self._make(view)
        return self._made[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The view of the images at `rows` (m,), m×C×H×W, as it would be in the whole batch."""
        return self._make(view, rows.cpu())

    def _make(self, view: int, rows: Tensor | None = None) -> Tensor:
        name, seed = self._views[view]
        if name == "plain":
            index = self._index if rows is None else self._index[rows]
            return self._pool.normalise(self._pool.take(index))
        augmentation = self._pool.augmentation(name)
        # Drawn for all images, so that an image looks the same alone as in the whole batch.
        params = augmentation.draw(len(self._index), torch.Generator().manual_seed(seed))
        index = self._index
        if rows is not None:
            index, params = index[rows], params.rows(rows)
        return self._pool.normalise(augmentation(self._pool.take(index), params))


@dataclass(frozen=True)
class MemoryPool:
    """Images in one uint8 tensor, usually on the device that trains, where they are augmented.

    Shape: images N×C×H×W.
    """

    images: Tensor
    normalise: Normalisation
    weak: Augmentation
    strong: Augmentation

    @property
    def device(self) -> torch.device:
        """Where network inputs are delivered; the images may lie elsewhere."""
        return self.normalise.mean.device

    @property
    def shape(self) -> tuple[int, ...]:
        """C×H×W of the images."""
        return tuple(self.images.shape[1:])

    def augmentation(self, name: str) -> Augmentation:
        """The augmentation behind a view's name, weak or strong."""
        return self.weak if name == "weak" else self.strong

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions, n×C×H×W uint8."""
        index = index.to(self.images.device, non_blocking=True)
        return self.images.index_select(0, index).to(self.device)

    def plain(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """Un-augmented network inputs in order, in batches of `size`."""
        for part in index.split(size):
            yield self.normalise(self.take(part))

    def views(self, index: Tensor, views: Sequence[SeededView]) -> Views:
        """Augmented network inputs of the images, made when asked for."""
        return LazyViews(self, index, views)

    def stream(self, draws: Iterable[SeededDraw], world: World | None) -> Iterator[Batch]:
        """The batches that were drawn; the labeled images are augmented at once."""
        return in_turn(self, draws)


# The pool of training images; test images of its own, if a data set has some: their pool, and (T,)
# their positions in it.
Pools = tuple[Pool, tuple[Pool, Tensor] | None]


def in_turn(pool: Pool, draws: Iterable[SeededDraw]) -> Iterator[Batch]:
    """The batches that were drawn, each made whole when it is asked for."""
    for draw, labeled, unlabeled in draws:
        views = pool.views(draw.labeled, labeled)
        x, *more = (views[view] for view in range(len(labeled)))
        yield Batch(
            x=x,
            y=draw.y.to(pool.device, non_blocking=True),
            u=pool.views(draw.unlabeled, unlabeled),
            index_u=draw.index_u.to(pool.device, non_blocking=True),
            more_x=tuple(more),
            masses=on_device(draw.masses, pool.device),
            index_x=on_device(draw.index_x, pool.device),
        )


@dataclass(frozen=True)
class Data:
    """The images of a run, split; labels exist for labeled, validation and test images only.

    A data set with test images of its own may keep them in a pool of their own. With `world`, each
    of its processes need make only its share of a batch.

    Shape: labeled, unlabeled, validation are vectors of positions in `pool`, test (T,) in
    `test_pool`, on the CPU; labels, weights and shares of the labeled images there as well, mean
    weight 1; validation_labels and test_labels on the device.
    """

    pool: Pool
    labeled: Tensor
    labels: Tensor
    unlabeled: Tensor
    validation: Tensor
    validation_labels: Tensor
    test_pool: Pool
    test: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    seed: int = 0
    stage: str = ""
    world: World | None = None
    weights: Tensor | None = None  # of the labeled loss of every labeled image; None: all are 1
    shares: Tensor | None = None  # n×K, what their annotators say; None: all say the label

    @property
    def device(self) -> torch.device:
        """Where batches are delivered."""
        return self.pool.device

    @property
    def image_shape(self) -> tuple[int, ...]:
        """C×H×W of a network input."""
        return self.pool.shape

    @property
    def task(self) -> Task:
        """What algorithms may know."""
        counts = torch.bincount(self.labels, minlength=len(self.class_names)).double()
        held_out = len(self.validation)
        return Task(self.class_names, counts, len(self.unlabeled), held_out, self.image_shape)

    def at_stage(self, stage: str) -> Data:
        """The same data with the random streams of another stage."""
        return replace(self, stage=stage)

    def shared(self, world: World | None) -> Data:
        """The same data for a process that passes its share of every batch through the network."""
        return replace(self, world=world)

    def generator(self, *purpose: int | str) -> torch.Generator:
        """A fresh CPU generator for one purpose of this seed and stage."""
        return torch.Generator().manual_seed(self._seed_of(*purpose))

    def _seed_of(self, *purpose: int | str) -> int:
        return seed_of(self.seed, self.stage, *purpose)

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions (n,) as they are kept, n×C×H×W, usually uint8."""
        return self.pool.take(index)

    def batches(
        self,
        views: Sequence[str],
        batch: int,
        mu: int | Callable[[int], int],
        start: int,
        *,
        balanced: bool = False,
        labeled_views: Sequence[str] = ("weak",),
    ) -> Iterator[Batch]:
        """Endless batches, both streams drawn uniformly with replacement.

        With `balanced`, every class that has labeled images is drawn equally often. The second and
        further `labeled_views` are in the batch's `more_x`. `mu`, unlabeled images per labeled one,
        may be a function of the step.

        Raises:
            ValueError: views of unlabeled images are wanted and there are none, or a view is
                neither weak nor strong.
        """
        if views and not len(self.unlabeled):
            raise ValueError("this method needs unlabeled images; use --algo supervised without")
        return self.stream(self._draws(views, batch, mu, start, balanced), views, labeled_views)

    def _draws(
        self,
        views: Sequence[str],
        batch: int,
        mu: int | Callable[[int], int],
        start: int,
        balanced: bool,
    ) -> Iterator[Draw]:
        counts = torch.bincount(self.labels, minlength=len(self.class_names)).double()
        shares = (1 / counts)[self.labels].cumsum(0)
        for step in count(start):
            generator = self.generator("batch", step)
            size = batch * (mu if isinstance(mu, int) else mu(step)) if views else 0
            if balanced:
                u = torch.rand(batch, dtype=torch.float64, generator=generator)
                rows = torch.searchsorted(shares, u * shares[-1], right=True)
                rows.clamp_(max=len(shares) - 1)
            else:
                rows = torch.randint(len(self.labeled), (batch,), generator=generator)
            pool = torch.randint(max(1, len(self.unlabeled)), (size,), generator=generator)
            yield self._draw(step, rows, pool)

    def undersampled(self, batch: int, start: int, *, renew: bool = True) -> Iterator[Batch]:
        """Endless batches of labeled images that run through balanced subsets, epoch by epoch.

        A subset has as many images of each class as the rarest of those that have any, drawn
        without replacement (Buda et al., Neural Networks 2018), and every epoch its own order.
        With `renew` every epoch draws another subset, else all have the first one.
        """
        return self.stream(self._undersampled(batch, start, renew), ())

    def _undersampled(self, batch: int, start: int, renew: bool) -> Iterator[Draw]:
        none = torch.empty(0, dtype=torch.int64)
        size = len(self._subset(0))
        for step in count(start):
            first, last = step * batch, (step + 1) * batch  # places in the row of all epochs
            epochs = range(first // size, -(-last // size))
            row = torch.cat([self._epoch(epoch, renew) for epoch in epochs])
            rows = row[first - epochs[0] * size :][:batch]
            yield self._draw(step, rows, none)

    def _draw(self, step: int, rows: Tensor, pool: Tensor) -> Draw:
        """These labeled images and these of the pool, by their places there."""
        masses, y = None, self.labels[rows]
        if self.weights is not None or self.shares is not None:
            masses = masses_of(y, len(self.class_names), *self._of(rows))
        return Draw(step, self.labeled[rows], y, self.unlabeled[pool], pool, masses, rows)

    def _of(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Weights and shares of these labeled images, where they have some."""
        one, other = (None if v is None else v[rows] for v in (self.weights, self.shares))
        return one, other

    def _epoch(self, epoch: int, renew: bool) -> Tensor:
        """The rows of an epoch's subset in its order."""
        rows = self._subset(epoch if renew else 0)
        return rows[torch.randperm(len(rows), generator=self.generator("order", epoch))]

    def _subset(self, number: int) -> Tensor:
        """Rows of labeled images, of every class equally many, sorted by class."""
        shuffled = torch.randperm(len(self.labels), generator=self.generator("subset", number))
        rows = shuffled[self.labels[shuffled].argsort(stable=True)]
        counts = torch.bincount(self.labels)
        place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[self.labels[rows]]
        return rows[place < counts[counts > 0].min()]

    def stream(
        self, draws: Iterable[Draw], views: Sequence[str], labeled_views: Sequence[str] = ("weak",)
    ) -> Iterator[Batch]:
        """The batches that were drawn, the unlabeled and the labeled images in these views.

        Raises:
            ValueError: a view is neither weak nor strong.
        """
        for name in (*views, *labeled_views):
            if name not in ("weak", "strong"):
                raise ValueError(f"a view is weak or strong, not {name!r}; correct Algorithm.views")
        seeded = (self._seeded(draw, views, labeled_views) for draw in draws)
        return self.pool.stream(seeded, self.world)

    def _seeded(
        self, draw: Draw, names: Sequence[str], labeled: Sequence[str] = ("weak",)
    ) -> SeededDraw:
        seeds = (self._seed_of("view", view, draw.step) for view in range(len(names)))
        # The first view of labeled images has the seed it had when there was no other.
        places = ((), *((view,) for view in range(1, len(labeled))))
        own = (self._seed_of("labeled", *place, draw.step) for place in places)
        views = tuple(map(SeededView, names, seeds))
        return SeededDraw(draw, tuple(map(SeededView, labeled, own)), views)

    def plain(self, index: Tensor, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the images at `index`, in order, `size`×C×H×W each."""
        return self.pool.plain(index, size)

    def test_batches(self, rows: Tensor | None = None, size: int = 512) -> Iterator[Tensor]:
        """Un-augmented network inputs of the test images, `size`×C×H×W each, in order.

        Shape: rows (m,) which of the T test images; None: all.
        """
        return self.test_pool.plain(self.test if rows is None else self.test[rows], size)


def any_order(num: int, device: torch.device) -> Tensor:
    """A fixed order of the pool's images, (num,), which has nothing to do with their classes.

    The pool itself is sorted by true class: whoever ranks its images must not break ties by place.
    """
    return torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)
