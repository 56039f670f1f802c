"""What a dataset file returns, and how a run's data are put together from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.augment.augmix import AugMix
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.pool import Data, MemoryPool, Normalisation, Pools
from ssl_selmix.data.targets import normalised
from ssl_selmix.splits import Split


def sha256_of_arrays(*arrays: npt.NDArray[Any]) -> str:
    """Digest of shape, dtype and bytes of each array, the same on every byte order and layout."""
    digest = hashlib.sha256()
    for array in arrays:
        if array.dtype.hasobject:
            raise ValueError(
                f"arrays of Python objects have no stable bytes (dtype {array.dtype}); "
                "hash the files or an array of numbers"
            )
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def joined(one: Tensor, other: Tensor) -> Tensor:
    """Both in one row; not copied if they lie so: a million images are gigabytes."""
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    follows = other.storage_offset() == one.storage_offset() + one.numel()
    if same and follows and one.is_contiguous() and other.is_contiguous():
        return one.as_strided((len(one) + len(other), *one.shape[1:]), one.stride())
    return torch.cat([one, other])


@dataclass(frozen=True)
class ImageSet:
    """What a dataset file returns: decoded images, labels, and how to normalise and augment.

    Shape: train N×C×H×W uint8, train_labels (N,) int64; test parts alike, or None when the test
    images are to be held out of `train`; extra_unlabeled U×C×H×W uint8 or None. mean and std are
    per channel, in units of 0..255. The last `apart` images of `train` are those of a validation
    part of its own: validation and test images are drawn from them, and no others. `groups` says
    which images of `train` stay together, for instance those of one patient. `weights` multiply
    the labeled loss of each image of `train`; `shares` are how many of its annotators say what.
    """

    train: Tensor
    train_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test: Tensor | None = None
    test_labels: np.ndarray | None = None
    extra_unlabeled: Tensor | None = None  # of unknown class; all of them join the unlabeled pool
    weak: Weak = field(default_factory=Weak)
    strong: Strong | AugMix = field(default_factory=lambda: Strong(weak=Weak()))
    apart: int = 0
    groups: np.ndarray | None = None  # (N,) int64
    weights: np.ndarray | None = None  # (N,) float64; NaN where the image has no label
    names: Sequence[str] = ()  # of the images of `train`, if they have some
    shares: np.ndarray | None = None  # N×K float32, rows of sum 1; train_labels are their majority

    def sha256(self) -> str:
        """Identity of the images: a digest of all pixels."""
        parts = (self.train, self.test, self.extra_unlabeled)
        return sha256_of_arrays(*(images.numpy() for images in parts if images is not None))

    def preprocessing(self) -> dict[str, Any]:
        """How an image file becomes what the network takes: whole, resized to the set's size."""
        size = list(self.train.shape[-2:])
        return {"kind": "whole", "size": size, "resize": None, "interpolation": "bilinear"}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """C×H×W."""
        return tuple(self.train.shape[1:])

    def pools(self, device: torch.device) -> Pools:
        """The training images and those of unknown class; test images of its own on the CPU.

        Raises:
            ValueError: images of unknown class are of another kind than the training images.
        """
        images = self.train
        if (extra := self.extra_unlabeled) is not None:
            if extra.shape[1:] != images.shape[1:] or extra.dtype != images.dtype:
                raise ValueError(
                    f"extra unlabeled images are {tuple(extra.shape[1:])} {extra.dtype} and "
                    f"training images {self.image_shape} {images.dtype}; make them alike"
                )
            images = joined(images, extra)
        scale = Normalisation.of(self.mean, self.std, device)
        pool = MemoryPool(images.to(device), scale, self.weak, self.strong)
        if self.test is None or self.test_labels is None:
            return pool, None
        return pool, (replace(pool, images=self.test), torch.arange(len(self.test)))


@dataclass(frozen=True)
class Diagnostics:
    """True labels of the unlabeled pool, for reports only: no algorithm is ever given this."""

    labels: Tensor

    def of(self, pool_logits: Tensor) -> dict[str, Tensor]:
        """How right the pseudo-labels are; nothing if the pool's labels are unknown (-1)."""
        labels = self.labels.to(pool_logits.device)
        if not (found := self.prior(pool_logits.shape[1])):
            return {}
        return {"pool_accuracy": (pool_logits.argmax(1) == labels).double().mean(), **found}

    def prior(self, num_classes: int) -> dict[str, Tensor]:
        """The pool's class frequencies (K,), beside an estimate of them; nothing if unknown."""
        labels = self.labels
        if labels.numel() == 0 or bool((labels < 0).any()):
            return {}
        counts = torch.bincount(labels, minlength=num_classes).double()
        return {"true_prior": counts / counts.sum()}


Source = ImageSet | FileSet | FeatureSet


def names_of(source: Source) -> Sequence[str]:
    """The names of the training images, or their places where they have no names."""
    found = source.train.names if isinstance(source, FileSet) else source.names
    return found or [str(i) for i in range(len(source.train))]


def assemble(
    source: Source, split: Split, seed: int, device: torch.device
) -> tuple[Data, Diagnostics]:
    """Put images on the device and separate what training may see from what only reports may.

    Raises:
        ValueError: the parts of the data set do not fit together.
    """
    labels = torch.from_numpy(np.asarray(source.train_labels, dtype=np.int64))
    part = {
        name: torch.from_numpy(np.asarray(getattr(split, name), dtype=np.int64))
        for name in ("labeled", "unlabeled", "validation", "test")
    }
    pool, own_test = source.pools(device)
    test_pool, test = own_test or (pool, part["test"])
    test_labels = labels[part["test"]]
    if own_test is not None:
        test_labels = torch.from_numpy(np.asarray(source.test_labels, dtype=np.int64))
    num_extra = 0 if source.extra_unlabeled is None else len(source.extra_unlabeled)
    # The images of unknown class follow the training images.
    extra = torch.arange(num_extra) + len(source.train)
    data = Data(
        pool=pool,
        labeled=part["labeled"],
        labels=labels[part["labeled"]],
        unlabeled=torch.cat([part["unlabeled"], extra]),
        validation=part["validation"],
        validation_labels=labels[part["validation"]].to(device),
        test_pool=test_pool,
        test=test,
        test_labels=test_labels.to(device),
        class_names=source.class_names,
        seed=seed,
        weights=normalised(source.weights, part["labeled"]),
        shares=None if source.shares is None else torch.from_numpy(source.shares)[part["labeled"]],
    )
    return data, Diagnostics(torch.cat([labels[part["unlabeled"]], torch.full_like(extra, -1)]))
