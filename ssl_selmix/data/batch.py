"""What passes between the images of a run and a method: tasks, draws, batches, views.

Shapes: B labeled and M unlabeled images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ssl_selmix.common.processes import World
from ssl_selmix.metrics import tail_size


@dataclass(frozen=True)
class Task:
    """What an algorithm may know about the problem before it sees an image.

    Shape: labeled_counts (K,) float64; num_unlabeled and num_validation count images; image_shape
    is C×H×W of what the network takes, empty where nobody said it.
    """

    class_names: tuple[str, ...]
    labeled_counts: Tensor
    num_unlabeled: int
    num_validation: int
    image_shape: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def labeled_prior(self) -> Tensor:
        """Class frequencies of the labeled set, (K,), sum 1."""
        return self.labeled_counts / self.labeled_counts.sum()

    @property
    def tail(self) -> list[int]:
        """The rarest tenth of the classes by labeled count (at least one), rarest last."""
        num_tail = tail_size(self.num_classes)
        order = torch.argsort(self.labeled_counts, descending=True, stable=True)
        return [int(k) for k in order[-num_tail:]]


class Views(Protocol):
    """The augmented views of one unlabeled batch, made when first asked for."""

    def __len__(self) -> int:
        """Number of views."""

    def __getitem__(self, view: int) -> Tensor:
        """The view at this position of `Algorithm.views`, M×C×H×W."""

    def select(self, view: int, rows: Tensor) -> Tensor:
        """The same view of some images only; equals `self[view][rows]`."""


@dataclass(frozen=True)
class Batch:
    """One training batch.

    x is the first view of the labeled images, `more_x` are others, for a method whose `batches`
    asked for them. y are their classes, by which images are counted; `target` is what their loss
    is of.

    Shape: x and each of more_x B×C×H×W, y (B,), index_u (M,) positions in the unlabeled pool,
    masses B×K or None, index_x (B,) positions among the labeled images or None.
    """

    x: Tensor
    y: Tensor
    u: Views
    index_u: Tensor
    more_x: tuple[Tensor, ...] = ()
    masses: Tensor | None = None
    index_x: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """The classes (B,), or what each class counts for in the loss of each image, B×K.

        A row of the latter is the weight of an image, 1 on average, on the class that it has.
        Cross-entropy takes either, and multiplies the loss of an image by its weight.
        """
        return self.y if self.masses is None else self.masses


@dataclass(frozen=True)
class Draw:
    """Which images make up the batch of a step.

    Shape: labeled (B,) and unlabeled (M,) positions in the images of `Data`; y (B,) labels;
    index_u (M,) what the batch calls its unlabeled images; masses and index_x as of a batch.
    """

    step: int
    labeled: Tensor
    y: Tensor
    unlabeled: Tensor
    index_u: Tensor
    masses: Tensor | None = None
    index_x: Tensor | None = None


class SeededView(NamedTuple):
    """An augmentation by its name, weak or strong, and the seed of its random numbers.

    The view named plain is the image as it is.
    """

    name: str
    seed: int


class SeededDraw(NamedTuple):
    """A draw, and which views are made of its labeled and of its unlabeled images."""

    draw: Draw
    labeled: tuple[SeededView, ...]
    unlabeled: tuple[SeededView, ...]


class Pool(Protocol):
    """Images by their position, wherever they lie. It knows no split, no stage and no step.

    Shape: index (n,) positions, on the CPU.
    """

    @property
    def device(self) -> torch.device:
        """Where network inputs are delivered."""

    @property
    def shape(self) -> tuple[int, ...]:
        """C×H×W of the images."""

    def take(self, index: Tensor) -> Tensor:
        """The images as they are kept, n×C×H×W, neither augmented nor normalised."""

    def plain(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """Un-augmented network inputs in order, in batches of `size`."""

    def views(self, index: Tensor, views: Sequence[SeededView]) -> Views:
        """Augmented network inputs of the images."""

    def stream(self, draws: Iterable[SeededDraw], world: World | None) -> Iterator[Batch]:
        """The batches that were drawn.

        Of several processes each may make its share of the rows only, and leave the others black.
        """


class Augmentation(Protocol):
    """Draws parameters on the CPU, applies them on the images' device."""

    def draw(self, num: int, generator: torch.Generator) -> Any:
        """Parameters for `num` images; their `rows(index)` are those of a subset."""

    def __call__(self, images: Tensor, params: Any) -> Tensor:
        """The augmented images."""
