"""A model taken apart into body and linear classifier, and put together again."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.common.names import unknown
from ssl_selmix.models import Classifier
from ssl_selmix.models.execution import in_mode


def split_classifier(model: nn.Module, name: str | None = None) -> Classifier:
    """A copy of the model as features and linear classifier; frozen features stay frozen.

    Raises:
        ValueError: there is no such linear layer.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, not {type(model).__name__}; give a network")
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if name is None and not linears:
        raise ValueError(
            "the model has no nn.Linear and SelMix fine-tunes a linear classifier; replace its "
            "head by an nn.Linear, trained on frozen features"
        )
    if name is not None and not isinstance(name, str):
        raise ValueError(f"classifier must be the name of a linear layer, or None, not {name!r}")
    if name is not None and name not in linears:
        raise ValueError(f"{unknown('linear layer', name, linears)} (classifier)")
    name = name or linears[-1]
    backbone = copy.deepcopy(model)
    head = backbone.get_submodule(name)
    assert isinstance(head, nn.Linear)
    if head.bias is None:  # of zeros it changes nothing
        head.bias = nn.Parameter(torch.zeros_like(head.weight[:, 0]))
    replace(backbone, name, nn.Identity())
    net = Classifier(backbone, head)
    net.classifier.requires_grad_(True)
    return net


def tune_body(net: Classifier, tune: str, rank: int, name: str) -> Classifier:
    """The network, of whose body `tune` says what learns.

    Raises:
        ValueError: there is nothing of that kind, or the model would come back with new layers.
    """
    if tune == "adapter":
        raise ValueError(
            "tune='adapter' adds layers, which the returned model would lack; use tune='lora'"
        )
    return models.tune(net, models.Config(name, tune=tune, rank=rank))


def head_of(model: nn.Module, name: str | None) -> nn.Linear:
    """The linear layer of that name, or the last one."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return linears[name] if name is not None else list(linears.values())[-1]


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def merged(
    model: nn.Module, net: Classifier, name: str | None, *, keep_bias: bool = False
) -> nn.Module:
    """The fine-tuned weights in a module of the caller's type.

    A classifier that came without a bias goes without one, unless `keep_bias`.
    """
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    merged = net.backbone
    if head_of(model, name).bias is None and not keep_bias:
        net.classifier.bias = None  # type: ignore[assignment]
    replace(merged, name or linears[-1], net.classifier)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    for parameter_name, parameter in merged.named_parameters():
        parameter.requires_grad_(flags.get(parameter_name, True))
    modes = {n: module.training for n, module in model.named_modules()}
    for module_name, module in merged.named_modules():
        module.training = modes.get(module_name, model.training)
    return merged


@torch.no_grad()
def check_linear(model: nn.Module, net: Classifier, x: Tensor) -> None:
    """Refuse a model whose logits are not its classifier applied to its features."""
    try:
        with in_mode(model, training=False):
            expected = model(x)
    except Exception as error:  # whatever a network says of images that it was not made for
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise ValueError(
            f"the model cannot take labeled images {'×'.join(map(str, x.shape[1:]))} ({reason}); "
            "give images as it was trained on"
        ) from error
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        raise ValueError(
            f"the model must give a tensor of logits N×K, not {type(expected).__name__}; wrap it "
            "in a module that returns its logits"
        )
    if not bool(expected.isfinite().all()):
        raise ValueError(
            "the model gives NaN or inf for the first labeled image; correct its weights"
        )
    try:
        with in_mode(net, training=False):
            features = net.features(x)
    except RuntimeError as error:  # the layer is in the middle of the model
        raise ValueError(
            "the model cannot go on without this linear layer; name its last one with classifier="
        ) from error
    if features.ndim != 2 or features.shape[1] != net.classifier.in_features:
        raise ValueError(
            f"without its last linear layer the model gives {tuple(features.shape)}, not N×D "
            "features; name the classifier with classifier="
        )
    if not torch.allclose(net.classifier(features), expected, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "the model does something after its last linear layer (a softmax, a scale); remove "
            "it, or name the classifier with classifier="
        )


@torch.no_grad()
def check_training(net: Classifier, x: Tensor) -> None:
    """Refuse a model whose features in training mode are not one tensor, or need more images.

    Raises:
        ValueError: says what to build or to set.
    """
    trial = copy.deepcopy(net).train()
    try:
        features = trial.features(x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch={len(x)} gives a batch norm of the model a single value per channel, which has "
            "no variance; set batch=2 or more"
        ) from error
    if not isinstance(features, Tensor):
        raise ValueError(
            f"in training mode the model gives {type(features).__name__}, not one tensor; build it "
            "without auxiliary outputs (aux_logits=False), or wrap it"
        )
