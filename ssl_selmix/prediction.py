"""Images in, class probabilities out: a finished run's model on a device.

Files pass the decoding, resizing and normalisation of the run's own data set, so that the images
of its test part get the predictions that it was measured by.

Shapes: N images, n of them in a batch, C×H×W pixels, K classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor
from yaml import YAMLError

from ssl_selmix import config, machine, models, weights
from ssl_selmix.files import check_settings, default_workers
from ssl_selmix.image_files import Chunk, Decoder, chunks, find
from ssl_selmix.plugins import unknown

BATCH = 128
DAMAGED = (
    *(YAMLError, OmegaConfBaseException, LookupError),
    *(TypeError, AttributeError, ValueError, RecursionError),
)
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
    algorithm: str  # of the last finished stage, whose model it is
    finished: int  # stages
    planned: int

    @property
    def precision(self) -> str:
        """In what the body of the network computed when the run was measured."""
        return str(self.settings.get("precision", "fp32"))

    @property
    def stage(self) -> str:
        """Which stage kept the model, in words."""
        missing = (
            " (unfinished: --resume continues the run)" if self.finished < self.planned else ""
        )
        return f"stage {self.finished} of {self.planned}, {self.algorithm}{missing}"


def open_run(run: Source) -> Opened:
    """Read a run's last model and what it says about its images.

    Raises:
        ValueError: the folder is no finished run, or its files are damaged.
    """
    folder = Path(run)
    for name in ("config.yaml", "manifest.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no run of ssl_selmix; it has no {name}")
    with _named(folder / "config.yaml"):
        written = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        settings = config.flatten(written)  # type: ignore[arg-type]
        models.Config(settings["model.name"], settings["model.bn_momentum"])
    with _named(folder / "manifest.json"):
        manifest = _checked(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    if not (folder / "results.json").is_file():
        raise ValueError(f"{folder} has no finished stage yet; --resume the run first")
    with _named(folder / "results.json"):
        stages = json.loads((folder / "results.json").read_text(encoding="utf-8"))["stages"]
        algorithm = str(stages[-1]["algorithm"])
    with torch.random.fork_rng([]):  # the network is first built with random weights
        model = weights.load(folder)
    planned = len(settings.get("algorithms") or stages)
    return Opened(model, settings, manifest, algorithm, len(stages), planned)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Whatever is wrong with what a file says is told with its name.

    Raises:
        ValueError: in place of the error.
    """
    try:
        yield
    except DAMAGED as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{file} is damaged ({why[:120]}); restore it") from error


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that says what shape images have and how they are normalised.

    Raises:
        ValueError: names what cannot be so.
    """
    shape, names = manifest["image_shape"], manifest["class_names"]
    if not isinstance(names, list) or len(names) < 2 or not all(type(n) is str for n in names):
        raise ValueError(f"class_names must be a list of 2 names or more, not {names!r}")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
        raise ValueError(f"image_shape must be three integers, not {shape!r}")
    if min(shape) < 1:
        raise ValueError(f"image_shape must be at least 1, not {shape!r}")
    for key in ("mean", "std"):
        given = manifest[key]
        numbers = isinstance(given, list) and all(type(x) in (int, float) for x in given)
        if not numbers or len(given) != shape[0] or not all(map(math.isfinite, given)):
            raise ValueError(f"{key} must be {shape[0]} number(s), not {given!r}")
    if min(manifest["std"]) <= 0:
        raise ValueError(f"std must be > 0, not {manifest['std']!r}")
    return manifest


def tell(text: str) -> None:
    """A line on the standard error, where it cannot stand between results."""
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


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
        self.manifest, self.stage = opened.manifest, opened.stage
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
    if images.ndim != 4:
        raise ValueError(f"images must have the shape N×C×H×W, not {tuple(images.shape)}")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise ValueError("images must be finite, and these have NaN or infinity; leave those out")
    if images.is_floating_point() and images.numel() and 0 < float(images.max()) <= 1:
        raise ValueError("images are in 0..255, and these are at most 1; multiply them by 255")
    return images


RUN_FILES = ("config.yaml", "manifest.json", "environment.json", "results.json", "log.txt")
STAGE_FILES = ("model.pt", "last.pt", "best.pt", "previous.pt", "metrics.jsonl")


def check_free(path: Path, force: bool) -> None:
    """Refuse to write over what is there without --force, and over some things in any case.

    Raises:
        ValueError: a folder, a device or pipe, what a run consists of, or a file without `force`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    place = path.resolve()  # a link to a file is that file
    for names, run in ((RUN_FILES, place.parent), (STAGE_FILES, place.parent.parent)):
        if place.name in names and place.exists() and (run / "config.yaml").is_file():
            raise ValueError(f"{place} belongs to the run {run}; write to another file")
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} is no regular file; write to one")
    if place.exists() and not force:
        raise ValueError(f"{path} exists and is not overwritten; add --force")


def check_batch(batch: int) -> None:
    """Refuse a batch without images."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1 image, not {batch}")
