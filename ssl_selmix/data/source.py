"""What a dataset file returns, and how a run's data are put together from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data.pool import Data
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


@dataclass(frozen=True)
class ImageSet:
    """What a dataset file returns: decoded images, labels, and how to normalise and augment.

    Shape: train N×C×H×W uint8, train_labels (N,) int64; test parts alike, or None when the test
    images are to be held out of `train`; extra_unlabeled U×C×H×W uint8 or None. mean and std are
    per channel, in units of 0..255. The last `apart` images of `train` are those of a validation
    part of its own: validation and test images are drawn from them, and no others.
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
    strong: Strong = field(default_factory=lambda: Strong(weak=Weak()))
    apart: int = 0

    def sha256(self) -> str:
        """Identity of the images: a digest of all pixels."""
        parts = (self.train, self.test, self.extra_unlabeled)
        return sha256_of_arrays(*(images.numpy() for images in parts if images is not None))

    def preprocessing(self) -> dict[str, Any]:
        """How an image file becomes what the network takes: whole, resized to the set's size."""
        size = list(self.train.shape[-2:])
        return {"kind": "whole", "size": size, "resize": None, "interpolation": "bilinear"}

    def pools(self, test: Tensor, device: torch.device) -> tuple[type[Data], dict[str, Any]]:
        """What keeps the images of a run, and what it keeps, as arguments of its class.

        Shape: test (T,) positions in `train` of test images that are held out of it.
        """
        images = self.train
        if self.extra_unlabeled is not None:
            images = torch.cat([images, self.extra_unlabeled])
        own = self.test if self.test_labels is not None else None
        test_images = self.train[test] if own is None else own
        return Data, {"images": images.to(device), "test_images": test_images}


@dataclass(frozen=True)
class Diagnostics:
    """True labels of the unlabeled pool, for reports only: no algorithm is ever given this."""

    labels: Tensor

    def of(self, pool_logits: Tensor) -> dict[str, Tensor]:
        """How right the pseudo-labels are; nothing if the pool's labels are unknown (-1)."""
        labels = self.labels.to(pool_logits.device)
        if labels.numel() == 0 or bool((labels < 0).any()):
            return {}
        counts = torch.bincount(labels, minlength=pool_logits.shape[1]).double()
        return {
            "pool_accuracy": (pool_logits.argmax(1) == labels).double().mean(),
            "true_prior": counts / counts.sum(),
        }


def assemble(
    source: ImageSet, split: Split, seed: int, device: torch.device
) -> tuple[Data, Diagnostics]:
    """Put images on the device and separate what training may see from what only reports may."""
    labels = torch.from_numpy(np.asarray(source.train_labels, dtype=np.int64))
    part = {
        name: torch.from_numpy(np.asarray(getattr(split, name), dtype=np.int64))
        for name in ("labeled", "unlabeled", "validation", "test")
    }
    if source.test is None or source.test_labels is None:
        test_labels = labels[part["test"]]
    else:
        test_labels = torch.from_numpy(np.asarray(source.test_labels, dtype=np.int64))
    extra = _where_extra(source)
    unlabeled = torch.cat([part["unlabeled"], extra])
    truth = torch.cat([labels[part["unlabeled"]], torch.full_like(extra, -1)])
    scale = [torch.tensor(v, device=device).view(-1, 1, 1) for v in (source.mean, source.std)]
    kind, pools = source.pools(part["test"], device)
    data = kind(
        **pools,
        labeled=part["labeled"],
        labels=labels[part["labeled"]],
        unlabeled=unlabeled,
        validation=part["validation"],
        validation_labels=labels[part["validation"]].to(device),
        test_labels=test_labels.to(device),
        class_names=source.class_names,
        mean=scale[0],
        std=scale[1],
        weak=source.weak,
        strong=source.strong,
        seed=seed,
    )
    return data, Diagnostics(truth)


def _where_extra(source: ImageSet) -> Tensor:
    """Positions of the images without a label, which follow the training images."""
    train, extra = source.train, source.extra_unlabeled
    if extra is None:
        return torch.empty(0, dtype=torch.int64)
    if extra.shape[1:] != train.shape[1:] or extra.dtype != train.dtype:
        raise ValueError(
            f"extra unlabeled images are {tuple(extra.shape[1:])} {extra.dtype} and training "
            f"images {tuple(train.shape[1:])} {train.dtype}; make them alike"
        )
    return torch.arange(len(train), len(train) + len(extra))
