"""What every data set promises: `ssl-selmix check ./my_data.py`."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import config, plugins
from ssl_selmix.contract.subjects import Broken, Skipped, demand, fit, subject
from ssl_selmix.data import Data, ImageSet
from ssl_selmix.data.source import Source
from ssl_selmix.models.backbones import FEATURES
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import NO_PRESET, Plan, Request
from ssl_selmix.splits import PARTS, LongTailSplit


@dataclass(frozen=True)
class DataSubject:
    """The data set under test: its name or path, and settings data.key=value."""

    name: str
    settings: Sequence[str] = ()
    failed: list[str] = field(default_factory=list)  # the name, once load failed

    @property
    def module(self) -> ModuleType:
        """Its file."""
        return plugins.dataset(self.name)

    @property
    def config(self) -> Any:
        """A configuration of its own, with the settings."""
        layers = [("command line", config.parse_overrides(self.settings))]
        return config.compose({"data": self.module.Config}, layers)[0]["data"]

    @property
    def source(self) -> Source:
        """What `load` returns, read once.

        Raises:
            Skipped: it failed before.
        """
        if self.failed:
            raise Skipped("load failed")
        try:
            return self._source
        except Exception:
            self.failed.append(self.name)
            raise

    @cached_property
    def _source(self) -> Source:
        found: Source = self.module.load(self.config)
        kinds = "an ssl_selmix.data.ImageSet, or a FileSet or FeatureSet"
        demand(isinstance(found, Source), f"load must return {kinds}, not {type(found)}")
        return found

    def inputs(self, seed: int = 0) -> Inputs:
        """Images and split as a run has them."""
        _ = self.source
        words = [*self.settings, f"seed={seed}", "device=cpu"]
        return load_data(Plan(Request(["supervised"], self.name, NO_PRESET, settings=words)))

    @cached_property
    def data(self) -> Data:
        """The data of a run from seed 0."""
        return self.inputs().data.at_stage("1-test")


def check_words(settings: Sequence[str]) -> None:
    """Refuse settings that are none of a data set.

    Raises:
        ValueError: names the first one.
    """
    for key in config.parse_overrides(settings):
        if not key.startswith("data."):
            raise ValueError(f"{key} is no setting of a data set; write data.{key}, if it is")


def check_settings(subject: DataSubject, folder: Path) -> None:
    """Its Config is that of a split, and survives YAML."""
    kind = subject.module.Config
    demand(
        isinstance(kind, type) and issubclass(kind, LongTailSplit),
        "Config must derive from ssl_selmix.splits.LongTailSplit, which draws the parts",
    )
    layers = [("command line", config.parse_overrides(subject.settings))]
    objects, plain = config.compose({"data": kind}, layers)
    again, _ = config.compose({"data": kind}, [("file", config.flatten({"data": plain["data"]}))])
    demand(
        again == objects, "Config changes on its way through config.yaml; give each field a type"
    )


def check_images(subject: DataSubject, folder: Path) -> None:
    """Images, labels, class names and normalisation fit together."""
    source, names = subject.source, subject.source.class_names
    distinct = len(names) >= 2 and len(set(names)) == len(names)
    demand(
        distinct and all(isinstance(name, str) and name for name in names),
        f"class_names must be at least 2 different texts, not {names!r}",
    )
    if isinstance(source, ImageSet):
        _demand_pixels("train", source.train, source.image_shape)
        for part in ("test", "extra_unlabeled"):
            if (images := getattr(source, part)) is not None:
                _demand_pixels(part, images, source.image_shape)
    _demand_labels("train", source.train_labels, len(source.train), len(names))
    demand(
        (source.test is None) == (source.test_labels is None),
        "test and test_labels come together; leave both out to have test images drawn",
    )
    if source.test is not None:
        _demand_labels("test", source.test_labels, len(source.test), len(names))
    channels = source.image_shape[0] if len(source.image_shape) == 3 else 1
    for name, values in (("mean", source.mean), ("std", source.std)):
        sensible = len(values) == channels and all(0 <= float(v) <= 255 for v in values)
        demand(
            sensible and (name == "mean" or all(float(v) > 0 for v in values)),
            f"{name} must be {channels} numbers, a channel each, of 0 to 255, not {values}",
        )


def _demand_pixels(part: str, images: Any, shape: tuple[int, ...]) -> None:
    is_tensor = isinstance(images, Tensor)
    found = f"{tuple(images.shape)} {images.dtype}" if is_tensor else type(images).__name__
    demand(
        is_tensor and images.dtype == torch.uint8 and images.ndim == 4,
        f"{part} must be a tensor N×C×H×W of uint8, 0 to 255, not {found}",
    )
    demand(
        tuple(images.shape[1:]) == shape,
        f"{part} images must be {shape} as the training images are, not {found}",
    )


def _demand_labels(part: str, labels: Any, num: int, num_classes: int) -> None:
    found = np.asarray(labels)
    demand(
        found.ndim == 1 and found.dtype.kind in "iu" and len(found) == num,
        f"{part}_labels must be {num} whole numbers, an image each, not {found.shape} of "
        f"{found.dtype}",
    )
    demand(
        found.max() < num_classes,
        f"{part}_labels must lie below {num_classes}, the number of class_names, and one is "
        f"{found.max()}; count classes from 0",
    )
    missing = sorted(set(range(num_classes)) - set(found.tolist()))
    demand(
        not missing,
        f"class {missing and missing[0]} has no {part} image; leave it out of class_names",
    )


def check_same_again(subject: DataSubject, folder: Path) -> None:
    """Loaded again it is the same, whatever the state of random generators."""
    first = subject.source
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (it is the state that a careless file draws from)
    random.seed(99)
    settings = subject.config
    before = dataclasses.asdict(settings)
    again = subject.module.load(settings)
    demand(dataclasses.asdict(settings) == before, "load changes its config; leave it as it is")
    same = again.sha256() == first.sha256()
    demand(
        same and np.array_equal(again.train_labels, first.train_labels),
        "load gives other images or labels the second time; draw random numbers from a generator "
        "with a seed of its own, and sort the names of files",
    )


def check_split(subject: DataSubject, folder: Path) -> None:
    """A split can be drawn by its defaults; its parts are apart, and follow from the seed."""
    drawn = [subject.inputs(seed).split for seed in (0, 0, 1)]
    labels = np.asarray(subject.source.train_labels)
    for split in drawn:
        split.verify(labels, len(subject.source.class_names))
    parts = [[getattr(split, part).tolist() for part in PARTS] for split in drawn]
    demand(parts[0] == parts[1], "the same seed draws another split; do not override `draw`")
    demand(parts[0] != parts[2], "every seed draws the same split; do not override `draw`")


def check_views(subject: DataSubject, folder: Path) -> None:
    """Weak and strong views are finite, of one size, and the same for the same step."""
    data, found = subject.data, []
    for _ in range(2):
        batch = next(data.batches(("weak", "strong"), 4, 1, 0))
        found.append([batch.x, batch.u[0], batch.u[1]])
        torch.manual_seed(99)
    for one, other in zip(*found, strict=True):
        demand(
            tuple(one.shape) == (4, *data.image_shape) and bool(one.isfinite().all()),
            f"views must be finite, 4×{'×'.join(map(str, data.image_shape))}, not "
            f"{tuple(one.shape)}; look at mean, std, weak and strong",
        )
        demand(torch.equal(one, other), "the views of a step differ the second time")


def check_training(subject_: DataSubject, folder: Path) -> None:
    """FixMatch, then SelMix, train on it for a few steps."""
    data = subject_.data
    torch.manual_seed(1)
    network = models.Config("cnn-4" if len(data.image_shape) == 3 else FEATURES)
    net = models.build(network, len(data.class_names), data.image_shape[0])
    for name in ("fixmatch", "selmix"):
        algorithm: Algorithm = fit(
            subject(name).make(data, net), data.at_stage(name), folder / name
        ).algorithm
        net = algorithm.export()
    with torch.no_grad():
        finite = all(bool(value.isfinite().all()) for value in net.state_dict().values())
    if not finite:
        raise Broken("weights are no numbers after 4 steps; look at mean and std")


DATA_CHECKS = (
    check_settings,
    check_images,
    check_same_again,
    check_split,
    check_views,
    check_training,
)
