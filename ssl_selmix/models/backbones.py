"""The networks by name: Wide ResNets, small CNNs, torchvision's and timm's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.common.rules import Checked, within
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.classifier import Classifier

FEATURES = "features"  # the name of a network without a body


@dataclass
class Config(Checked):
    """Which network to build."""

    # wrn-DEPTH-WIDTH (wrn-10-2-s2: early stride), cnn-WIDTH, torchvision:NAME or timm:NAME;
    # features: none, for --dataset features
    name: str = "wrn-28-2"
    # The FixMatch code uses 0.001, for runs of 2^20 steps.
    bn_momentum: float = within("(0, 1]", 0.1)


class _Block(nn.Module):
    """Pre-activation residual block; a block that changes width activates its shortcut too."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.bn1(x), 0.1, inplace=True)
        skip = x if self.shortcut is None else self.shortcut(h)
        h = F.leaky_relu(self.bn2(self.conv1(h)), 0.1, inplace=True)
        return torch.add(self.conv2(h), skip)


def wide_resnet(
    depth: int, width: int, channels: int = 3, stride: int = 1
) -> tuple[nn.Module, int]:
    """The Wide ResNet of the FixMatch and SelMix code, with its number of features.

    Zagoruyko & Komodakis, BMVC 2016. Global average pooling makes any image size work. A stride of
    2 in the first convolution makes all others four times cheaper.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise ValueError(
            f"a wide ResNet has depth 6n+4 >= 10 and width >= 1, not wrn-{depth}-{width}; "
            "wrn-28-2 and wrn-10-2 are common"
        )
    widths = [16, 16 * width, 32 * width, 64 * width]
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, stride, 1, bias=False)]
    for group in range(3):
        for block in range((depth - 4) // 6):
            first = block == 0
            width_in = widths[group] if first else widths[group + 1]
            layers.append(_Block(width_in, widths[group + 1], 2 if first and group else 1))
    layers += [nn.BatchNorm2d(widths[3]), nn.LeakyReLU(0.1, inplace=True)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _initialised(nn.Sequential(*layers)), widths[3]


def small_cnn(width: int, channels: int = 1) -> tuple[nn.Module, int]:
    """Three convolutions for very small images such as the 8×8 digits."""
    if width < 1:
        raise ValueError(f"cnn-WIDTH needs a positive width, not {width}; cnn-32 is common")

    def unit(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)]

    layers = unit(channels, width, 1) + unit(width, 2 * width, 2) + unit(2 * width, 2 * width, 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _initialised(nn.Sequential(*layers)), 2 * width


def _initialised(backbone: nn.Sequential) -> nn.Sequential:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return backbone


def _from_torchvision(name: str, channels: int) -> tuple[nn.Module, int]:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ValueError(f"torchvision has no model {name!r}; torchvision.models.list_models()")
    return without_head(get_model(name, weights=None), channels)


def _from_timm(name: str, channels: int) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ValueError("model.name=timm:... needs timm; pip install timm") from error
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() has the names")
    backbone = timm.create_model(name, num_classes=0, in_chans=channels)
    # Some timm models widen their features just before the head.
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return backbone, int(width)  # type: ignore[arg-type]


def without_head(model: nn.Module, channels: int = 3) -> tuple[nn.Module, int]:
    """The model with its last linear layer replaced by nothing, and that layer's input size."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linears or channels != 3:
        raise ValueError("this model takes RGB images and ends in a linear layer; choose another")
    name, head = linears[-1]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, head.in_features


def build(config: Config, num_classes: int, channels: int) -> Classifier:
    """The network named in the configuration, randomly initialised from the global generator."""
    kind, _, rest = config.name.partition(":")
    sources: dict[str, Callable[[str, int], tuple[nn.Module, int]]] = {
        "torchvision": _from_torchvision,
        "timm": _from_timm,
    }
    if wrn := re.fullmatch(r"wrn-(\d+)-(\d+)(-s2)?", config.name):
        stride = 2 if wrn[3] else 1
        backbone, num_features = wide_resnet(int(wrn[1]), int(wrn[2]), channels, stride)
    elif config.name == FEATURES:
        # What comes in is features already.
        backbone, num_features = nn.Identity(), channels
    elif cnn := re.fullmatch(r"cnn-(\d+)", config.name):
        backbone, num_features = small_cnn(int(cnn[1]), channels)
    elif kind in sources:
        backbone, num_features = sources[kind](rest, channels)
    else:
        raise ValueError(
            f"model.name {config.name!r} is unknown; use wrn-DEPTH-WIDTH (wrn-28-2), cnn-WIDTH "
            "(cnn-32), torchvision:NAME, timm:NAME, or features for --dataset features"
        )
    for module in batch_norms(backbone):
        module.momentum = config.bn_momentum
    classifier = nn.Linear(num_features, num_classes)
    nn.init.zeros_(classifier.bias)
    return Classifier(backbone, classifier, rebuild=partial(build, config, num_classes, channels))
