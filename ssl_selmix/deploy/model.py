"""Images in, class probabilities out: a finished run's model on a device.

Files pass the decoding, resizing and normalisation of the run's own data set, so that the images
of its test part get the predictions that it was measured by.

Shapes: N images, n of them in a batch, C×H×W pixels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common import config
from ssl_selmix.common.names import unknown
from ssl_selmix.common.processes import default_workers
from ssl_selmix.data.workers import check_settings
from ssl_selmix.deploy import sources
from ssl_selmix.deploy.decoder import Chunk, Taker, chunks, taker_of
from ssl_selmix.deploy.listings import Asked
from ssl_selmix.images.pieces import Held
from ssl_selmix.models.execution import Execution, channels_last, precision_of
from ssl_selmix.runs.folder import RunFolder, Source, open_run
from ssl_selmix.training import machine

BATCH = 128
SETTINGS = ("device", "threads", "precision", "data.workers")


@dataclass
class Reading:
    """The section `data` of a command that reads image files."""

    workers: int | None = None  # processes that read images; None: one for each core; 0: none

    def __post_init__(self) -> None:
        """Refuse a number of workers without meaning."""
        check_settings(None, self.workers)


class Network:
    """A run's model on a device, ready for images and files.

    Raises:
        ValueError: no finished run, an unknown setting, a device that is not there.
    """

    def __init__(self, run: Source | RunFolder, settings: Sequence[str] = ()) -> None:
        opened = run if isinstance(run, RunFolder) else open_run(run)
        chosen, self._reading = _machine(opened, settings)
        self._device = machine.set_up_device(chosen.device)
        if chosen.threads:
            machine.use_threads(chosen.threads)
        self._model = opened.last_model().to(self._device)
        precision = precision_of(chosen.precision, self._device)
        self._model.net.prepared(Execution(precision), self._device)
        self.manifest, self.stage = opened.manifest, opened.stage
        self.class_names = self._model.class_names

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities n×K, float64 on the CPU, of images n×C×H×W in 0..255."""
        x = channels_last(images.to(self._device))
        return self._model(x).double().softmax(1).cpu()  # type: ignore[no-any-return]

    def workers_for(self, files: Sequence[str]) -> int:
        """Processes that read these files: none where starting them takes longer."""
        if self._reading.workers is not None:
            return self._reading.workers
        decoded = bool(files) and isinstance(files[0], Held)
        return default_workers() if len(files) > 2 * BATCH and not decoded else 0

    def of_files(
        self, files: Sequence[str], decoder: Taker, batch: int
    ) -> Iterator[tuple[Chunk, Tensor]]:
        """The files in batches, and the probabilities n×K of those that could be read."""
        for chunk in chunks(decoder, files, batch, self.workers_for(files)):
            probs = self.probabilities(chunk.images) if chunk.files else torch.empty(0, 0)
            yield chunk, probs


def _machine(opened: RunFolder, settings: Sequence[str]) -> tuple[config.Run, Reading]:
    given = config.parse_overrides(settings)
    for key in given:
        if key not in SETTINGS:
            raise ValueError(f"{unknown('setting', key, SETTINGS)}; the run decides all others")
    recorded = {"precision": opened.precision}
    layers = [("the run", recorded), ("command line", given)]
    objects, _ = config.compose({"data": Reading}, layers)
    return objects[""], objects["data"]


def predict(
    run: Source,
    images: Tensor | np.ndarray | Source | Sequence[Source],
    *,
    device: str = "auto",
    batch: int = BATCH,
    workers: int | None = None,
) -> Tensor:
    """Class probabilities N×K, float64, by the model that a run's last stage kept.

    Args:
        run: folder of a finished run.
        images: N×C×H×W in 0..255 as the run's images are, or images of any size and format: a
            file, a folder (in the order of `images.find.find`), a table, arrays, a saved Hugging
            Face set, tar shards (in their own order), or a sequence of these.
        device: as torch names it; auto is a GPU if there is one.
        batch: images that pass the network at once.
        workers: processes that read files; None chooses.

    Raises:
        ValueError: no finished run, images of another shape, a file that is no readable image.
    """
    check_batch(batch)
    settings = [f"device={device}", *([] if workers is None else [f"data.workers={workers}"])]
    network = Network(run, settings)
    if isinstance(images, Tensor | np.ndarray):
        told = network.manifest["preprocessing"] is not None
        parts = _in_range(torch.as_tensor(images), pixels=told).split(batch)
        return torch.cat([network.probabilities(part) for part in parts])
    single = isinstance(images, str | os.PathLike)
    places: Sequence[Source] = [images] if single else images  # type: ignore[list-item,assignment]
    taker = taker_of(network.manifest)
    asked = Asked.of(network.manifest)
    files = sources.of_words([os.fspath(place) for place in places], (), asked).files
    found = []
    for chunk, probs in network.of_files(files, taker, batch):
        if chunk.unreadable:
            raise ValueError(chunk.unreadable[0])
        found.append(probs)
    return torch.cat(found)


def _in_range(images: Tensor, *, pixels: bool) -> Tensor:
    """The images, if they can be so; `pixels` are in 0..255, others as `finetune` was given."""
    if images.ndim != 4:
        raise ValueError(f"images must have the shape N×C×H×W, not {tuple(images.shape)}")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise ValueError("images must be finite, and these have NaN or infinity; leave those out")
    if pixels and images.is_floating_point() and images.numel() and 0 < float(images.max()) <= 1:
        raise ValueError("images are in 0..255, and these are at most 1; multiply them by 255")
    return images


def check_batch(batch: int) -> None:
    """Refuse a batch without images."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, not {batch}")
