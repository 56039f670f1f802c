"""Image files as the network of a finished run takes them: found, decoded, resized, in batches.

A run's manifest says what shape its images had and how files became them: data sets that stream
from files (`data.files`) show the central square of an image; all others, the whole image resized.

Shapes: n images of a batch, C×H×W pixels of a run's images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_selmix.data.workers import (
    Reader,
    Request,
    name_deaths_anywhere,
    naming_deaths,
    start_worker,
)
from ssl_selmix.images.decode import CORRECTIONS, contents, rgb
from ssl_selmix.images.find import shown
from ssl_selmix.images.pieces import Held
from ssl_selmix.runs import released

OTHER_SIZE = "other-sized"
UNTOLD = (
    "finetune, which wrote {}, was not told how files become images; call it with "
    'preprocessing={{"mean": ..., "std": ...}}'
)


class Decoder:
    """Makes of an image file what the data set of a run would have made of it, C×H×W uint8.

    Raises:
        ValueError: the run's images were of a kind that no image file holds.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        if len(manifest["image_shape"]) == 1:
            raise ValueError(
                f"the run was trained on {manifest['image_shape'][0]} features and takes no image "
                "file; pass features to ssl_selmix.load(run).predict, or train on the images with "
                "features=cached"
            )
        self.channels, self.height, self.width = manifest["image_shape"]
        if self.channels not in (1, 3):
            raise ValueError(
                f"the run's images have {self.channels} channels and image files give 1 or 3; "
                "pass tensors to ssl_selmix.load(run).predict"
            )
        how = manifest.get("preprocessing", released.preprocessing(manifest))
        if how is None:
            raise ValueError(UNTOLD.format("the folder"))
        self.crops, self._resize = how["kind"] == "central_square", how["resize"]

    @property
    def how(self) -> str:
        """What becomes of images of any size, in words."""
        if self.crops:
            square = f"{self.width}×{self.height}"
            resized = f"shorter side resized to {self._resize} pixels, bilinear"
            return f"{resized}; central {square} pixels"
        return f"resized to {self.width}×{self.height} pixels, bilinear"

    def told(self, kind: str) -> str:
        """What was done to images of a kind that `__call__` names."""
        more = {"colour": "made greyscale", OTHER_SIZE: self.how}
        return (CORRECTIONS | more).get(kind, "made RGB")

    def __call__(self, file: str) -> tuple[Tensor, list[str]]:
        """The image and what had to be changed about it.

        Raises:
            ValueError: the file is no readable image.
            OSError: the machine cannot read it.
        """
        if self.crops:
            plain = Request([0], (("plain", 0),), 0)
            return Reader([file], self.width).make((plain,))[0][0][0], []
        return self._whole(file)

    def _whole(self, file: str) -> tuple[Tensor, list[str]]:
        from PIL import Image

        size = (self.width, self.height)
        # Twice the size, as for training, so that the filter below has something to average.
        image, notes = rgb(contents(file), file, 2 * max(size))
        if self.channels == 1:
            grey = "greyscale" in notes
            notes = [kind for kind in notes if kind in CORRECTIONS] + ["colour"] * (not grey)
            image = image.convert("L")
        if image.size != size:
            notes.append(OTHER_SIZE)
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).view(self.height, self.width, self.channels)
        return pixels.permute(2, 0, 1), notes


class Vectors:
    """What a `Decoder` is, for a run on features: takes them as they are, D float32."""

    crops = False

    def told(self, kind: str) -> str:
        """Nothing is changed."""
        raise AssertionError(kind)

    def __call__(self, file: str) -> tuple[Tensor, list[str]]:
        """The features, and that nothing was changed about them."""
        assert isinstance(file, Held)
        return torch.from_numpy(file.pixels), []


Taker = Decoder | Vectors


def taker_of(manifest: Mapping[str, Any]) -> Taker:
    """What makes the inputs of a run's network.

    Raises:
        ValueError: the run's images were of a kind that no image file holds.
    """
    return Vectors() if len(manifest["image_shape"]) == 1 else Decoder(manifest)


class Chunk(NamedTuple):
    """Some files: those that could be read, n×C×H×W uint8, and what is wrong with the others."""

    rows: list[int]  # which files of all, those that could be read
    files: list[str]
    images: Tensor
    notes: list[tuple[str, str]]  # kind, file
    unreadable: list[str]


class _Chunks(Dataset[Chunk]):
    def __init__(self, decoder: Taker, names: Sequence[str], size: int) -> None:
        self._decoder, self._names, self._size = decoder, names, size

    def __len__(self) -> int:
        return -(-len(self._names) // self._size)

    def __getitem__(self, index: int) -> Chunk:
        start = index * self._size
        chunk = Chunk([], [], torch.empty(0), [], [])
        images = []
        for row, file in enumerate(islice(self._names, start, start + self._size), start):
            try:
                image, notes = self._decoder(file)
            except (ValueError, OSError) as error:
                chunk.unreadable.append(_reason(error, file))
                continue
            images.append(image)
            chunk.rows.append(row)
            chunk.files.append(file)
            chunk.notes.extend((kind, file) for kind in notes)
        return chunk._replace(images=torch.stack(images)) if images else chunk


def _reason(error: Exception, file: str) -> str:
    if isinstance(error, OSError):
        return f"{shown(file)} cannot be read ({error.strerror or error})"
    return " ".join(str(error).replace(file, shown(file)).split())


def _same(chunk: Chunk) -> Chunk:
    return chunk


def _loader(dataset: _Chunks, workers: int) -> DataLoader[Chunk]:
    return DataLoader(
        dataset,
        batch_size=None,  # a chunk is a batch already
        collate_fn=_same,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=start_worker,
        # Without one, starting workers would advance the generator of the caller.
        generator=torch.Generator(),
    )


def chunks(decoder: Taker, names: Sequence[str], size: int, workers: int) -> Iterator[Chunk]:
    """The files in pieces of `size`, in order, decoded by so many processes (0: by this one).

    Raises:
        WorkerDied: a worker was killed or had no shared memory left.
    """
    dataset = _Chunks(decoder, names, size)
    if decoder.crops:
        # Imported here once, instead of in every worker that is forked: it takes seconds.
        import ssl_selmix.augment.image  # noqa: F401
    with warnings.catch_warnings():
        # More workers than cores are the user's choice.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        stream = iter(_loader(dataset, min(workers, len(dataset))))
    name_deaths_anywhere(workers)
    with naming_deaths(workers):
        yield from stream
