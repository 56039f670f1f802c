"""From what a caller has for an image, such as a path or a PIL image, to what the model takes.

Shapes: N images, C×H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common.names import unknown
from ssl_selmix.finetuning import checks
from ssl_selmix.images.decode import contents, rgb


def is_file_or_picture(item: Any) -> bool:
    """Whether an image is a path or a PIL image, which has to be read or converted first."""
    from PIL import Image

    return isinstance(item, str | Path | Image.Image)


class Paired:
    """Images, of which each is read by itself, and their labels, as a dataset of pairs."""

    def __init__(self, images: Sequence[Any], labels: Any) -> None:
        self.images, self.targets = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.targets[index]


@dataclass(frozen=True)
class Reader:
    """How images become what the model takes.

    Attributes:
        transform: of one image as it was given; of a path, of the RGB image in the file.
        scale: mean and standard deviation per channel, in units of 0..255, for bytes.
        class_names: which labels that are texts mean.
    """

    transform: Callable[[Any], Any] | None = None
    scale: tuple[Sequence[float], Sequence[float]] | None = None
    class_names: Sequence[str] | None = None

    @staticmethod
    def of(transform: Any, preprocessing: Any, class_names: Sequence[str] | None) -> Reader:
        """By the arguments of `finetune`.

        Raises:
            ValueError: the transform is no function.
        """
        if transform is not None and not callable(transform):
            raise ValueError(
                f"transform must be a function of one image, not {transform!r}; give "
                "torchvision.transforms.ToTensor(), say"
            )
        return Reader(transform, checks.scale_of(preprocessing), class_names)

    def image(self, given: Any, name: str) -> Tensor:
        """One image as the model takes it, C×H×W floats.

        Args:
            given: a path, a PIL image, a tensor or an array.
            name: of the argument.

        Raises:
            ValueError: it cannot be read, or is nothing of these.
        """
        image = given
        if isinstance(image, str | Path):
            image = rgb(contents(str(image)), str(image))[0]
        if self.transform is not None:
            image = self.transform(image)
        elif self.scale is not None and is_file_or_picture(image):
            image = np.asarray(image.convert("RGB" if len(self.scale[0]) == 3 else "L"))
        if not isinstance(image, Tensor | np.ndarray):
            raise ValueError(
                f"{name}: the dataset gives {type(image).__name__} and the model takes tensors; "
                "add a transform that converts and normalises (transform=), or give preprocessing="
                '{"mean": ..., "std": ...}'
            )
        found = checks.images_of(image, name)
        if self.takes(found):
            return self.normalised(self.channels_first(found[None], name))[0]
        return found

    def takes(self, images: Tensor) -> bool:
        """Whether these are bytes that it can normalise."""
        return images.dtype is torch.uint8 and self.scale is not None

    def channels_first(self, images: Tensor, name: str) -> Tensor:
        """Bytes N×C×H×W of N×C×H×W, N×H×W×C or, with one channel, N×H×W; a view.

        Raises:
            ValueError: they have not as many channels as the mean has values.
        """
        assert self.scale is not None
        channels = len(self.scale[0])
        if images.ndim == 3 and channels == 1:
            return images[:, None]
        if images.ndim == 4 and images.shape[1] == channels:
            return images
        if images.ndim == 4 and images.shape[3] == channels:
            return images.permute(0, 3, 1, 2)
        raise ValueError(
            f"{name} has images of shape {tuple(images.shape[1:])} and preprocessing a mean of "
            f"{channels} channel(s); give C×H×W or H×W×C with as many"
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Of bytes N×C×H×W, as floats."""
        assert self.scale is not None
        mean, std = (images.new_tensor(s, dtype=torch.float32)[:, None, None] for s in self.scale)
        return (images.float() - mean) / std


def column_of(source: Any, keys: Sequence[str]) -> Sequence[Any] | None:
    """The labels of a Hugging Face set, without its images; None of anything else."""
    columns = getattr(source, "column_names", None)
    if not isinstance(columns, list) or not hasattr(source, "with_format"):
        return None
    plain = source.with_format(None)
    return next((list(plain[key]) for key in keys if key in columns), None)


def text_labels(source: Any, class_names: Sequence[str] | None, name: str) -> Any:
    """Labels that are names of classes as their positions among the names; others as they are.

    Raises:
        ValueError: a name is none of them.
    """
    if class_names is None or isinstance(source, Tensor | Mapping):
        return source
    if isinstance(source, np.ndarray) and source.dtype.kind != "U":
        return source
    labels = list(source)
    if not labels or not all(isinstance(label, str) for label in labels):
        return source
    places = {str(known): k for k, known in enumerate(class_names)}
    for i, label in enumerate(labels):
        if label not in places:
            raise ValueError(f"{name}: {unknown('class', str(label), list(places))} (image {i})")
    return [places[label] for label in labels]
