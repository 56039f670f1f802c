"""Image pools and endless batches.

All images of a run lie in one uint8 tensor on the training device. A batch is a function of
(seed, stage, step): every random draw comes from a generator made for that purpose, on the CPU,
so that nothing of the loader needs saving and a GPU sees the batches that a CPU would see.

Shapes: N images of the pool, B labeled and M unlabeled images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.common.processes import World
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data.batch import Augmentation, Batch, Draw, Task, Views


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


def any_order(num: int, device: torch.device) -> Tensor:
    """A fixed order of the pool's images, (num,), which has nothing to do with their classes.

    The pool itself is sorted by true class: whoever ranks its images must not break ties by place.
    """
    return torch.randperm(num, generator=torch.Generator().manual_seed(0)).to(device)
