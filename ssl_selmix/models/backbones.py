"""The networks by name: Wide ResNets, small CNNs, torchvision's, timm's and open_clip's."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.common.rules import Checked, at_least, one_of, positive, within
from ssl_selmix.models import heads
from ssl_selmix.models.adapters import add_adapters
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.branches import branched
from ssl_selmix.models.classifier import Classifier
from ssl_selmix.models.input import MODES, ToSize
from ssl_selmix.models.libraries import LIBRARIES, RGB

RESNETS = (18, 34, 50, 101, 152)
FEATURES = "features"  # the name of a network without a body


@dataclass
class Config(Checked):
    """Which network to build, from which weights it starts, and what of it is trained."""

    # wrn-DEPTH-WIDTH (wrn-10-2-s2: early stride; wrn-28-2-daso, -kekmodel: for weights of these
    # codes), cnn-WIDTH, resnet-DEPTH for small images, torchvision:NAME, timm:NAME or
    # open_clip:NAME; features: none, for --dataset features
    name: str = "wrn-28-2"
    # how many copies of the last stage, each with weights of its own, make the features; of the
    # networks wrn-... and cnn-..., for --algo ride
    branches: int = at_least(1, 1)
    # weight of the newest batch in batch statistics; the FixMatch code uses 0.001, for 2^20 steps
    bn_momentum: float = within("(0, 1]", 0.1)
    # true: the library's weights of that name; or a FILE of them, .pth or .safetensors
    pretrained: str = ""
    # pixels a side, to which images are enlarged on the device; 0: the size that a pre-trained
    # network was trained on, and that of the data without `pretrained`
    size: int = at_least(0, 0)
    # what is subtracted from pixels in 0..1, per channel; empty: what the pre-trained network had
    mean: list[float] = field(default_factory=list)
    # by what they are divided then, per channel; empty: what the pre-trained network had
    std: list[float] = field(default_factory=list)
    # how images are enlarged to `size`; auto: as the pre-trained network had them
    interpolation: str = one_of("auto", *MODES)
    # what is trained beside the classifier: full, everything; head, nothing; lora, low-rank
    # updates; adapter, small layers beside those of a transformer; bias; norm
    tune: str = one_of("full", "head", "lora", "adapter", "bias", "norm")
    rank: int = at_least(1, 8)  # rank of the updates of tune=lora; width of those of tune=adapter
    # factor of what lora or adapters add to the network; None: 1 for lora, 0.1 for adapter
    scale: float | None = positive(None)
    # share of the inputs of lora or adapters that is dropped
    dropout: float = within("[0, 1)", 0.0)
    # what makes logits of features. linear; cosine: linear in directions, whatever the lengths;
    # etf: class vectors that are a fixed simplex; mlp-WIDTH: a hidden layer before the linear one
    head: str = "linear"
    # length to which all features are brought; 0: they stay as they are; None: 8 for a body that
    # stays as it is (16 for head=cosine, whose scale it is), and else 0
    length: float | None = at_least(0, None)
    # what the rate of a layer is multiplied by for the layer below it; 1: one rate for all
    layer_decay: float = within("(0, 1]", 1.0)

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning without others."""
        super().__post_init__()
        heads.check(self.head)
        if self.head == "etf" and (self.tune == "head" or self.name == FEATURES):
            raise ValueError(
                "head=etf is fixed, and with a body that stays as it is nothing learns; take "
                "head=cosine, or train the body"
            )
        if self.head in heads.ON_DIRECTIONS and self.length == 0:
            raise ValueError("length=0 leaves a cosine no scale; set length=16, say")
        if self.pretrained.lower() == "false":
            self.pretrained = ""
        library = self.name.partition(":")[0]
        if self.starts_trained and library not in LIBRARIES:
            raise ValueError(
                f"pretrained={self.pretrained} needs a network of {', '.join(LIBRARIES)}, and "
                f"there are no weights of {self.name}; start from a file with --init"
            )
        for name in ("mean", "std") if not self.starts_trained else ():
            if getattr(self, name):
                raise ValueError(f"{name} is that of pre-trained networks; set pretrained, too")
        if self.std and min(self.std) <= 0:
            raise ValueError(f"std must be > 0, not {self.std}")
        if self.interpolation != "auto" and not self.size and not self.starts_trained:
            raise ValueError(f"interpolation={self.interpolation} enlarges nothing; set size")
        low_rank = self.tune in ("lora", "adapter")
        for name in ("rank", "scale", "dropout"):
            if not low_rank and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name}={getattr(self, name)} needs tune=lora or tune=adapter")
        if self.branches > 1 and not re.match(r"wrn-|cnn-", self.name):
            raise ValueError(
                f"branches={self.branches} copies the last stage of the networks wrn-... and "
                f"cnn-..., and {self.name} is none; leave it out"
            )
        if self.branches > 1 and (self.head != "linear" or self.feature_length):
            raise ValueError(
                f"branches={self.branches} needs a linear head on features as they are; leave out "
                "head and length"
            )
        if self.layer_decay < 1 and self.tune == "head":
            raise ValueError("layer_decay needs layers that learn; leave out tune=head")

    @property
    def feature_length(self) -> float:
        """The length that features are brought to; 0: none."""
        if self.length is not None:
            return self.length
        if self.head in heads.ON_DIRECTIONS:
            return heads.COSINE_LENGTH
        return heads.LENGTH if self.tune == "head" or self.name == FEATURES else 0.0

    @property
    def starts_trained(self) -> bool:
        """Whether the body has weights of somebody else before the first step."""
        return bool(self.pretrained)

    @property
    def mode(self) -> str:
        """The interpolation that enlarges images."""
        return "bilinear" if self.interpolation == "auto" else self.interpolation


class _Block(nn.Module):
    """Pre-activation residual block; a block that changes width activates its shortcut too.

    Unless its shortcut, or the whole block, takes its input `raw`.
    """

    def __init__(self, width_in: int, width: int, stride: int, raw: str = "nothing") -> None:
        super().__init__()
        self.raw = raw
        self.bn1 = nn.BatchNorm2d(width_in) if raw != "block" else None
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.bn1 is None else F.leaky_relu(self.bn1(x), 0.1, inplace=True)
        skip = x if self.shortcut is None else self.shortcut(x if self.raw != "nothing" else h)
        h = F.leaky_relu(self.bn2(self.conv1(h)), 0.1, inplace=True)
        return torch.add(self.conv2(h), skip)


# What the first blocks of the second and third group take without norm and activation: as in the
# codes of CSST and SelMix; of DASO and Google's FixMatch; of kekmodel's FixMatch and ABC.
RAW = {"": "nothing", "daso": "shortcut", "kekmodel": "block"}


def wide_resnet(
    depth: int, width: int, channels: int = 3, stride: int = 1, variant: str = ""
) -> tuple[nn.Sequential, int]:
    """The Wide ResNet of the CSST and SelMix codes, with its number of features.

    Zagoruyko & Komodakis, BMVC 2016. Global average pooling makes any image size work. A stride of
    2 in the first convolution makes all others four times cheaper. Variants are for weights that
    other codes saved, see `RAW`.
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
            widens = first and group > 0
            raw = RAW[variant] if widens else "nothing"
            layers.append(_Block(width_in, widths[group + 1], 2 if widens else 1, raw))
    layers += [nn.BatchNorm2d(widths[3]), nn.LeakyReLU(0.1, inplace=True)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _initialised(nn.Sequential(*layers)), widths[3]


def small_image_resnet(depth: int, channels: int = 3) -> tuple[nn.Module, int]:
    """A ResNet for images of 32 or 64 pixels, as the code of CoSSL and SimPro has it.

    It is that of torchvision, but the first convolution is 3×3 without a stride and no pooling
    follows it, so that of 32 pixels a side 4 are left at the end, and not 1.
    """
    if depth not in RESNETS:
        raise ValueError(
            f"resnet-{depth} does not exist; use resnet-{', resnet-'.join(map(str, RESNETS))}"
        )
    from torchvision.models import get_model

    body: Any = get_model(f"resnet{depth}", weights=None)
    body.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()
    num_features = body.fc.in_features
    body.fc = nn.Identity()
    return body, num_features


def small_cnn(width: int, channels: int = 1) -> tuple[nn.Sequential, int]:
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


def build(config: Config, num_classes: int, channels: int) -> Classifier:
    """The network named in the configuration, randomly initialised from the global generator."""
    with _apart(config):
        backbone, num_features = _body(config, channels)
    net = on_top_of(backbone, num_features, config, num_classes)
    net.rebuild = partial(build, config, num_classes, channels)
    if config.size:
        net.to_size = ToSize(config.size, config.mode, RGB if config.starts_trained else channels)
    return net


def _apart(config: Config) -> AbstractContextManager[None]:
    """A body that stays as it is draws nothing from the generator: its head begins alike without.

    So a run on features that were computed once begins with the head of a run on images.
    """
    found: AbstractContextManager[None] = torch.random.fork_rng([])
    return found if config.tune == "head" else nullcontext()


def _body(config: Config, channels: int) -> tuple[nn.Module, int]:
    """The body, randomly initialised, and its number of features."""
    kind, _, rest = config.name.partition(":")
    # Pre-trained networks have seen colours, and are shown grey images as such.
    channels = RGB if config.starts_trained else channels
    if wrn := re.fullmatch(r"wrn-(\d+)-(\d+)(-s2)?(?:-(daso|kekmodel))?", config.name):
        depth, width, stride = int(wrn[1]), int(wrn[2]), 2 if wrn[3] else 1
        made = partial(wide_resnet, depth, width, channels, stride, wrn[4] or "")
        # The last of three groups of blocks, behind the first convolution.
        backbone, num_features = _branched(made, config.branches, 1 + 2 * ((depth - 4) // 6))
    elif config.name == FEATURES:
        # What comes in is features already.
        backbone, num_features = nn.Identity(), channels
    elif cnn := re.fullmatch(r"cnn-(\d+)", config.name):
        # The last of three convolutions, each with norm and activation.
        backbone, num_features = _branched(
            partial(small_cnn, int(cnn[1]), channels), config.branches, 6
        )
    elif resnet := re.fullmatch(r"resnet-(\d+)", config.name):
        backbone, num_features = small_image_resnet(int(resnet[1]), channels)
    elif kind in LIBRARIES:
        backbone, num_features = LIBRARIES[kind].build(rest, channels, config.size)
    else:
        raise ValueError(
            f"model.name {config.name!r} is unknown; use wrn-DEPTH-WIDTH (wrn-28-2), cnn-WIDTH "
            "(cnn-32), resnet-DEPTH (resnet-50), torchvision:NAME, timm:NAME, open_clip:NAME, or "
            "features for --dataset features"
        )
    for module in batch_norms(backbone):
        module.momentum = config.bn_momentum
    if config.tune == "adapter":
        add_adapters(backbone, config.name, config.rank, config.scale, config.dropout)
    return backbone, num_features


def _branched(
    make: Callable[[], tuple[nn.Sequential, int]], branches: int, start: int
) -> tuple[nn.Module, int]:
    """What `make` makes, with as many branches from layer `start` on; its number of features."""
    body, num_features = make()
    if branches == 1:
        return body, num_features
    return branched([body, *(make()[0] for _ in range(branches - 1))], start), (
        branches * num_features
    )


def on_top_of(body: nn.Module, num_features: int, config: Config, num_classes: int) -> Classifier:
    """The body with the neck and the linear layer of the configuration, random ones."""
    neck = heads.neck(config.head, config.feature_length, num_features)
    classifier = nn.Linear(heads.hidden(config.head) or num_features, num_classes)
    nn.init.zeros_(classifier.bias)
    return Classifier(body, classifier, neck=neck)


def without_body(config: Config, num_features: int, num_classes: int) -> Classifier:
    """The network of the configuration for features that its body has made already."""
    net = on_top_of(nn.Identity(), num_features, config, num_classes)
    net.rebuild = partial(without_body, config, num_features, num_classes)
    return net
