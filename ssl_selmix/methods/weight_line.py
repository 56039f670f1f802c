"""The straight line between the weights of two networks, and a point of it chosen on validation.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (WiSE-FT):
theta = (1 - alpha) theta_start + alpha theta_end, as a network and not as an ensemble of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_selmix.algorithm import Evaluation
from ssl_selmix.models import Classifier
from ssl_selmix.objectives import Objective

MIDDLE = 0.5  # of the line: what the authors take where nothing can be chosen on
BIAS = "classifier.bias"

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Point:
    """A network of the line, measured: its place and its figures on validation."""

    alpha: float  # 0: the start, 1: the end
    feasibility: float  # 0 if every constraint holds, else less
    objective: float
    mean_recall: float

    @property
    def rank(self) -> tuple[float, float, float, float]:
        """What makes a point better, most important first: as weights of a stage are chosen."""
        return self.feasibility, self.objective, self.mean_recall, -abs(self.alpha - MIDDLE)


def weights_of(net: Classifier) -> dict[str, Tensor]:
    """A copy of all parameters and buffers of a network."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def check_ends(start: Weights, end: Weights) -> None:
    """Refuse networks between which there is no line.

    Raises:
        ValueError: they have not the same tensors. Only the start may lack a bias, which is 0.
    """
    shapes = [{k: tuple(v.shape) for k, v in one.items()} for one in (start, end)]
    if BIAS in shapes[1]:
        shapes[0].setdefault(BIAS, shapes[1][BIAS])
    both = shapes[0].keys() | shapes[1].keys()
    if odd := sorted(k for k in both if shapes[0].get(k) != shapes[1].get(k)):
        raise ValueError(
            f"the two networks have other tensors ({', '.join(odd[:3])}), and there is no line "
            "between them; take two stages of one network"
        )


@torch.no_grad()
def move(net: Classifier, start: Weights, end: Weights, alpha: float) -> None:
    """Give the network the weights at `alpha`; 0 and 1 are the two ends to the last bit.

    The stored batch statistics lie on the line as the weights do. Estimated anew they would differ
    at the ends too, from those that both networks were validated with; and after SelMix, which
    leaves them alone, they are the same all along.
    """
    for name, value in net.state_dict().items():
        last = end[name].to(value)
        first = start[name].to(value) if name in start else torch.zeros_like(last)
        value.copy_(first.lerp(last, alpha) if value.is_floating_point() else last)


def choose(
    net: Classifier,
    start: Weights,
    points: int,
    objective: Objective,
    evaluate: Callable[[], Evaluation],
) -> list[Point]:
    """Move the network, the end of the line, to the best of its points; all points, in order.

    Args:
        net: the end; it is changed.
        start: weights of the start.
        points: how many networks are looked at, both ends among them.
        objective: whose figure decides, after its constraints; mean recall breaks ties.
        evaluate: measures the network as it is on the validation images.

    Raises:
        ValueError: the networks have not the same tensors.
    """
    end = weights_of(net)
    check_ends(start, end)
    found = []
    for alpha in torch.linspace(0, 1, points, dtype=torch.float64).tolist():
        move(net, start, end, alpha)
        confusion = evaluate().confusion
        recalls = confusion.diagonal() / confusion.sum(1)
        place = (alpha, objective.feasibility(confusion), objective.metric(confusion))
        found.append(Point(*place, float(recalls.nanmean())))
    move(net, start, end, best(found).alpha)
    return found


def best(points: list[Point]) -> Point:
    """The point that the validation images choose."""
    return max(points, key=lambda point: point.rank)
