"""The data of a run: images, split, what the manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ssl_selmix import data, models
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import config
from ssl_selmix.data import Data, Diagnostics, copies, manifest
from ssl_selmix.data.source import names_of
from ssl_selmix.models import heads
from ssl_selmix.runs import cached, kept, views
from ssl_selmix.runs.folder import CONFIG, RunFolder, split_of
from ssl_selmix.runs.plan import Plan
from ssl_selmix.splits import Split
from ssl_selmix.training import machine


def reload(plan: Plan) -> Inputs:
    """The images and the split of a run that exists.

    Raises:
        ValueError: they are not those that the run saw.
    """
    machine.use_threads(plan.run.threads)
    machine.use_repeatable_kernels()
    inputs = load_data(plan, trained=RunFolder(plan.out).weights() if plan.cached else None)
    check_images(plan, inputs.sha256, "give the folder that has the run's images (data.root)")
    return inputs


@dataclass(frozen=True)
class Inputs:
    """The data of a run: what training sees, what only reports see, what the manifest says."""

    data: Data
    diagnostics: Diagnostics
    split: Split
    images_sha256: str
    extra: dict[str, Any]
    preprocessing: dict[str, Any]  # how image files become what the network takes
    # The network whose body made the features, if these are in the place of the images.
    body: models.Classifier | None = None
    # Which images are in two parts, if it was looked at; see `data.copies`.
    copies: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: Sequence[str] = ()  # of the training images

    def whole(self, net: models.Classifier) -> models.Classifier:
        """A network for images of one that was trained on these inputs: itself, or on its body."""
        return net if self.body is None else heads.joined(self.body, net)

    def of_inputs(self, net: models.Classifier) -> models.Classifier:
        """The other way: of a network for images, what takes these inputs."""
        return net if self.body is None else heads.parted(net)

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class that figures are measured on."""
        parts = {"validation": self.data.validation_labels, "test": self.data.test_labels}
        num = len(self.data.class_names)
        return {part: torch.bincount(y, minlength=num).tolist() for part, y in parts.items()}

    @property
    def sha256(self) -> str:
        """Identity of images, split and labels."""
        return config.fingerprint(manifest.content(self.split, self.images_sha256, **self.extra))


def load_data(
    plan: Plan, *, extract: bool = True, trained: Mapping[str, Tensor] | None = None
) -> Inputs:
    """Decode the images, draw the split, put the pool on the device.

    Args:
        plan: of the run.
        extract: of a run on features, let the body make them; False: look at the images alone.
        trained: of a run that exists, the weights that it ended with.
    """
    settings, seed = plan.config["data"], plan.run.seed
    found = kept.load(plan)
    source, sha256 = found.source, found.sha256
    names = list(source.class_names)
    if source.test is None and not settings.test:
        raise ValueError("this data set has no test images of its own; set data.test=50, say")
    if not settings.validation:
        raise ValueError("every class needs validation images; set data.validation=20, say")
    needed = any(issubclass(kind.Config, Algorithm.PoolConfig) for _, kind in plan.algorithms)
    if settings.unlabeled.shape == "none" and needed:
        raise ValueError(
            "data.unlabeled.shape=none leaves no unlabeled image, and a stage learns from them; "
            "choose another shape, or stages that learn from labels, such as supervised"
        )
    if settings.unlabeled.shape == "unknown" and source.extra_unlabeled is None and needed:
        raise ValueError(
            "data.unlabeled.shape=unknown is for a data set with unlabeled images of its own, and "
            f"{plan.request.dataset} has none; draw them with another shape, such as long_tail"
        )
    split = _split(plan, source, sha256)
    preprocessing = cached.preprocessing_of(plan.config["model"], source)
    shown: dict[str, Any] = {key: tuple(preprocessing[key]) for key in ("mean", "std")}
    shown_source, body = views.augmented(replace(source, **shown), plan.config["views"]), None
    if plan.cached and extract:
        seen, body = cached.features_of(plan, shown_source, sha256, preprocessing, trained)
        loaded, diagnostics = data.assemble(seen, split, seed, plan.device)
    else:
        loaded, diagnostics = data.assemble(shown_source, split, seed, plan.device)
    extra: dict[str, Any] = {
        "dataset": plan.request.dataset,
        "class_names": names,
        "image_shape": list(source.image_shape),
        "mean": list(source.mean),
        "std": list(source.std),
    }
    if source.extra_unlabeled is not None:
        extra["extra_unlabeled"] = len(source.extra_unlabeled)
    if source.apart:
        extra["apart"] = source.apart
    if source.groups is not None:
        extra["groups"] = data.source.sha256_of_arrays(source.groups)
    for name in ("weights", "shares"):
        if (found_of := getattr(source, name)) is not None:
            extra[name] = data.source.sha256_of_arrays(found_of)
    # A run that exists has recorded them.
    new = not (plan.request.recorded or RunFolder(plan.out).has(CONFIG))
    twice = copies.of_parts(source, split, found.digests) if new else {}
    return Inputs(
        loaded, diagnostics, split, sha256, extra, preprocessing, body, twice, names_of(source)
    )


def _split(plan: Plan, source: data.Source, sha256: str) -> Split:
    """The split that `data.manifest` names, on these images, or else a new one."""
    settings, names = plan.config["data"], list(source.class_names)
    if not plan.manifest_sha256:
        own = {} if source.groups is None else {"groups": source.groups}
        drawn: Split = settings.draw(
            source.train_labels,
            len(names),
            plan.run.seed,
            class_names=names,
            apart=source.apart,
            **own,
        )
        return drawn
    split = manifest.load(settings.manifest, sha256)
    if manifest.read(settings.manifest)["images_sha256"] is None:
        raise ValueError(
            f"{settings.manifest} records no SHA-256 of its images, so that these may be others; "
            f'add "images_sha256": "{sha256}" if you know that they are not'
        )
    try:
        split.verify(source.train_labels, len(names))
    except ValueError as error:
        raise ValueError(f"{settings.manifest}: {error}") from error
    return split


def check_images(plan: Plan, sha256: str, remedy: str) -> None:
    """Refuse images or a split that the manifest in the folder does not describe.

    Raises:
        ValueError: they differ; the remedy is told.
    """
    path = plan.out / "manifest.json"
    written = manifest.read(path)
    if config.fingerprint(split_of(written)) != sha256:
        raise ValueError(
            f"{path} describes other images or another split than this run sees; {remedy}"
        )
