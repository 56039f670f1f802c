"""The images of a caller behind the interface of `Data`, and checks of what was given.

Shapes: N images, C×H×W pixels, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Views
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import Data
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
class Arrays(Data):
    """The caller's images behind the interface of `Data`; positions count through the parts."""

    parts: tuple[Part, ...] = ()
    dtype: torch.dtype = torch.float32
    augment: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        net: Classifier,
        labeled: LabeledImages,
        validation: LabeledImages,
        unlabeled: Images | None,
        augment: Callable[[Tensor], Tensor] | None,
        class_names: Sequence[str] | None,
        seed: int,
    ) -> Arrays:
        """The parts in one row: labeled, validation, unlabeled images.

        Raises:
            ValueError: the model or the labels are not what SelMix needs.
        """
        parts = [Part.of(labeled, "labeled"), Part.of(validation, "validation")]
        if unlabeled is not None:
            parts.append(Part.of(unlabeled, "unlabeled", labeled=False))
        device = net.classifier.weight.device
        if len(parts[0]):
            first = parts[0].take(torch.arange(1)).to(device, net.classifier.weight.dtype)
            check_linear(model, net, first)
        k = net.classifier.out_features
        _check_labels(parts[0].labels, "labeled", k)
        check_judge(parts[1].labels, "validation", k)
        if class_names is not None and len(class_names) != k:
            raise ValueError(f"class_names has {len(class_names)} names and the model {k} classes")
        starts = torch.tensor([0] + [len(p) for p in parts]).cumsum(0)
        spans = [torch.arange(a, b) for a, b in pairwise(starts)]
        blank = torch.empty(0, device=device)
        return cls(
            images=blank,
            labeled=spans[0],
            labels=parts[0].labels,
            unlabeled=spans[2] if unlabeled is not None else torch.empty(0, dtype=torch.int64),
            validation=spans[1],
            validation_labels=parts[1].labels.to(device),
            test_images=blank,
            test_labels=blank,
            class_names=tuple(class_names or map(str, range(k))),
            mean=blank,
            std=blank,
            weak=Weak(),
            strong=Strong(weak=Weak()),
            seed=seed,
            stage="finetune",
            parts=tuple(parts),
            dtype=net.classifier.weight.dtype,
            augment=augment,
        )

    def take(self, index: Tensor) -> Tensor:
        """The images at these positions, as the model takes them."""
        images: Tensor | None = None
        start = 0
        for part in self.parts:
            # By rows, not by a mask: the device would have to be asked how many there are.
            here = ((index >= start) & (index < start + len(part))).nonzero()[:, 0]
            if len(here):
                # In the model's precision, on its device: parts may come from different ones.
                found = part.take(index[here] - start).to(self.device, self.dtype)
                if images is None:
                    images = found.new_empty((len(index), *found.shape[1:]))
                images[here.to(self.device, non_blocking=True)] = found
            start += len(part)
        assert images is not None
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Nothing: the caller's images are what the model takes."""
        return images

    def weak_view(self, index: Tensor, purpose: str, step: int) -> Tensor:
        """The images with the caller's augmentation."""
        images = self.take(index)
        return images if self.augment is None else self.augment(images)

    def views(self, index: Tensor, names: Sequence[str], step: int) -> Views:
        """The images with the caller's augmentation, once per name."""
        return _Eager([self.weak_view(index, name, step) for name in names])


class _Eager(list[Tensor]):
    def select(self, view: int, rows: Tensor) -> Tensor:
        return self[view][rows]


def _check_labels(labels: Tensor, name: str, k: int) -> None:
    if len(labels) == 0:
        raise ValueError(f"{name} is empty; give at least one image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= k:
        raise ValueError(
            f"{name} labels run from {low} to {high} and the model has {k} classes; they must lie "
            f"in 0..{k - 1}"
        )


def check_judge(labels: Tensor, name: str, k: int) -> None:
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
