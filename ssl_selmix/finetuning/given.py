"""The images of a caller as a pool, and checks of what was given.

Shapes: n positions among the images, C×H×W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssl_selmix.common.processes import World
from ssl_selmix.data import Data
from ssl_selmix.data.batch import Batch, SeededDraw, SeededView, Views
from ssl_selmix.data.pool import ReadyViews, in_turn
from ssl_selmix.finetuning import checks
from ssl_selmix.finetuning.reading import (
    Paired,
    Reader,
    column_of,
    is_file_or_picture,
    text_labels,
)
from ssl_selmix.finetuning.surgery import check_linear
from ssl_selmix.models import Classifier


class _Sized(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Images = Tensor | np.ndarray | Sequence[Any] | _Sized | DataLoader[Any]
Labels = Tensor | np.ndarray | Sequence[int] | Sequence[str]
LabeledImages = tuple[Any, Labels] | Sequence[Any] | _Sized | DataLoader[Any]

# What data sets of dictionaries, as those of Hugging Face, call an image and its label.
IMAGE_KEYS = ("image", "pixel_values", "img", "images")
LABEL_KEYS = ("label", "labels", "target", "fine_label")


@dataclass(frozen=True)
class Part:
    """Images of one argument, taken by index, with labels if it has some."""

    take: Callable[[Tensor], Tensor]
    labels: Tensor
    length: int
    name: str = "images"
    whole: Tensor | None = None  # the images, if they are in memory
    source: Any = None  # the data set, if it is one

    def __len__(self) -> int:
        return self.length

    @staticmethod
    def of(source: Any, name: str, reader: Reader, labeled: bool = True) -> Part:
        """The images and labels of an argument called `name`.

        Raises:
            ValueError: it is not what the argument takes.
        """
        if isinstance(source, str | Path):
            raise ValueError(
                f"{name} is the path {str(source)!r}, and images are read by whoever trained the "
                "model; give torchvision.datasets.ImageFolder(PATH, transform=...), say"
            )
        if isinstance(source, DataLoader):  # whose order and batches are not those of SelMix
            source = source.dataset
        if isinstance(source, tuple | list) and not _is_dataset(source, labeled):
            return Part._of_pair(source, name, reader, labeled)
        if isinstance(source, Tensor | np.ndarray):
            if labeled:
                raise ValueError(f"{name} needs labels; give a pair (images, labels)")
            return Part._of_images(source, torch.empty(0).long(), name, reader)
        if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
            raise ValueError(
                f"{name} must be tensors, arrays or a map-style dataset, not "
                f"{type(source).__name__}; images are drawn by their number, which a stream does "
                "not have: an iterable dataset can be stacked into tensors"
            )
        return Part._of_dataset(source, name, reader, labeled)

    @staticmethod
    def _of_dataset(source: Any, name: str, reader: Reader, labeled: bool) -> Part:
        shape: torch.Size | None = None
        if len(source):
            with torch.random.fork_rng([]):  # a dataset may draw an augmentation
                shape = _image(source[0], name, reader).shape
        return Part(
            lambda index: _stacked(source, index, name, reader, shape),
            _labels(source, name, reader) if labeled else torch.empty(0).long(),
            len(source),
            name,
            source=source,
        )

    @staticmethod
    def _of_images(source: Any, labels: Tensor, name: str, reader: Reader) -> Part:
        if reader.transform is not None and len(source):
            shape = reader.image(source[0], name).shape
            items = Paired(source, labels) if len(labels) else source
            take = partial(_stacked, items, name=name, reader=reader, shape=shape)
            return Part(take, labels, len(source), name, source=items)
        images = checks.images_of(source, name)
        if reader.takes(images):
            images = reader.channels_first(images, name)
            return Part(
                lambda index: reader.normalised(rows_of(images, index)), labels, len(images), name
            )
        if images.ndim < 2:
            raise ValueError(
                f"{name} has images of shape {tuple(images.shape)}; give N×C×H×W, N images"
            )
        return Part(lambda index: rows_of(images, index), labels, len(images), name, images)

    @staticmethod
    def _of_pair(source: Sequence[Any], name: str, reader: Reader, labeled: bool) -> Part:
        if not labeled:
            raise ValueError(f"{name} takes images alone, and was given a tuple; leave out labels")
        if len(source) != 2 or not (
            isinstance(source[0], Tensor | np.ndarray) or _are_read(source[0])
        ):
            raise ValueError(
                f"{name} must be a pair (images, labels) of tensors or arrays, of paths or of "
                "PIL images"
            )
        labels = _label_numbers(source[1], name, reader)
        if len(source[0]) != len(labels):
            raise ValueError(
                f"{name} has {len(source[0])} images and labels of shape {tuple(labels.shape)}; "
                "give one class index per image"
            )
        if _are_read(source[0]):
            return Part._of_dataset(Paired(source[0], labels), name, reader, labeled)
        return Part._of_images(source[0], labels, name, reader)

    def sample(self) -> Tensor:
        """The images that are looked at before training: all, or some of a dataset's."""
        if self.whole is not None:  # not copied: it may be most of the memory
            return self.whole
        num = min(len(self), checks.SAMPLE)
        return self.take(torch.linspace(0, len(self) - 1, num).long())


def _is_dataset(source: Sequence[Any], labeled: bool) -> bool:
    """Whether a list has an entry for each image: a path, a PIL image, a pair, a dictionary."""
    if not isinstance(source, list) or not source:
        return False
    return isinstance(source[0], Mapping | tuple) if labeled else is_file_or_picture(source[0])


def _are_read(images: Any) -> bool:
    """Whether images are paths or PIL images."""
    if isinstance(images, np.ndarray):
        return images.ndim == 1 and images.dtype.kind == "U"
    return isinstance(images, list | tuple) and bool(images) and is_file_or_picture(images[0])


def _label_numbers(source: Any, name: str, reader: Reader) -> Tensor:
    return checks.labels_of(text_labels(source, reader.class_names, name), name)


def rows_of(images: Tensor, index: Tensor) -> Tensor:
    """The images at these positions, wherever they lie."""
    return images[index.to(images.device)]


def _stacked(
    source: Any, index: Tensor, name: str, reader: Reader, shape: torch.Size | None
) -> Tensor:
    """Images of a dataset; those in memory were looked at before."""
    images = [_image(source[int(i)], name, reader) for i in index]
    for image, i in zip(images, index, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{name} has images of unequal sizes: {tuple(shape or ())} and, image {int(i)},"
                f" {tuple(image.shape)}; resize them in the dataset's transform"
            )
    batch = torch.stack(images)
    checks.check_numbers(batch, name)
    checks.check_finite(batch, name, index)
    return batch


def _image(item: Any, name: str, reader: Reader) -> Tensor:
    image = item[0] if isinstance(item, tuple | list) else item
    if isinstance(item, Mapping):
        image = _of_keys(item, IMAGE_KEYS, name)
    return reader.image(image, name)


def _of_keys(item: Mapping[Any, Any], keys: Sequence[str], name: str) -> Any:
    for key in keys:
        if key in item:
            return item[key]
    raise ValueError(
        f"{name}: the dataset gives dictionaries with the keys {', '.join(map(str, item))}, and "
        f"none of {', '.join(keys)}; give pairs (image, label), or rename them"
    )


def _label(item: Any, name: str) -> Any:
    if isinstance(item, Mapping):
        return _of_keys(item, LABEL_KEYS, name)
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    raise ValueError(
        f"{name}: the dataset gives {type(item).__name__} without a label; give pairs (image, "
        "label)"
    )


def _labels(source: Any, name: str, reader: Reader) -> Tensor:
    # torchvision's data sets list their targets, others have columns: no need to decode images.
    targets = getattr(source, "targets", None)
    if targets is None:
        targets = column_of(source, LABEL_KEYS)
    changed = getattr(source, "target_transform", None) is not None
    if targets is None or changed or len(targets) != len(source):
        targets = [_label(source[i], name) for i in range(len(source))]
        targets = [t.item() if isinstance(t, Tensor) and t.numel() == 1 else t for t in targets]
    return _label_numbers(targets, name, reader)


def look_at(parts: Mapping[str, Part]) -> None:
    """Refuse images that are no finite floats of one size, in any of the parts.

    Raises:
        ValueError: names the argument, and the image where there is one.
    """
    found, seen = {}, {}
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"{name} is empty; give at least one image")
        images = part.sample()
        checks.check_numbers(images, name)
        checks.check_finite(images, name)
        found[name] = checks.Values.of(images)
        seen[name] = checks.digests(images)
    checks.compare(found)
    for one, other in checks.APART:
        if one in parts and other in parts:
            same = parts[one].source is not None and parts[one].source is parts[other].source
            checks.tell_shared(one, other, seen, same=same)


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
        return ReadyViews([self._augmented(self.take(index)) for _ in views], _unchanged)

    def _augmented(self, images: Tensor) -> Tensor:
        found = (self.augment or _unchanged)(images)
        if not isinstance(found, Tensor) or found.shape != images.shape:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"augment made {given} of a batch of images {tuple(images.shape)}; it must return "
                "as many images of the same size"
            )
        return found

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
    reader: Reader,
) -> Data:
    """The data of a stage named finetune; without test images, those of validation stand for them.

    Raises:
        ValueError: the model or the labels are not what SelMix needs.
    """
    parts = {"labeled": Part.of(labeled, "labeled", reader)}
    parts["validation"] = Part.of(validation, "validation", reader)
    if unlabeled is not None:
        parts["unlabeled"] = Part.of(unlabeled, "unlabeled", reader, labeled=False)
    if test is not None:
        parts["test"] = Part.of(test, "test", reader)
    with torch.random.fork_rng([]):  # a dataset may draw an augmentation
        look_at(parts)
    weight = net.classifier.weight
    pool = GivenPool(tuple(parts.values()), weight.device, weight.dtype, augment)
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
