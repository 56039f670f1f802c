"""Steps of the classifier in units that the scale of features and logits does not change.

A network with features h/c and weights cW predicts what one with h and W predicts, and so does one
with the logits tz if T is divided by t as well. Steps at a plain rate tell them apart: the gradient
of cW is c times smaller, and the change that is wanted c times larger; and logits that are t times
too large leave no gradient on labeled images that are right. So the loss is taken at z/T, T being
the temperature that calibrates the validation logits, and the rate of the weights is divided by the
mean square of the features. Then a step moves z/T by as much whatever the scale.

Shapes: N images, K classes, D features.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Evaluation
from ssl_selmix.decision.shift import anchor_offsets

# The mean of |h|² at which the rate of the weights is the one of the bias. Networks of these sizes
# have 50 to 100 (digits: 71), so that a classifier learns about ten times as fast as its body.
REFERENCE = 64.0


class RelativeHead(nn.Module):
    """The mean square of the features and the temperature of the logits, as state."""

    size: Tensor  # mean of |h|², over REFERENCE
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones((), dtype=torch.float64))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def measure(self, evaluation: Evaluation) -> None:
        """Take both from the validation images."""
        size = float(evaluation.features.double().square().sum(1).mean()) / REFERENCE
        self.size.fill_(size if size > 0 else 1.0)
        self.temperature.fill_(calibrating_temperature(evaluation.logits, evaluation.labels))

    def logits(self, head: nn.Linear, features: Tensor) -> Tensor:
        """z/T, as the head gives them, with gradients in the units of `in_units`. (N, D) -> (N, K).

        Not the loss but the head's parameters carry the factors, so that those of the body, which
        need none, stay as they are; and weight decay, which is a share of the weights, too.
        """
        square = self.temperature.square()
        weight, bias = _faster(head.weight, square / self.size), _faster(head.bias, square)
        return F.linear(features, weight, bias) / self.temperature.to(bias)

    def in_units(self, prototypes: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        """Centroids, weights and bias for which a plain gradient step is the one that is taken.

        Shape: prototypes (K, D) -> (K, D), (K, D), (K,).
        """
        root, temperature = math.sqrt(float(self.size)), float(self.temperature)
        weight, bias = head.weight.detach().double(), head.bias.detach().double()
        return prototypes / root, weight * (root / temperature), bias / temperature


def _faster(parameter: Tensor, factor: Tensor) -> Tensor:
    """The parameter, with a gradient that is larger by this factor, a scalar."""
    fixed = parameter.detach()
    return fixed + (parameter - fixed) * factor.to(fixed)


def calibrating_temperature(logits: Tensor, labels: Tensor) -> float:
    """T for which softmax(logits/T + b) is most likely, b being chosen with it.

    Where all images are right, T has no least value that data could tell, and where the logits know
    nothing it has no largest one. It is kept between the one at which the mean margin says that one
    image in N is wrong, and the mean margin.

    Shape: logits (N, K), labels (N,).
    """
    scores, classes = logits.double().cpu().numpy(), labels.cpu().numpy()
    even = np.full(scores.shape[1], 1 / scores.shape[1])
    found = anchor_offsets(scores, classes, even)[1].temperature
    best = np.partition(scores, -2, axis=1)[:, -2:]
    margin = float(np.abs(best[:, 1] - best[:, 0]).mean())
    return min(max(found, margin / math.log(max(len(scores), 3))), margin) or 1.0
