"""Shared by the benchmarks: images of random bytes, and real training steps on them.

The content of an image costs nothing: a network, and all but a few augmentations, take as long for
noise as for a photograph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_selmix import algorithm, models
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import processes
from ssl_selmix.common.console import say
from ssl_selmix.data import Data, ImageSet, assemble
from ssl_selmix.models.execution import Execution, placed
from ssl_selmix.splits import Counts, LongTailSplit
from ssl_selmix.training import engine
from ssl_selmix.training.log import StageLog

BLOCK = 10_000  # noise images, of which a large pool is made again and again
FEATURES = 128  # of WRN-28-2
STEPS, AT = 10_000, 6_000  # where every warm-up is over
# What a method would otherwise estimate from a trained model, which there is none of here.
SETTINGS: dict[str, dict[str, Any]] = {
    "darp": {"prior": "labeled"},
    "remixmatch_darp": {"prior": "labeled"},
}


def noise(count: int, size: int, *, seed: int = 0) -> Tensor:
    """Images of random bytes, count×3×size×size."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty((count, 3, size, size), dtype=torch.uint8)
    return images.random_(0, 256, generator=generator)


def source(labels: np.ndarray, num_classes: int, size: int) -> ImageSet:
    """A data set of noise with these labels."""
    names = tuple(str(k) for k in range(num_classes))
    half = (127.5,) * 3
    return ImageSet(noise(len(labels), size), labels, names, mean=half, std=half)


@dataclass(frozen=True)
class Sizes:
    """A long-tailed problem: images of the largest class of each part, and held-out ones."""

    num_classes: int = 10
    size: int = 32  # pixels
    labeled: int = 300
    unlabeled: int = 600
    rho: float = 10.0
    validation: int = 20
    test: int = 10


def make_data(sizes: Sizes | None = None, device: str = "cpu") -> Data:
    """The problem in the form that algorithms see."""
    sizes = sizes or Sizes()
    each = sizes.labeled + sizes.unlabeled + sizes.validation + sizes.test
    labels = np.arange(sizes.num_classes).repeat(each)
    rule = LongTailSplit(
        Counts(sizes.labeled, rho=sizes.rho),
        Counts(sizes.unlabeled, rho=sizes.rho),
        validation=sizes.validation,
        test=sizes.test,
    )
    split = rule.draw(labels, sizes.num_classes, seed=0)
    images = source(labels, sizes.num_classes, sizes.size)
    return assemble(images, split, 0, torch.device(device))[0].at_stage("1-benchmark")


def cheap_net(channels: int, size: int, num_classes: int) -> models.Classifier:
    """As many features as WRN-28-2, from a few averages of the image."""
    cells = (size // 8) ** 2 * channels
    body = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(cells, FEATURES))
    return models.Classifier(body, nn.Linear(FEATURES, num_classes))


def tiled_pool(count: int, size: int) -> Tensor:
    """A pool of noise, in memory of its own for every image."""
    pool, block = torch.empty((count, 3, size, size), dtype=torch.uint8), noise(BLOCK, size)
    for part in pool.split(BLOCK):
        part.copy_(block[: len(part)])
    return pool


def large_source(images: Tensor, num_classes: int = 10) -> ImageSet:
    """A data set that holds these images, classes taking turns."""
    labels = np.arange(len(images), dtype=np.int64) % num_classes
    names, half = tuple(str(k) for k in range(num_classes)), (127.5,) * 3
    return ImageSet(images, labels, names, mean=half, std=half)


def large_split(count: int) -> LongTailSplit:
    """A rule that puts all but a few images of ten classes into the pool."""
    return LongTailSplit(Counts(20), Counts(count // 10 - 60), validation=20, test=20)


class Steps:
    """An algorithm in the middle of its training; every call is one whole step."""

    def __init__(
        self,
        kind: type[Algorithm],
        settings: Mapping[str, Any],
        data: Data,
        net: models.Classifier,
        how: Execution,
    ) -> None:
        common = {"steps": STEPS, "evaluate_every": STEPS, "lr": 1e-3}
        self.algorithm = kind(net, data.task, kind.Config(**(common | dict(settings))))
        placed(self.algorithm, data.device).train()
        net.prepared(replace(how, world=processes.world()))
        nowhere = Path("benchmark-writes-nothing")  # steps alone leave no file
        log = StageLog(nowhere, "b", data.class_names, Console(quiet=True), 1)
        self.trainer = engine.Trainer(self.algorithm, data, nowhere, log, "f")
        self.trainer.step = AT
        self.runner = engine.runner_of(net, say)
        self.batches: Iterator[Any] = self.algorithm.batches(data, AT)

    def validate(self) -> None:
        """What the loop does at a validation, but for files and figures."""
        trainer = self.trainer
        pool = self.algorithm.needs_pool(trainer.step)
        evaluation = engine.evaluate(trainer.teacher, trainer.data, pool=pool)
        self.algorithm.on_validation(evaluation, trainer.context())

    def __call__(self) -> None:
        """One step: views, losses, gradients, optimizer, teacher."""
        with self.algorithm.net.trained_by(self.runner):
            self.trainer.step_once(self.batches)


def network(name: str, data: Data) -> models.Classifier:
    """A new network for the data, the same every time."""
    torch.manual_seed(0)
    return models.build(models.Config(name), data.task.num_classes, data.image_shape[0])


def steps_of(
    name: str,
    data: Data,
    net: models.Classifier,
    settings: Mapping[str, Any],
    how: Execution | None = None,
) -> Steps:
    """The steps of a shipped algorithm, after a validation."""
    kind = algorithm.load(name)[1]
    found = Steps(kind, SETTINGS.get(name, {}) | dict(settings), data, net, how or Execution())
    found.validate()
    return found
