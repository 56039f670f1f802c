"""A run on features: the body passes every image once, and only what lies on top is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_selmix import data, models
from ssl_selmix.common.config import fingerprint
from ssl_selmix.common.console import say
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import extraction
from ssl_selmix.data.extraction import ABOUT, Features
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.data.source import ImageSet
from ssl_selmix.images.cache import folder_of
from ssl_selmix.models.execution import Execution
from ssl_selmix.models.weights import load_into
from ssl_selmix.runs.plan import Plan
from ssl_selmix.training import checkpoint


def body_of(
    plan: Plan, num_classes: int, channels: int, trained: Mapping[str, Tensor] | None
) -> models.Classifier:
    """The network whose body makes the features, on the device, in evaluation mode.

    Args:
        plan: of the run; says from which weights the body starts.
        num_classes: K.
        channels: of the images.
        trained: the weights of the run itself, if it is looked at again.
    """
    with torch.random.fork_rng([]):
        net = models.build(plan.config["model"], num_classes, channels)
    if trained is not None:
        load_into(net, trained)
    elif plan.request.init:
        load_into(net, plan.init)
    elif plan.pretrained is not None:
        plan.pretrained.into(net)
    net.prepared(Execution(plan.run.precision), plan.device)
    return net.eval().requires_grad_(False)


def features_of(
    plan: Plan,
    source: data.Source,
    sha256: str,
    preprocessing: Mapping[str, Any],
    body: models.Classifier,
) -> FeatureSet:
    """The features of a data set, found or computed now.

    Args:
        plan: of the run.
        source: the images, normalised as the body takes them.
        sha256: their digest.
        preprocessing: how they become what the body takes.
        body: what `body_of` made.

    Raises:
        ValueError: `features.dir` has features of other images, another body, or damaged ones.
        OSError: the disk is full.
    """
    config = plan.config["features"]
    views = {name: getattr(config, name) for name in ("weak", "strong")}
    how = {
        "images": sha256,
        "network": plan.config["model"].name,
        "body": checkpoint.digest(body.backbone.state_dict()),
        "input": dict(preprocessing),
        "views": views | ({"of": _augmentations(source)} if any(views.values()) else {}),
        "dtype": config.dtype,
        "precision": plan.run.precision,
        "chunk": extraction.CHUNK,
    }
    parts = extraction.parts_of(source, plan.device, views)
    features = Features(_folder(config.dir, how), parts, how)
    found = features.opened()
    if found is None:
        at_once = extraction.AT_ONCE[plan.device.type == "cuda"]
        found = features.make(body.embed, at_once=at_once)
    else:
        say(f"  features: of {features.num_images} images, from {features.folder}")
    return extraction.as_data(source, found)


def _augmentations(source: data.Source) -> str:
    """What the views of a data set are made by; addresses in memory say nothing of it."""
    if not isinstance(source, ImageSet):
        return "files"
    return re.sub(r" at 0x[0-9a-f]+", "", f"{source.weak!r} {source.strong!r}")


def _folder(setting: str, how: Mapping[str, Any]) -> Any:
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
