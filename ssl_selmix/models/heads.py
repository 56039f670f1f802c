"""What lies on top of a body: a neck, and the linear layer that is trained as linear or cosine.

Whatever the head is called, a network ends in a linear layer, for that is what second stages,
decision rules and SelMix's gains are about. What comes before it is the neck: features brought to
one length, a hidden layer.

Shapes: N images, D features, W hidden units, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.models.classifier import Classifier

LENGTH, COSINE_LENGTH = 8.0, 16.0  # of features, unless the configuration says another
HEADS = re.compile(r"linear|cosine|etf|mlp-([1-9][0-9]{0,5})")
ON_DIRECTIONS = ("cosine", "etf")  # heads whose logits are the length of features times cosines


class OfLength(nn.Module):
    """Features N×D, each of them brought to one Euclidean length.

    Networks differ in the length of their features by orders of magnitude, and the rate that a
    linear layer can take falls with its square. It has no tensors.
    """

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, features: Tensor) -> Tensor:
        """Shape: N×D -> N×D."""
        return F.normalize(features.float()) * self.length

    def extra_repr(self) -> str:
        """The length, for printing."""
        return f"{self.length:g}"


def check(head: str) -> None:
    """Refuse a head that does not exist.

    Raises:
        ValueError: it is none of linear, cosine, etf and mlp-WIDTH.
    """
    if not HEADS.fullmatch(head):
        raise ValueError(
            f"head must be linear, cosine, etf or mlp-WIDTH such as mlp-512, not {head!r}; choose "
            "one"
        )


def neck(head: str, length: float, num_features: int) -> nn.Module | None:
    """What comes between the body and the last linear layer; None: nothing.

    Args:
        head: linear, cosine, etf or mlp-WIDTH.
        length: of the features; 0: as the body gives them.
        num_features: D.
    """
    layers: list[nn.Module] = [OfLength(length)] if length else []
    if width := hidden(head):
        layers += [nn.Linear(num_features, width), nn.ReLU()]
    return nn.Sequential(*layers) if layers else None


def hidden(head: str) -> int:
    """W; 0 without a hidden layer."""
    found = HEADS.fullmatch(head)
    return int(found[1]) if found and found[1] else 0


class Cosine(nn.Linear):
    """A linear layer that is trained on directions: of its class vectors only those count.

    Behind `OfLength(s)` its logits are s cos(h, w_k). It has no bias of its own.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take the place of the layer, whose parameters it shares."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        if self.bias is not None:
            nn.init.zeros_(self.bias).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: N×D -> N×K."""
        return F.linear(features, F.normalize(self.weight), self.bias)


@torch.no_grad()
def simplex(num_classes: int, num_features: int) -> Tensor:
    """Class vectors K×D of length 1, any two of which have the cosine -1 / (K - 1).

    sqrt(K / (K - 1)) (I - 11^T / K) P^T, P a random D×K matrix of orthonormal columns: an
    equiangular tight frame (Yang et al., NeurIPS 2022), where balanced training ends by itself.

    Raises:
        ValueError: there are fewer features than classes.
    """
    if num_features < num_classes:
        raise ValueError(
            f"head=etf needs as many features as classes, and the network has {num_features} for "
            f"{num_classes}; choose a wider one, or head=cosine"
        )
    columns = torch.linalg.qr(torch.randn(num_features, num_classes, dtype=torch.float64))[0]
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    vectors: Tensor = (num_classes / (num_classes - 1)) ** 0.5 * centred @ columns.T
    return vectors.float()


def parted(net: Classifier) -> Classifier:
    """The network without its body, for features that this has made; shares its layers."""
    return Classifier(nn.Identity(), net.classifier, neck=net.neck)


def joined(body: Classifier, top: Classifier) -> Classifier:
    """The body of one network under neck and classifier of another; shares their layers."""
    return Classifier(body.backbone, top.classifier, neck=top.neck, to_size=body.to_size)


def begin(net: Classifier, head: str) -> Classifier:
    """The network itself, untrained, with the layer that learns what this head is."""
    if head == "cosine":
        net.classifier = Cosine(net.classifier)
    if head == "etf":
        layer, rebuild = net.classifier, net.rebuild
        if rebuild is not None:
            net.rebuild = partial(_begun_anew, rebuild, head)
        with torch.no_grad():
            layer.weight.copy_(simplex(layer.out_features, layer.in_features))
        nn.init.zeros_(layer.bias)
        layer.requires_grad_(False)
    return net


def _begun_anew(rebuild: Callable[[], Classifier], head: str) -> Classifier:
    return begin(rebuild(), head)


@torch.no_grad()
def ended(net: Classifier) -> Classifier:
    """The network itself, whose last layer is a plain linear one of the same logits."""
    head = net.classifier
    if isinstance(head, Cosine):
        plain = nn.Linear(head.in_features, head.out_features, device=head.weight.device)
        plain.weight.copy_(F.normalize(head.weight))
        nn.init.zeros_(plain.bias)
        net.classifier = plain
    return net
