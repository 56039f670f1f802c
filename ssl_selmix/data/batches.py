"""Small images in pickled batches, as CIFAR and the downsampled ImageNet are published.

A pickle may execute anything. Here it can name the parts of numpy's arrays and nothing else.

Shapes: N images of S×S pixels.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Labels = npt.NDArray[np.int64]
# What a pickled array of numbers is made of, under the names that versions of numpy gave it.
ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


def read(files: Sequence[Path], num_classes: int) -> tuple[Tensor, Labels]:
    """The images N×3×S×S uint8 of all files in one array, and their classes (N,) from 0.

    The files number the classes from 1.

    Raises:
        ValueError: names the file, what is wrong with it, and the remedy.
    """
    # As many as the files have room for: the array exists before its last file is read, so that
    # images are in memory once. What is not written to takes no memory.
    whole: Tensor | None = None
    labels: list[Labels] = []
    num, room = 0, sum(file.stat().st_size for file in files)
    for file in files:
        data, of_file = _batch(file, num_classes)
        side = _side(file, data)
        if whole is None:
            whole = torch.empty((room // (3 * side * side) + 1, 3, side, side), dtype=torch.uint8)
        if whole.shape[2] != side:
            raise ValueError(
                f"{file} has images of {side} pixels and {files[0].name} of {whole.shape[2]}; "
                "take files that belong together"
            )
        whole[num : num + len(data)] = torch.from_numpy(data).view(-1, 3, side, side)
        num += len(data)
        labels.append(of_file)
    assert whole is not None
    return whole[:num], np.concatenate(labels)


def _side(file: Path, data: npt.NDArray[np.uint8]) -> int:
    side = math.isqrt(data.shape[1] // 3)
    if 3 * side * side != data.shape[1]:
        raise ValueError(
            f"{file}: data has rows of {data.shape[1]} values, which are no three colours of a "
            "square; take the published file"
        )
    return side


def _batch(file: Path, num_classes: int) -> tuple[npt.NDArray[np.uint8], Labels]:
    content = _unpickled(file)
    if not isinstance(content, dict) or not {"data", "labels"} <= content.keys():
        raise ValueError(f"{file} holds no data and labels; take the published file")
    data, labels = content["data"], np.asarray(content["labels"])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise ValueError(f"{file}: data is no array N×(3·S·S) of uint8; take the published file")
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{file}: {len(data)} images and labels {labels.shape} of {labels.dtype}; take the "
            "published file"
        )
    if len(labels) and not 1 <= labels.min() <= labels.max() <= num_classes:
        whose = "; these are ImageNet's own classes, which the published script merges"
        raise ValueError(
            f"{file}: labels from {labels.min()} to {labels.max()}, and they are 1 to "
            f"{num_classes}{whose if labels.max() <= 1000 else ''}; take the files that it writes"
        )
    return np.ascontiguousarray(data), labels.astype(np.int64) - 1


def _unpickled(file: Path) -> Any:
    try:
        with file.open("rb") as handle:
            return _OfNumbers(handle, encoding="latin1").load()
    except _ForeignError as error:
        raise ValueError(
            f"{file} names {error}, which is no part of an array and may be code; take the "
            "published file"
        ) from error
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read ({error}); take the published file") from error
    except (AttributeError, IndexError, ImportError, MemoryError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); take the published file") from error


class _ForeignError(Exception):
    """A pickle names what is no part of an array."""


class _OfNumbers(pickle.Unpickler):
    """Reads arrays of numbers, lists and texts."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for, if it is a part of an array."""
        if (module, name) not in ALLOWED:
            raise _ForeignError(f"{module}.{name}")
        # The numpy of today has the parts under names of today.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
