"""The pieces of ReMixMatch: sharpened guesses, rotated and mixed images, and its four losses.

Shapes: B labeled and M unlabeled images, V views of every unlabeled one (weak, then the strong
ones), H×H pixels, K classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Batch
from ssl_selmix.common.rules import Checked, at_least, positive, within
from ssl_selmix.methods.views import together
from ssl_selmix.models import Classifier


@dataclass
class Config(Checked):
    """Hyper-parameters of ReMixMatch, by the names of its paper."""

    strong_views: int = at_least(1, 2)  # K strong views; 8 in the paper, 2 in later code
    temperature: float = positive(0.5)  # T of the softmax that sharpens the guesses
    mixup_alpha: float = positive(0.75)  # alpha of lambda ~ Beta(alpha, alpha)
    lambda_u: float = at_least(0, 1.5)  # lambda_U, weight of the mixed unlabeled images
    lambda_u1: float = at_least(0, 0.5)  # lambda_U1, weight of the first strong view, not mixed
    lambda_r: float = at_least(0, 0.5)  # weight of the rotation loss; 0: no rotated images either
    ramp: float = within("[0, 1]", 1 / 64)  # share of the steps in which lambda_U, lambda_U1 rise


@dataclass(frozen=True)
class Draw:
    """The random part of a step.

    Shape: share scalar, lambda of all mixed images; partner (B+VM,) whom each is mixed with;
    turns (M,) quarter turns, 0 to 3. All on the CPU, so that a GPU draws what a CPU draws.
    """

    share: Tensor
    partner: Tensor
    turns: Tensor


@dataclass(frozen=True)
class Seen:
    """What the network makes of a step's images.

    Shape: labeled B×D or nothing, views M×D each (weak and first strong, or all), rotated M×D or
    0×D, mixed (B+VM)×D.
    """

    draw: Draw
    labeled: Tensor
    views: list[Tensor]
    rotated: Tensor
    mixed: Tensor

    @property
    def weak(self) -> Tensor:
        """Features of the weak views."""
        return self.views[0]

    @property
    def strong(self) -> Tensor:
        """Features of the first strong views."""
        return self.views[1]


class ReMix(nn.Module):
    """Rotation head, random draws and losses.

    Published code runs one forward pass for each kind of image; here one pass sees them all and
    batch statistics are those of all. Interleaving, which gave every pass some labeled images,
    then has no purpose.
    """

    def __init__(self, net: Classifier, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.lambda_r:
            self.rotation = nn.Linear(net.classifier.in_features, 4)
            nn.init.xavier_normal_(self.rotation.weight)
            nn.init.zeros_(self.rotation.bias)

    def draw(self, num_mixed: int, num_unlabeled: int) -> Draw:
        """Draw lambda = max(l, 1 - l), l ~ Beta(alpha, alpha), a permutation, and rotations.

        One lambda a batch, as in the code of DASO, ABC, DARP and USB.
        """
        alpha = self.config.mixup_alpha
        share = torch.distributions.Beta(alpha, alpha).sample()
        return Draw(
            torch.maximum(share, 1 - share),
            torch.randperm(num_mixed),
            torch.randint(4, (num_unlabeled,)),
        )

    def look(self, net: Classifier, batch: Batch, *, plainly: bool = False) -> Seen:
        """One forward pass over all that a step needs.

        With `plainly` the network sees labeled images and all views unmixed, too.
        """
        views = [batch.u[view] for view in range(len(batch.u))]
        mixable = torch.cat([batch.x, *views])
        draw = self.draw(len(mixable), len(views[0]))
        rotated = rotate(views[1], draw.turns) if self.config.lambda_r else views[1][:0]
        shown = views if plainly else views[:2]
        labeled = batch.x if plainly else batch.x[:0]
        images = [labeled, rotated, mix(mixable, draw), *shown]
        first, second, third, *features = together(net, images)
        return Seen(draw, first, features, second, third)

    def losses(
        self, head: nn.Module, seen: Seen, y: Tensor, q: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """The weighted losses of the guesses q M×K, for a head D -> K."""
        cfg, logits = self.config, head(seen.mixed)
        known = F.one_hot(y, q.shape[1]).to(q.dtype)
        targets = torch.cat([known, *[q] * ((len(logits) - len(y)) // len(q))])
        each = F.cross_entropy(logits, mix(targets, seen.draw), reduction="none")
        rise = min(1.0, progress / cfg.ramp) if cfg.ramp else 1.0
        found = {
            "labeled": each[: len(y)].mean(),
            "unlabeled": rise * cfg.lambda_u * each[len(y) :].mean(),
            "strong": rise * cfg.lambda_u1 * F.cross_entropy(head(seen.strong), q),
        }
        if cfg.lambda_r:
            turns = seen.draw.turns.to(y.device, non_blocking=True)
            rotation = F.cross_entropy(self.rotation(seen.rotated), turns)
            found["rotation"] = cfg.lambda_r * rotation
        return found


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised per row; in logarithms, for a small T would underflow.

    Shape: p M×K -> M×K.
    """
    return (p.log() / temperature).softmax(1)


def mix(x: Tensor, draw: Draw) -> Tensor:
    """Rows lambda x_i + (1 - lambda) x_partner(i). Shape: (B+VM)×... -> the same."""
    partner = draw.partner.to(x.device, non_blocking=True)
    return draw.share * x + (1 - draw.share) * x[partner]


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Images turned by so many quarter turns each.

    Shape: images M×C×H×H, turns (M,) on the CPU.

    Raises:
        ValueError: the images are not square.
    """
    height, width = images.shape[2:]
    if height != width:
        raise ValueError(
            f"images that are turned must be square, not {height}×{width}; make them square, or "
            "set lambda_r=0 to do without the rotation loss"
        )
    rotated = torch.empty_like(images)
    for turn in range(4):
        rows = (turns == turn).nonzero().squeeze(1).to(images.device, non_blocking=True)
        rotated[rows] = torch.rot90(images[rows], turn, (2, 3))
    return rotated
