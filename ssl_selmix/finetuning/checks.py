"""What can be wrong with the images and labels of a caller, told with the argument's name.

Shapes: N images, C×H×W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common.console import warn
from ssl_selmix.common.names import unknown

ROWS = 1024  # images that are looked at together
SAMPLE = 256  # images of a dataset that are looked at before training
MOST = 255 * 3.0  # a mean or standard deviation of pixels in 0..255
FAR, ABSURD = 2.5, 20.0  # ratios of two standard deviations that are told, and refused


def images_of(source: Any, name: str) -> Tensor:
    """An argument's images as a tensor, or one image of a dataset.

    Raises:
        ValueError: they are no numbers.
    """
    try:
        return tensor_of(source)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(source, "dtype", type(source).__name__)
        raise ValueError(
            f"{name} has images of {kind}, which are no numbers of one size; give a tensor or an "
            "array of floats N×C×H×W"
        ) from error


def tensor_of(source: Any) -> Tensor:
    """A tensor, without a copy where torch can take the array as it is.

    Raises:
        TypeError: it is no array of numbers, as do ValueError and RuntimeError.
    """
    if isinstance(source, np.ndarray) and source.dtype.kind in "biuf":
        # torch takes neither another byte order nor an array that runs backwards.
        if not source.dtype.isnative or min(source.strides, default=0) < 0:
            source = np.array(source, dtype=source.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():  # of arrays that may not be written: nothing writes here
            warnings.simplefilter("ignore", UserWarning)
            return torch.as_tensor(source)
    return torch.as_tensor(source)


def labels_of(source: Any, name: str) -> Tensor:
    """Class indices (N,) int64 on the CPU.

    Raises:
        ValueError: they are no whole numbers, or more than one per image.
    """
    try:
        labels = tensor_of(source).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} has labels that are no numbers, such as {_first(source)!r}; give each image "
            "the index of its class, from 0, or name the classes with class_names"
        ) from error
    if labels.ndim != 1:
        raise ValueError(
            f"{name} has labels of shape {tuple(labels.shape)}; give one class index per image"
        )
    if labels.dtype is torch.bool or labels.is_complex():
        raise ValueError(f"{name} has labels of {labels.dtype}; give class indices, from 0")
    if labels.is_floating_point():
        wrong = ~(labels.isfinite() & (labels == labels.round()))
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name} has labels that are no whole numbers, the first is {labels[at]:g} of "
                f"image {at}; give class indices, from 0"
            )
    return labels.long()


def _first(source: Any) -> Any:
    try:
        return next(iter(np.ravel(np.asarray(source, dtype=object))), source)
    except (TypeError, ValueError):
        return source


def check_numbers(images: Tensor, name: str) -> None:
    """Refuse images of integers, which no network takes, and other dtypes that are no floats."""
    if not images.is_floating_point():
        raise ValueError(
            f"{name} has images of {str(images.dtype).removeprefix('torch.')}; give floats, "
            "normalised as the model was trained (a model that does so itself takes .float()), or "
            'bytes and preprocessing={"mean": ..., "std": ...}'
        )


def check_finite(images: Tensor, name: str, positions: Tensor | None = None) -> None:
    """Refuse images with NaN or inf; says which is the first, and how many there are.

    Args:
        images: N×C×H×W.
        name: of the argument.
        positions: (N,) in the argument; None: all of it, in order.
    """
    bad = torch.cat([~rows.flatten(1).isfinite().all(1) for rows in images.split(ROWS)])
    if bool(bad.any()):
        at = bad.nonzero()[:, 0].cpu()
        first = int(at[0] if positions is None else positions[at[0]])
        raise ValueError(
            f"{name} has NaN or inf in {len(at)} of {len(images)} images, the first is image "
            f"{first}; correct them (pixels divided by a standard deviation of 0 are a common "
            "cause)"
        )


@dataclass(frozen=True)
class Values:
    """How the pixels of some images are distributed."""

    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float

    @staticmethod
    def of(images: Tensor) -> Values:
        """Of N images, N×C×H×W, summed in double precision."""
        total = square = 0.0
        for rows in images.split(ROWS):
            wide = rows.double()
            total, square = total + float(wide.sum()), square + float((wide * wide).sum())
        mean = total / images.numel()
        std = math.sqrt(max(0.0, square / images.numel() - mean * mean))
        low, high = float(images.min()), float(images.max())
        return Values(tuple(images.shape[1:]), low, high, mean, std)

    def __str__(self) -> str:
        """Range, mean and standard deviation."""
        return f"{self.low:.3g} to {self.high:.3g}, mean {self.mean:.3g}, std {self.std:.3g}"


def compare(found: Mapping[str, Values]) -> None:
    """Refuse images of another size or of absurdly other values than the labeled ones.

    What is merely unusual, as another normalisation and a test set in the dark both are, is told.

    Raises:
        ValueError: names both arguments and their values.
    """
    ours = found["labeled"]
    for name, theirs in found.items():
        if theirs.shape != ours.shape:
            raise ValueError(
                f"{name} has images {_size(theirs)} and labeled {_size(ours)}; give all of one size"
            )
        spreads = sorted((ours.std, theirs.std))
        ratio = spreads[1] / max(spreads[0], 1e-12) if spreads[1] else 1.0
        apart = abs(ours.mean - theirs.mean) / max(spreads[1], 1e-12)
        told = f"the pixels of {name} ({theirs}) are far from those of labeled ({ours})"
        if ratio > ABSURD or (apart > ABSURD and spreads[1]):
            raise ValueError(f"{told}; scale and normalise all of them alike")
        if ratio > FAR or (apart > FAR and spreads[1]):
            warn(f"{told}; were they normalised alike?")


def scale_of(given: Any) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation per channel in units of 0..255, if a caller gave sound ones."""
    if not isinstance(given, Mapping) or not {"mean", "std"} <= set(given):
        return None
    try:
        mean, std = (_per_channel(key, given[key], len(given["mean"])) for key in ("mean", "std"))
    except (TypeError, ValueError):
        return None  # which `preprocessing_of` refuses
    return (mean, std) if mean and min(std) > 0 else None


def preprocessing_of(given: Any, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """What manifest.json says of how files become images, by a caller's mean, std and crop.

    Args:
        given: per channel, of pixels in 0..1; None: the caller does not tell.
        shape: C×H×W of the images.

    Raises:
        ValueError: a key is unknown or missing, or a value cannot be.
    """
    if given is None:
        return None
    keys = ("mean", "std", "crop")
    if not isinstance(given, Mapping) or not {"mean", "std"} <= set(given):
        raise ValueError(
            f'preprocessing must be {{"mean": ..., "std": ...}}, not {given!r}; add "crop": True '
            "for the central square"
        )
    for key in given:
        if key not in keys:
            raise ValueError(unknown("key of preprocessing", str(key), keys))
    if len(shape) != 3:
        raise ValueError(f"preprocessing is for images C×H×W, and these are {shape}; omit it")
    mean, std = (_per_channel(key, given[key], shape[0]) for key in ("mean", "std"))
    if min(std) <= 0:
        raise ValueError(f"preprocessing: std must be > 0, not {given['std']}; omit it for none")
    crop = given.get("crop", False)
    if not isinstance(crop, bool):
        raise ValueError(f"preprocessing: crop must be True or False, not {crop!r}")
    if crop and shape[1] != shape[2]:
        raise ValueError(
            f"preprocessing: crop is for square images, and these are {shape}; omit it"
        )
    return {
        "kind": "central_square" if crop else "whole",
        "size": list(shape[1:]),
        "resize": round(shape[2] * 256 / 224) if crop else None,
        "interpolation": "bilinear",
        "mean": mean,
        "std": std,
    }


def _per_channel(key: str, given: Any, channels: int) -> list[float]:
    """In units of 0..255."""
    try:
        values = [255 * float(value) for value in given]
    except (TypeError, ValueError):
        values = []
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise ValueError(
            f"preprocessing: {key} must be {channels} number(s), one a channel, not {given!r}; "
            "give those of the transform, for pixels in 0..1"
        )
    if max(map(abs, values)) > MOST:
        raise ValueError(
            f"preprocessing: {key} is of pixels in 0..1, and {given!r} is not; divide it by 255"
        )
    return values


# Of two parts that should share no image, the one whose figures then are too good, or whose images
# choose too well, comes first.
APART = {
    ("validation", "labeled"): "gains are estimated and weights chosen on images that are trained "
    "on, where a model is right too often; hold other images out",
    ("test", "labeled"): "figures on test look better than they are; hold other images out",
    ("test", "validation"): "figures on test look better than they are; hold other images out",
    ("validation", "unlabeled"): "they take part in training; leave them out of unlabeled",
    ("test", "unlabeled"): "they take part in training; leave them out of unlabeled, unless the "
    "images to be judged are known beforehand",
}


def digests(images: Tensor) -> list[bytes]:
    """Of the pixels of each of N images, N×C×H×W."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for rows in images.split(ROWS)
        for image in rows.detach().cpu().contiguous().view(torch.uint8).numpy()
    ]


def tell_shared(one: str, other: str, seen: Mapping[str, Sequence[bytes]], *, same: bool) -> None:
    """Say how many images of one part are in another that they should not be in.

    Args:
        one: the part whose images should be its own.
        other: the other one.
        seen: digests of the images of each part that were looked at.
        same: whether both are one data set, whose images may come out otherwise each time.
    """
    taken = set(seen[other])
    num = sum(digest in taken for digest in seen[one])
    if same or num:
        told = f"all {one} images" if same else f"{num} of {len(seen[one])} {one} images"
        warn(f"{told} are in {other} as well: {APART[one, other]}")


def _size(values: Values) -> str:
    return "×".join(map(str, values.shape)) or "without pixels"
