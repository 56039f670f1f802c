"""A long-tailed Gaussian mixture on which semi-supervised methods can be told apart.

A class is a Gaussian around a centre in a few of the pixels; the other pixels are noise. The strong
view adds noise, which tells a learner that single pixels do not matter. Few labeled and many
unlabeled images with the same tail; a balanced test set.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import load
from ssl_selmix.data import Data, ImageSet, assemble
from ssl_selmix.models import Classifier
from ssl_selmix.splits import Counts, LongTailSplit
from ssl_selmix.training import engine
from ssl_selmix.training.log import SilentLog

NUM_CLASSES, SIDE, INFORMATIVE = 4, 6, 16
RHO = 8.0


@dataclass
class Noise:
    """Parameters of `Jitter`: what is added to each image."""

    added: Tensor

    def rows(self, index: Tensor) -> "Noise":
        return Noise(self.added[index])


@dataclass
class Jitter:
    """Adds Gaussian noise of this standard deviation, in units of 0..255."""

    scale: float

    def draw(self, num: int, generator: torch.Generator) -> Noise:
        return Noise(self.scale * torch.randn((num, 1, SIDE, SIDE), generator=generator))

    def __call__(self, images: Tensor, params: Noise) -> Tensor:
        return (images.float() + params.added).clamp(0, 255).to(torch.uint8)


@cache
def make_data(seed: int = 0, pool_reversed: bool = False) -> Data:
    """32, 16, 8, 4 labeled and 320, 160, 80, 40 unlabeled images; 30 and 100 held out per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(NUM_CLASSES, SIDE * SIDE)
    centres[:, :INFORMATIVE] = torch.randn((NUM_CLASSES, INFORMATIVE), generator=generator)
    labels = np.arange(NUM_CLASSES).repeat(500)
    noise = torch.randn((len(labels), SIDE * SIDE), generator=generator)
    pixels = 127.5 + 32 * (centres[torch.from_numpy(labels)] + noise)
    source = ImageSet(
        train=pixels.clamp(0, 255).to(torch.uint8).view(-1, 1, SIDE, SIDE),
        train_labels=labels,
        class_names=tuple("abcd"),
        mean=(127.5,),
        std=(45.0,),
        weak=Jitter(8.0),  # type: ignore[arg-type]
        strong=Jitter(64.0),  # type: ignore[arg-type]
    )
    pool = Counts(320, rho=RHO, reverse=pool_reversed)
    rule = LongTailSplit(Counts(32, rho=RHO), pool, validation=30, test=100)
    split = rule.draw(source.train_labels, NUM_CLASSES, seed=seed)
    return assemble(source, split, seed=seed, device=torch.device("cpu"))[0].at_stage("1-test")


def make_net() -> Classifier:
    """Two linear layers with a batch norm between them, from the global generator."""
    hidden = nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()
    )
    return Classifier(hidden, nn.Linear(32, NUM_CLASSES), rebuild=make_net)


@cache
def recalls(name: str, seed: int = 0, pool_reversed: bool = False, **settings: Any) -> Tensor:
    """Test recall per class (K,) after a short training with these settings, last weights."""
    data = make_data(seed, pool_reversed)
    torch.manual_seed(seed)
    kind = load(name)[1]
    short: dict[str, Any] = {
        "steps": 400,
        "batch": 16,
        "ema": 0.95,
        "evaluate_every": 400,
        "keep": "last",
    }
    algorithm = kind(make_net(), data.task, kind.Config(**(short | settings)))
    with TemporaryDirectory() as folder:
        fitted = engine.fit(algorithm, data, Path(folder), SilentLog(), "f")
    return torch.tensor(engine.measure_test(fitted.algorithm, data)["per_class_recall"])
