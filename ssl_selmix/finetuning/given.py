"""The images of a caller as a pool, and checks of what was given.

Shapes: n positions among the images, C×H×W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix.common.processes import World
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, SeededDraw, SeededView, Views
from ssl_selmix.data.pool import ReadyViews, in_turn
from ssl_selmix.finetuning.surgery import check_linear
from ssl_selmix.models import Classifier


class _Sized(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Images = Tensor | np.ndarray | _Sized
LabeledImages = tuple[Tensor | np.ndarray, Tensor | np.ndarray] | _Sized


@dataclass(frozen=True)
class Part:
    """Images of one argument, taken by index, with labels if it has some."""

    take: Callable[[Tensor], Tensor]
    labels: Tensor
    length: int

    def __len__(self) -> int:
        return self.length

    @staticmethod
    def of(source: Any, name: str, labeled: bool = True) -> Part:
        """The images and labels of an argument called `name`.

        Raises:
            ValueError: it is not what the argument takes.
        """
        if isinstance(source, tuple):
            return Part._of_pair(source, name, labeled)
        if isinstance(source, Tensor | np.ndarray):
            if labeled:
                raise ValueError(f"{name} needs labels; give a pair (images, labels)")
            images = torch.as_tensor(source)
            return Part(lambda index: _rows(images, index), torch.empty(0).long(), len(images))
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise ValueError(
                f"{name} must be tensors, arrays or a map-style dataset, not "
                f"{type(source).__name__}; an iterable dataset can be stacked into tensors"
            )
        return Part(
            lambda index: torch.stack([_image(source[int(i)]) for i in index]),
            _labels(source) if labeled else torch.empty(0).long(),
            len(source),
        )

    @staticmethod
    def _of_pair(source: tuple[Any, ...], name: str, labeled: bool) -> Part:
        if not labeled:
            raise ValueError(f"{name} takes images alone, and was given a tuple; leave out labels")
        if len(source) != 2 or not all(isinstance(part, Tensor | np.ndarray) for part in source):
            raise ValueError(f"{name} must be a pair (images, labels) of tensors or arrays")
        images, labels = torch.as_tensor(source[0]), torch.as_tensor(source[1]).cpu()
        if len(images) != len(labels) or labels.ndim != 1:
            raise ValueError(
                f"{name} has {len(images)} images and labels of shape {tuple(labels.shape)}; "
                "give one class index per image"
            )
        return Part(lambda index: _rows(images, index), labels.long(), len(images))


def _rows(images: Tensor, index: Tensor) -> Tensor:
    return images[index.to(images.device)]


def _image(item: Any) -> Tensor:
    image = item[0] if isinstance(item, tuple | list) else item
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(
            f"the dataset gives {type(image).__name__} and the model takes tensors; add a "
            "transform that converts and normalises"
        )
    return torch.as_tensor(image)


def _labels(source: Any) -> Tensor:
    # torchvision's data sets list their targets: no need to decode images.
    targets = getattr(source, "targets", None)
    changed = getattr(source, "target_transform", None) is not None
    if targets is None or changed or len(targets) != len(source):
        targets = [int(source[i][1]) for i in range(len(source))]
    return torch.as_tensor(targets).cpu().long()


@dataclass(frozen=True)
class GivenPool:
    """The caller's images, which are network inputs already; positions count through the parts."""

    parts: tuple[Part, ...]
    device: torch.device
    dtype: torch.dtype
    augment: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """C×H×W of the images."""
        return tuple(self.take(torch.arange(1)).shape[1:])

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions, n×C×H×W, in the model's precision on its device."""
        images: Tensor | None = None
        start = 0
        for part in self.parts:
            # By rows, not by a mask: the device would have to be asked how many there are.
            here = ((index >= start) & (index < start + len(part))).nonzero()[:, 0]
            if len(here):
                # Each part by itself: they may come from different devices.
                found = part.take(index[here] - start).to(self.device, self.dtype)
                if images is None:
                    images = found.new_empty((len(index), *found.shape[1:]))
                images[here.to(self.device, non_blocking=True)] = found
            start += len(part)
        assert images is not None
        return images

    def plain(self, index: Tensor, size: int) -> Iterator[Tensor]:
        """The images in order, in batches of `size`."""
        return map(self.take, index.split(size))

    def views(self, index: Tensor, views: Sequence[SeededView]) -> Views:
        """The images with the caller's augmentation, anew for each view."""
        augment = self.augment or _unchanged
        return ReadyViews([augment(self.take(index)) for _ in views], _unchanged)

    def stream(self, draws: Iterable[SeededDraw], world: World | None) -> Iterator[Batch]:
        """The batches that were drawn."""
        return in_turn(self, draws)


def _unchanged(images: Tensor) -> Tensor:
    """Return the images unchanged; the caller has normalised them."""
    return images


def assemble(
    model: nn.Module,
    net: Classifier,
    labeled: LabeledImages,
    validation: LabeledImages,
    unlabeled: Images | None,
    test: LabeledImages | None,
    augment: Callable[[Tensor], Tensor] | None,
    class_names: Sequence[str] | None,
    seed: int,
) -> Data:
    """The data of a stage named finetune; without test images, those of validation stand for them.

    Raises:
        ValueError: the model or the labels are not what SelMix needs.
    """
    parts = {"labeled": Part.of(labeled, "labeled")}
    parts["validation"] = Part.of(validation, "validation")
    if unlabeled is not None:
        parts["unlabeled"] = Part.of(unlabeled, "unlabeled", labeled=False)
    if test is not None:
        parts["test"] = Part.of(test, "test")
    weight = net.classifier.weight
    pool = GivenPool(tuple(parts.values()), weight.device, weight.dtype, augment)
    if len(parts["labeled"]):
        check_linear(model, net, pool.take(torch.arange(1)))
    k = net.classifier.out_features
    _check_labels(parts["labeled"].labels, "labeled", k)
    for name in ("validation", "test") if test is not None else ("validation",):
        _check_judge(parts[name].labels, name, k)
    if class_names is not None and len(class_names) != k:
        raise ValueError(f"class_names has {len(class_names)} names and the model {k} classes")
    starts = torch.tensor([0] + [len(part) for part in parts.values()]).cumsum(0)
    at = dict(zip(parts, (torch.arange(a, b) for a, b in pairwise(starts)), strict=True))
    judge = "validation" if test is None else "test"
    return Data(
        pool=pool,
        labeled=at["labeled"],
        labels=parts["labeled"].labels,
        unlabeled=at.get("unlabeled", torch.empty(0, dtype=torch.int64)),
        validation=at["validation"],
        validation_labels=parts["validation"].labels.to(pool.device),
        test_pool=pool,
        test=at[judge],
        test_labels=parts[judge].labels.to(pool.device),
        class_names=tuple(class_names or map(str, range(k))),
        seed=seed,
        stage="finetune",
    )


def _check_labels(labels: Tensor, name: str, k: int) -> None:
    if len(labels) == 0:
        raise ValueError(f"{name} is empty; give at least one image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= k:
        raise ValueError(
            f"{name} labels run from {low} to {high} and the model has {k} classes; they must lie "
            f"in 0..{k - 1}"
        )


def _check_judge(labels: Tensor, name: str, k: int) -> None:
    """Refuse labels by which the recall of some class cannot be measured.

    Raises:
        ValueError: there are none, one is out of range, or a class has no image.
    """
    _check_labels(labels, name, k)
    missing = torch.nonzero(torch.bincount(labels, minlength=k) == 0)[:, 0].tolist()
    if missing:
        raise ValueError(
            f"classes {missing[:10]} have no {name} image, so their recall is unknown; hold "
            "out some images of every class"
        )
