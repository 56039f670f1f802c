"""Arrays of images by part: those of MedMNIST's npz files, of npy with CSV, of safetensors.

Shapes: N images, H×W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.data import arrays
from ssl_selmix.data.arrays import LABELS, NAMES, PARTS, plain_key

Array = npt.NDArray[Any]

IMAGES = ("images", "x", "data", "pixels")
MEANINGS = arrays.meanings({"images": IMAGES, "labels": LABELS})
EXPECTED = (
    "expected are train_images and train_labels, perhaps the same of val and test, "
    "unlabeled_images, class_names"
)
LAYOUTS = "images are N×H×W, N×H×W×C or N×C×H×W with C = 1 (grey) or 3 (RGB)"
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Part:
    """One part of the images.

    Shape: images N×H×W×C uint8 with C = 1 or 3, a view of what is in the file; labels (N,) of
    whole numbers or texts, or None.
    """

    images: Array
    labels: Array | None


def read(path: Path, *, to_train: bool = True) -> tuple[dict[str, Part], tuple[str, ...] | None]:
    """The parts of a file by name, and the names of the classes if the file has them.

    Args:
        path: of the file.
        to_train: whether it must have images to train on; else any part will do, and an .npy file
            needs no table of labels.

    Raises:
        ValueError: names the array, what is wrong with it, and the remedy.
    """
    found: dict[tuple[str, str], tuple[str, Array]] = {}
    names: tuple[str, ...] | None = None
    held = arrays.stored(path, "data.file", labeled=to_train)
    for key, array in held.items():
        plain = plain_key(key)
        if plain in NAMES:
            names = _names(path, key, array)
        elif (meant := MEANINGS.get(plain)) is not None:
            if meant in found:
                raise ValueError(f"{path} has both {found[meant][0]} and {key}; leave out one")
            found[meant] = (key, array)
    parts = [part for part in PARTS if (part, "images") in found]
    if not parts or (to_train and "train" not in parts):
        wanted = "images to train on" if to_train else "images"
        raise ValueError(
            f"{path} has no {wanted} (it holds {', '.join(sorted(held)) or 'nothing'}); {EXPECTED}"
        )
    for part, kind in found:
        if kind == "labels" and (part, "images") not in found:
            raise ValueError(f"{path} has {found[part, kind][0]} and no {part}_images; add them")
    return {part: _part(path, part, found) for part in parts}, names


def _names(path: Path, key: str, array: Array) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(
            f"{path}: {key} is {arrays.shape_of(array)} {array.dtype}; class names are one row of "
            "texts, np.array(names, dtype=str)"
        )
    return tuple(array.tolist())


def _part(path: Path, part: str, found: Mapping[tuple[str, str], tuple[str, Array]]) -> Part:
    key, array = found[part, "images"]
    images = channels_last(f"{path}: {key}", array)
    if (part, "labels") not in found:
        return Part(images, None)
    key_of, labels = found[part, "labels"]
    where, given = f"{path}: {key_of}", labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"{where} is {arrays.shape_of(given)}, several labels of an image; give one class of "
            "each, the images that have several are not for this package"
        )
    if labels.ndim == 2:  # as MedMNIST has them
        labels = labels[:, 0]
    if labels.shape != (len(images),):
        raise ValueError(
            f"{where} is {arrays.shape_of(given)} and {key} {arrays.shape_of(array)}; give a label "
            "for each image"
        )
    if labels.dtype.kind not in "iuU":
        raise ValueError(
            f"{where} holds {labels.dtype}; labels are whole numbers from 0 on, or texts"
        )
    return Part(images, labels)


def channels_last(where: str, array: Array) -> Array:
    """The images N×H×W×C, C = 1 or 3, as a view: arrays of three dimensions are grey ones.

    Of four dimensions the last one is that of the channels if it is 1 or 3, or else the second.
    An image of which both could be has a side of 3 pixels or less and is too small to be used.

    Raises:
        ValueError: the array is of another shape, kind, or has no image.
    """
    shape = arrays.shape_of(array)
    if array.dtype != np.uint8:
        scaled = ", after multiplying by 255 what lies in 0..1" if array.dtype.kind == "f" else ""
        raise ValueError(
            f"{where} holds {array.dtype}; images are whole numbers from 0 to 255, write "
            f"array.astype(np.uint8){scaled}"
        )
    if 0 in array.shape:
        raise ValueError(f"{where} is {shape} and has no image; leave it out")
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[3] in CHANNELS:
        return array
    if array.ndim == 4 and array.shape[1] in CHANNELS:
        return array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and 4 in (array.shape[1], array.shape[3]):
        raise ValueError(f"{where} is {shape}, with transparency it seems; {LAYOUTS}")
    raise ValueError(f"{where} is {shape}; {LAYOUTS}")


def decoded(images: Array, size: int | None = None) -> Tensor:
    """RGB images N×3×H×W uint8, as folders of the same images give them.

    Args:
        images: N×H×W×C uint8, C = 1 or 3.
        size: to resize them to, size×size pixels, by the filter that files are resized with.
    """
    num, height, width, channels = images.shape
    if size is None or (height, width) == (size, size):
        rgb = images if channels == 3 else np.broadcast_to(images, (num, height, width, 3))
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)))
    from PIL import Image

    made = np.empty((num, 3, size, size), dtype=np.uint8)
    for i, image in enumerate(images):
        whole = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))
        small = Image.fromarray(whole).resize((size, size), Image.Resampling.BILINEAR)
        made[i] = np.asarray(small).transpose(2, 0, 1)
    return torch.from_numpy(made)
