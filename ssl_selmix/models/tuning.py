"""What of a pre-trained network is trained: all of it, its head, or few parameters of its body."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ssl_selmix.models.adapters import ADAPTER
from ssl_selmix.models.backbones import Config
from ssl_selmix.models.classifier import Classifier

NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
)


def tune(net: Classifier, config: Config) -> Classifier:
    """Let the network train what the configuration says; its classifier always learns.

    What is frozen keeps its batch statistics. A body that learns whole is left as it is.

    Raises:
        ValueError: the body has no such parameters, or peft is missing.
    """
    net.layer_decay, net.frozen = config.layer_decay, ""
    if config.tune == "full":
        return net
    body = net.backbone.requires_grad_(False)
    net.frozen = "body" if config.tune == "head" else "norms"
    if config.tune == "lora":
        _add_low_rank(net, config)
    chosen = [
        parameter for key, parameter in body.named_parameters() if _is_tuned(key, body, config)
    ]
    for parameter in chosen:
        parameter.requires_grad_(True)
    if not chosen and config.tune != "head":
        raise ValueError(f"model.tune={config.tune} finds nothing to train in {config.name}")
    return net.train(net.training)


def _is_tuned(key: str, body: nn.Module, config: Config) -> bool:
    """Whether a parameter of the body learns."""
    owner, _, name = key.rpartition(".")
    if config.tune == "norm":
        module = body.get_submodule(owner)
        return isinstance(module, NORMS) or "Norm" in type(module).__name__
    if config.tune == "bias":
        return name in ("bias", "in_proj_bias", "q_bias", "v_bias")
    marks = {"lora": r"\.lora_[AB]\.", "adapter": rf"(^|\.){ADAPTER}\."}
    return config.tune in marks and re.search(marks[config.tune], key) is not None


def _add_low_rank(net: Classifier, config: Config) -> None:
    """Low-rank updates beside the matrices of the body (Hu et al., ICLR 2022), by peft.

    Convolutions in groups are left out, and attention that takes its layers' matrices without
    calling the layers: torch's, and that of torchvision's Swin transformers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("model.tune=lora needs peft; pip install 'ssl_selmix[peft]'") from error
    inside = [
        name
        for name, module in net.backbone.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or type(module).__name__.startswith("ShiftedWindowAttention")
    ]
    names = [
        name
        for name, module in net.backbone.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and not any(name.startswith(f"{attention}.") for attention in inside)
    ]
    if not names:
        raise ValueError(f"model.tune=lora finds no matrices in {config.name}; choose another")
    scale = 1.0 if config.scale is None else config.scale
    chosen = LoraConfig(
        r=config.rank,
        lora_alpha=scale * config.rank,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules="|".join(re.escape(name) for name in names),
    )
    inject_adapter_in_model(chosen, net.backbone)
    net.adapted = True


def merged(net: Classifier) -> Classifier:
    """A copy of the network in which low-rank updates are part of the matrices."""
    found = copy.deepcopy(net)
    if not found.adapted:
        return found
    for name, module in list(found.backbone.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(found.backbone.get_submodule(parent), child, module.get_base_layer())
    if hasattr(found.backbone, "peft_config"):  # peft's note on what it added
        del found.backbone.peft_config
    found.adapted = False
    return found


def layer_scales(net: Classifier) -> dict[int, float]:
    """By identity of each parameter, what its layer's depth makes of the rate; the head has 1.

    decay ** (n - l) for layer l of n, 0 being the input (Clark et al., ICLR 2020; Bao et al., BEiT,
    ICLR 2022). timm says which parameters form a layer; elsewhere it is the first numbered part of
    a name: layer1, features.3, encoder.layers.encoder_layer_0.
    """
    names = [name for name, _ in net.backbone.named_parameters()]
    layers = _timm_layers(net.backbone, names) or _numbered_layers(names)
    depth = max(layers.values(), default=0)
    scales = {id(p): 1.0 for p in net.parameters()}
    for name, parameter in net.backbone.named_parameters():
        scales[id(parameter)] = net.layer_decay ** (depth - layers[name])
    return scales


def _timm_layers(body: nn.Module, names: list[str]) -> dict[str, int]:
    """Layers as timm numbers them; what it does not name is on top, as its classifier is."""
    if not hasattr(body, "group_matcher"):
        return {}
    from timm.models import group_parameters

    head = "classifier of ours"
    pairs = [(name, name) for name in (*names, head)]
    named: Any = SimpleNamespace(named_parameters=lambda: iter(pairs))  # what timm asks of a module
    matcher: Any = body.group_matcher
    found = group_parameters(named, matcher(coarse=False), reverse=True)
    return {name: int(layer) for name, layer in found.items()}


def _numbered_layers(names: list[str]) -> dict[str, int]:
    """Layers in the order of the names; what has no number is below the first, or on top."""
    marks = [re.match(r"(?:[^.]*[^.\d]\.)*?[^.]*\d+(?=\.)", name) for name in names]
    layers = list(dict.fromkeys(mark[0] for mark in marks if mark))
    found: dict[str, int] = {"": len(layers) + 1}
    passed = False
    for name, mark in zip(names, marks, strict=True):
        passed |= mark is not None
        found[name] = layers.index(mark[0]) + 1 if mark else (len(layers) + 1) * passed
    return found


@torch.no_grad()
def num_trained(net: Classifier) -> int:
    """Number of parameters that learn."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
