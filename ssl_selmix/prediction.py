"""Images in, class probabilities out: a finished run's model on a device.

Files pass the decoding, resizing and normalisation of the run's own data set, so that the images
of its test part get the predictions that it was measured by.

Shapes: N images, n of them in a batch, C×H×W pixels, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from ssl_selmix import config, machine, weights
from ssl_selmix.files import check_settings, default_workers
from ssl_selmix.image_files import Chunk, Decoder, chunks, find
from ssl_selmix.plugins import unknown

BATCH = 128
SETTINGS = ("device", "threads", "precision", "data.workers")

Source = str | os.PathLike[str]


@dataclass
class Reading:
    """The section `data` of a command that reads image files."""

    workers: int | None = None  # processes that read images; None: one for each core; 0: none

    def __post_init__(self) -> None:
        """Refuse a number of workers without meaning."""
        check_settings(None, self.workers)


@dataclass(frozen=True)
class Opened:
    """A finished run: its model in fp32 on the CPU, its settings by dotted key, its manifest."""

    model: weights.Predictor
    settings: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def precision(self) -> str:
        """In what the body of the network computed when the run was measured."""
        return str(self.settings.get("precision", "fp32"))


def open_run(run: Source) -> Opened:
    """Read a run's last model and what it says about its images.

    Raises:
        ValueError: the folder is no finished run, or its files are damaged.
    """
    folder = Path(run)
    try:
        with torch.random.fork_rng([]):  # the network is first built with random weights
            model = weights.load(folder)
        written = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        manifest = json.loads((folder / "manifest.json").read_text())
        return Opened(model, config.flatten(written), manifest)  # type: ignore[arg-type]
    except (YAMLError, OmegaConfBaseException, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config.yaml or manifest.json in {folder} is damaged ({type(error).__name__}); "
            "restore it"
        ) from error


class Network:
    """A run's model on a device, ready for images and files.

    Raises:
        ValueError: no finished run, an unknown setting, a device that is not there.
    """

    def __init__(self, run: Source, settings: Sequence[str] = ()) -> None:
        opened = open_run(run)
        chosen, self._reading = _machine(opened, settings)
        self._device = machine.set_up_device(chosen.device)
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        self._model = opened.model.to(self._device)
        self._model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        precision = machine.precision_of(chosen.precision, self._device)
        self._model.net.autocast = machine.DTYPES[precision]
        self.manifest = opened.manifest
        self.class_names = self._model.class_names

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities n×K, float64 on the CPU, of images n×C×H×W in 0..255."""
        x = images.to(self._device).contiguous(memory_format=torch.channels_last)
        return self._model(x).double().softmax(1).cpu()  # type: ignore[no-any-return]

    def workers_for(self, num: int) -> int:
        """Processes that read so many files: none where starting them takes longer."""
        if self._reading.workers is not None:
            return self._reading.workers
        return default_workers() if num > 2 * BATCH else 0

    def of_files(
        self, files: Sequence[str], decoder: Decoder, batch: int
    ) -> Iterator[tuple[Chunk, Tensor]]:
        """The files in batches, and the probabilities n×K of those that could be read."""
        for chunk in chunks(decoder, files, batch, self.workers_for(len(files))):
            probs = self.probabilities(chunk.images) if chunk.files else torch.empty(0, 0)
            yield chunk, probs


def _machine(opened: Opened, settings: Sequence[str]) -> tuple[config.Run, Reading]:
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
        images: N×C×H×W in 0..255 as the run's images are, or image files of any size and format:
            a file, a folder (in the order of `image_files.find`), or a sequence of both.
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
        parts = _in_range(torch.as_tensor(images)).split(batch)
        return torch.cat([network.probabilities(part) for part in parts])
    single = isinstance(images, str | os.PathLike)
    files, _ = find([images] if single else images)  # type: ignore[list-item,arg-type]
    found = []
    for chunk, probs in network.of_files(files, Decoder(network.manifest), batch):
        if chunk.unreadable:
            raise ValueError(chunk.unreadable[0])
        found.append(probs)
    return torch.cat(found)


def _in_range(images: Tensor) -> Tensor:
    if images.is_floating_point() and images.numel() and 0 < float(images.max()) <= 1:
        raise ValueError("images are in 0..255, and these are at most 1; multiply them by 255")
    return images


def check_batch(batch: int) -> None:
    """Refuse a batch without images."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, not {batch}")
