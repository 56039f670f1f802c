"""The name by which a caller's network can be built again, so that its folder opens like a run's.

Whoever opens a folder has no Python object, and executes nothing that the folder brings; a network
is only built by the name of one of ours, torchvision's or timm's. It counts as known if the network
of that name gives the features of the caller's.

Shapes: n images N×C×H×W, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.models import Classifier
from ssl_selmix.models.execution import in_mode

CLOSE = 1e-4  # of the largest feature; another network is further off


def name_of(model: nn.Module, net: Classifier, images: Tensor) -> str | None:
    """The name that `models.build` takes, or None if there is none for this network.

    Args:
        model: of the caller.
        net: the same, taken apart into body and classifier.
        images: some that it takes.
    """
    with torch.random.fork_rng([]):  # networks are first built with random weights
        for name in dict.fromkeys(_candidates(model)):
            built = rebuilt(name, net, images.shape[1])
            if built is not None and _alike(built, net, images):
                return name
    return None


def _candidates(model: nn.Module) -> Iterator[str]:
    """Names that the network may have, by what it says of itself."""
    if isinstance(model, Classifier):
        if isinstance(model.rebuild, functools.partial):
            yield from (part.name for part in model.rebuild.args if hasattr(part, "name"))
        return
    about = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    place = type(model).__module__
    if place.startswith("timm.") and hasattr(about, "get") and about.get("architecture"):
        yield f"timm:{about['architecture']}"
    if place.startswith("torchvision.models."):
        yield from _of_torchvision(model, place)


def _of_torchvision(model: nn.Module, place: str) -> Iterator[str]:
    """Those of its file whose tensors have the shapes of the network's, but for the head's."""
    from torchvision.models import get_model, get_model_builder, list_models

    wanted = _shapes(model)
    for name in list_models():
        if get_model_builder(name).__module__ != place:
            continue
        with torch.device("meta"):
            other = get_model(name, weights=None)
        if type(other) is type(model) and _shapes(other) == wanted:
            yield f"torchvision:{name}"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """By name, without the last linear layer, which has as many rows as there are classes."""
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    tensors = model.state_dict().items()
    return {k: tuple(v.shape) for k, v in tensors if not k.startswith(f"{head}.")}


def rebuilt(name: str, net: Classifier, channels: int) -> Classifier | None:
    """The network of that name with these weights, on the CPU; None if they do not fit."""
    try:
        built = models.build(models.Config(name), net.classifier.out_features, channels)
        built.load_state_dict({_own(key): v.detach().cpu() for key, v in net.state_dict().items()})
    except (ValueError, RuntimeError):
        return None
    return built.eval()


def _own(key: str) -> str:
    """Of a network of ours, which was taken apart once more, the body's tensors have two bodies."""
    return key.replace("backbone.backbone.", "backbone.", 1)


@torch.no_grad()
def _alike(built: Classifier, net: Classifier, images: Tensor) -> bool:
    """Whether both give the same features; the classifier is the same layer in both."""
    with in_mode(net, training=False):
        expected = net.features(images).float().cpu()
    found = built.features(images.float().cpu())
    scale = float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) <= CLOSE * scale
