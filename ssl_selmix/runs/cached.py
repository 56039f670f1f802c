"""A run on features: the body passes every image once, and only what lies on top is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix import data, models
from ssl_selmix.common.atomic import replaced
from ssl_selmix.common.config import fingerprint
from ssl_selmix.common.console import say
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import extraction
from ssl_selmix.data.chunks import TABLE, Part
from ssl_selmix.data.extraction import ABOUT, Features
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.source import ImageSet
from ssl_selmix.images.cache import folder_of
from ssl_selmix.models.execution import Execution
from ssl_selmix.models.weights import load_into
from ssl_selmix.runs.folder import RESULTS, RunFolder
from ssl_selmix.runs.plan import Plan
from ssl_selmix.runs.views import augmented
from ssl_selmix.training import checkpoint

BODY = "body.pt"  # beside the features: a run needs it for what it hands on


def features_of(
    plan: Plan,
    source: data.Source,
    sha256: str,
    preprocessing: Mapping[str, Any],
    trained: Mapping[str, Tensor] | None,
) -> tuple[FeatureSet, models.Classifier]:
    """The features of a data set, found or computed now, and the network whose body made them.

    Args:
        plan: of the run.
        source: the images, normalised as the body takes them.
        sha256: their digest.
        preprocessing: how they become what the body takes.
        trained: the weights that the run ended with, if it is looked at again.

    Raises:
        ValueError: `features.dir` has features of other images, another body, or damaged ones; the
            weights of the body are gone.
        OSError: the disk is full.
    """
    body = _Body(plan, source, trained)
    parts, how = _described(plan, source, sha256, preprocessing, body)
    features = Features(_folder(plan.config["features"].dir, how), parts, how)
    found = features.opened()
    if found is None:
        found = _made(features, body, plan)
    else:
        say(f"  features: of {features.num_images} images, from {features.folder}")
    net = body.kept_in(features.folder)
    return extraction.as_data(source, found), net


def _made(features: Features, body: _Body, plan: Plan) -> Mapping[str, Tensor]:
    at_once = extraction.AT_ONCE[plan.device.type == "cuda"]
    return features.make(body.loaded().embed, at_once=at_once)


def _described(
    plan: Plan,
    source: data.Source,
    sha256: str,
    preprocessing: Mapping[str, Any],
    body: _Body,
) -> tuple[list[Part], dict[str, Any]]:
    """Which images have features, and all that decides them."""
    config = plan.config["features"]
    views = {name: getattr(config, name) for name in ("weak", "strong")}
    how = {
        "images": sha256,
        "network": plan.config["model"].name,
        "body": body.sha256,
        "input": dict(preprocessing),
        "views": views | ({"of": _augmentations(source)} if any(views.values()) else {}),
        "dtype": config.dtype,
        "precision": plan.run.precision,
        "chunk": extraction.CHUNK,
    }
    return extraction.parts_of(source, plan.device, views), how


def to_folder(plan: Plan, out: Path) -> None:
    """Make the features of a data set, for `--dataset features data.root=OUT` and `features.dir`.

    Raises:
        ValueError: the folder has other features, or something else.
        OSError: the disk is full.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_ours(out)):
        raise ValueError(f"{out} is there and has no features; name another --out")
    source = plan.dataset.load(plan.config["data"])
    for found, what in (
        (source.weights, "weights of images (data.weight_column)"),
        (source.shares, "shares of annotators (data.annotators=soft)"),
    ):
        if found is not None:
            raise ValueError(
                f"a folder of features keeps no {what}; leave it out here, or train on the table "
                "itself with features=cached, which keeps them"
            )
    preprocessing = preprocessing_of(plan.config["model"], source)
    shown: dict[str, Any] = {key: tuple(preprocessing[key]) for key in ("mean", "std")}
    source = augmented(replace(source, **shown), plan.config["views"])
    body = _Body(plan, source, None)
    parts, how = _described(plan, source, source.sha256(), preprocessing, body)
    features = Features(out, parts, how)
    found = features.opened()
    if found is None:
        found = _made(features, body, plan)
    body.kept_in(out)
    for name, labels in _labels_of(source).items():
        with replaced(out / f"{name}.npy") as file:
            np.save(file, labels, allow_pickle=False)
    say(f"{out}: {features.num_images} images, {found['train'].shape[1]} features, {how['dtype']}")
    say(f"  train on them with --dataset features data.root={out}")


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in (ABOUT, TABLE))


def _labels_of(source: data.Source) -> dict[str, Any]:
    """What a folder of features has beside them, by the names that `data.arrays` reads."""
    num = len(source.train) - source.apart
    found: dict[str, Any] = {"train_labels": source.train_labels[:num]}
    if source.groups is not None:
        found["train_groups"] = source.groups[:num]
    if source.apart:
        found["validation_labels"] = source.train_labels[num:]
        if source.groups is not None:
            found["validation_groups"] = source.groups[num:]
    if source.test_labels is not None:
        found["test_labels"] = source.test_labels
    return found | {"class_names": np.array(source.class_names, dtype=str)}


class _Body:
    """The network whose body makes the features, on the device, in evaluation mode."""

    def __init__(
        self, plan: Plan, source: data.Source, trained: Mapping[str, Tensor] | None
    ) -> None:
        self._plan = plan
        with torch.random.fork_rng([]):
            self._net = models.build(
                plan.config["model"], len(source.class_names), source.image_shape[0]
            )
        self._net.prepared(Execution(plan.run.precision), plan.device)
        self._net.eval().requires_grad_(False)
        self._lost: ValueError | None = None
        try:
            self._fill(trained or _finished(plan))
        except ValueError as error:
            if plan.pretrained is None:
                raise
            self._lost = error

    def _fill(self, trained: Mapping[str, Tensor] | None) -> None:
        plan = self._plan
        if trained is not None:
            load_into(self._net, trained)
        elif plan.request.init:
            load_into(self._net, plan.init)
        elif plan.pretrained is not None:
            plan.pretrained.into(self._net)

    @property
    def sha256(self) -> str:
        """Digest of its weights; raises what is wrong with them if it was not recorded."""
        if self._lost is not None:
            assert self._plan.pretrained is not None
            return self._plan.pretrained.sha256
        return checkpoint.digest(self._net.backbone.state_dict())

    def loaded(self) -> models.Classifier:
        """The network.

        Raises:
            ValueError: its weights are gone.
        """
        if self._lost is not None:
            raise self._lost
        return self._net

    def kept_in(self, folder: Path) -> models.Classifier:
        """The network, which is written beside its features, or read there if it is gone."""
        file = folder / BODY
        if self._lost is None:
            if not file.exists():
                with suppress(OSError):  # whoever has the weights can do without
                    checkpoint.save(file, {"body": self._net.backbone.state_dict()})
            return self._net
        try:
            state = checkpoint.load(file)["body"]
        except (ValueError, LookupError):
            raise self._lost from None
        if checkpoint.digest(state) != self.sha256:
            raise self._lost
        self._net.backbone.load_state_dict(state)
        return self._net


def _finished(plan: Plan) -> Mapping[str, Tensor] | None:
    """The weights of a run that is resumed and has a finished stage, whatever it began with."""
    if not plan.request.resume or not RunFolder(plan.out).has(RESULTS):
        return None
    try:
        return RunFolder(plan.out).weights()
    except ValueError:  # damaged: told, and perhaps repaired, where the stage is looked at
        return None


def preprocessing_of(model: models.Config, source: data.Source) -> dict[str, Any]:
    """How images become what the network takes: by its own normalisation, or by theirs.

    Raises:
        ValueError: they are larger than the network takes them.
    """
    shape = source.image_shape
    found = source.preprocessing() | {"mean": list(source.mean), "std": list(source.std)}
    if model.size:
        if max(shape[1:]) > model.size:
            raise ValueError(
                f"the images have {shape[2]}×{shape[1]} pixels and {model.name} takes "
                f"{model.size}; set data.size={model.size} where the data set has it, or "
                f"model.size={max(shape[1:])} if the network can be of that size"
            )
        found["enlarged"] = {"size": [model.size] * 2, "interpolation": model.mode}
    if model.starts_trained:
        found |= {key: _of_channels(getattr(model, key), shape[0]) for key in ("mean", "std")}
    return found


def _of_channels(values: Sequence[float], channels: int) -> list[float]:
    """A network's normalisation in units of 0..255; of grey images the mean over its channels."""
    scaled = [255 * value for value in values]
    return scaled if channels == len(scaled) else [sum(scaled) / len(scaled)] * channels


def _augmentations(source: data.Source) -> str:
    """What the views of a data set are made by; addresses in memory say nothing of it."""
    if not isinstance(source, ImageSet):
        mix = source.strong if isinstance(source, FileSet) else None
        return f"files {mix!r}" if mix else "files"
    return re.sub(r" at 0x[0-9a-f]+", "", f"{source.weak!r} {source.strong!r}")


def _folder(setting: str, how: Mapping[str, Any]) -> Path:
    """Where the features of this kind are, or are to be.

    Raises:
        ValueError: there is no cache and no other folder is named.
    """
    place = folder_of("auto") if setting == "auto" else expanded(setting)
    if place is None:
        raise ValueError(
            "features need a folder and SSL_SELMIX_CACHE=none leaves them none; set features.dir"
        )
    if setting != "auto" and (place / ABOUT).exists():
        return place  # one that was made before, which must be of this kind
    return place / f"features-{fingerprint(how)[:24]}"
