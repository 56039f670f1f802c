"""AugMix: mixtures of chains of operations, in the place of RandAugment.

    x_aug = sum_i w_i chain_i(x),  w ~ Dirichlet(alpha)
    view = m x + (1 - m) x_aug,    m ~ Beta(alpha, alpha)

Each chain applies a few operations one after the other. x is the weak view. Where the operations'
ranges come from is said at `magnitudes`; the consistency loss of the paper is no part of a view.

Shapes: N images, C channels (1 or 3), H×W pixels, W chains, D operations of a chain at most.

References:
    AugMix, Hendrycks et al., ICLR 2020, https://arxiv.org/abs/1912.02781.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from ssl_selmix.augment.ops import (
    _TINY,
    ENHANCE,
    OPS,
    PLAIN,
    _to_uint8,
    geometric,
    in_groups,
    posterize,
    solarize,
)
from ssl_selmix.augment.tensor import (
    Weak,
    WeakParams,
    _as_dtype,
    _as_index,
    _as_uint8,
    _check_choice,
    _check_range,
    _check_whole,
)
from ssl_selmix.common.rules import Checked, at_least, positive, within

# Those that ImageNet-C has as corruptions are left out, or its figures would not be of unseen ones.
CORRUPTIONS = ("brightness", "color", "contrast", "sharpness")
OPERATIONS = tuple(name for name in OPS if name not in ("identity", *CORRUPTIONS))
DEEPEST = 3  # operations of a chain whose number is drawn
SEVEREST = 10
_NONE = -1  # after the end of a chain


@dataclass
class Mixing(Checked):
    """How images are mixed: what `views.strong=augmix` can be told."""

    augmix_width: int = at_least(1, 3)  # W, how many chains of operations are mixed
    # operations of a chain; 0: 1 to 3 of them, drawn for every chain
    augmix_depth: int = at_least(0, 0)
    augmix_severity: float = within("[0.1, 10]", 3.0)  # how far operations go, at most
    # alpha of the Dirichlet weights of the chains, and of the Beta weight of the weak view
    augmix_alpha: float = positive(1.0)
    # take brightness, color, contrast and sharpness, too, which ImageNet-C has as corruptions
    augmix_all: bool = False

    @property
    def augmix_operations(self) -> tuple[str, ...]:
        """The names of the operations that chains are made of."""
        return (*OPERATIONS, *CORRUPTIONS) if self.augmix_all else OPERATIONS


def magnitudes(name: str, level: Tensor, side: int = 0) -> Tensor:
    """How far an operation goes at a level in [0, 1], severity over 10: as in the published code.

    That is `augmentations.py` of google-research/augmix, commit 7c84885; the paper has no table of
    them. Degrees, pixels and thresholds are cut down to whole numbers there, and are not here.

    Degrees of a rotation, slope of a shear, pixels of a translation of an image of this side, bits
    that posterize keeps, threshold of solarize, factor of the enhancements.

    Shape: level (N,) -> (N,).
    """
    if name == "rotate":
        return 30 * level
    if name in ("shear_x", "shear_y"):
        return 0.3 * level
    if name in ("translate_x", "translate_y"):
        return level * side / 3
    if name == "posterize":
        return 4 - (4 * level + _TINY).floor()
    return 256 - 256 * level if name == "solarize" else 0.1 + 1.8 * level


@dataclass(frozen=True, eq=False)
class AugMixParams:
    """Random choices of a view, on the CPU.

    Attributes:
        weak: Crop and flip that come first.
        op: N×W×D, positions in `OPS`; -1 after the end of a chain.
        level: N×W×D, in [0.01, severity / 10].
        sign: N×W×D, -1 or 1.
        weights: N×W, of the chains, sum 1.
        kept: (N,), weight of the weak view in [0, 1].
    """

    weak: WeakParams
    op: Tensor
    level: Tensor
    sign: Tensor
    weights: Tensor
    kept: Tensor

    def __len__(self) -> int:
        return len(self.kept)

    def rows(self, index: Tensor | Sequence[int]) -> AugMixParams:
        """Return the parameters of the images at these positions."""
        rows = _as_index(index)
        own = (self.op, self.level, self.sign, self.weights, self.kept)
        return AugMixParams(self.weak.rows(rows), *(values[rows] for values in own))


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """Weak crop and flip, then a mixture of chains of operations with the result of these.

    Attributes:
        weak: Crop and flip that come first.
        width: Chains W.
        depth: Operations of a chain; 0 draws 1 to 3 for every chain.
        severity: Levels are uniform between 0.1 and this, in tenths of the largest magnitude.
        alpha: Of the Dirichlet weights of the chains and of the Beta weight of the weak view.
        ops: Names out of `OPS`.
        fill: Value of pixels that a geometric operation takes from outside.

    Example:
        >>> mixed = AugMix(weak=Weak(pad=1))
        >>> params = mixed.draw(4, torch.Generator().manual_seed(0))
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> torch.equal(mixed(images, params)[2:], mixed(images[2:], params.rows([2, 3])))
        True
    """

    weak: Weak = field(default_factory=Weak)
    width: int = 3
    depth: int = 0
    severity: float = 3.0
    alpha: float = 1.0
    ops: tuple[str, ...] = OPERATIONS
    fill: int = 0

    def __post_init__(self) -> None:
        _check_whole("width", self.width)
        _check_whole("depth", self.depth)
        _check_range("severity", self.severity, 0.1, SEVEREST)
        _check_whole("fill", self.fill, 255)
        if self.width < 1 or not self.alpha > 0:
            raise ValueError(
                f"AugMix mixes one chain or more by an alpha above 0, got width={self.width} and "
                f"alpha={self.alpha}; the paper's are 3 and 1"
            )
        if not self.ops:
            raise ValueError("ops must name an operation, got none; leave it out for all")
        for name in self.ops:
            _check_choice("every op", name, OPS)

    def draw(self, num: int, generator: Generator) -> AugMixParams:
        """Draw the parameters of `num` views from a CPU generator."""
        weak = self.weak.draw(num, generator)
        shape = (num, self.width, self.depth or DEEPEST)
        choice = torch.randint(len(self.ops), shape, generator=generator)
        op = torch.tensor([OPS.index(name) for name in self.ops])[choice]
        if not self.depth:
            depth = torch.randint(1, DEEPEST + 1, (num, self.width, 1), generator=generator)
            op = op.where(torch.arange(DEEPEST) < depth, torch.tensor(_NONE))
        level = torch.rand(shape, generator=generator, dtype=torch.float64)
        sign = torch.randint(2, shape, generator=generator) * 2 - 1
        # torch has no Dirichlet and no Beta that draw from a generator.
        chance = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return AugMixParams(
            weak=weak,
            op=op,
            level=(0.1 + (self.severity - 0.1) * level) / SEVEREST,
            sign=sign,
            weights=torch.from_numpy(chance.dirichlet([self.alpha] * self.width, num)),
            kept=torch.from_numpy(chance.beta(self.alpha, self.alpha, num)),
        )

    def __call__(self, images: Tensor, params: AugMixParams) -> Tensor:
        """Return the views of a batch.

        Args:
            images: N×C×H×W, uint8, or float in [0, 1], which is rounded to whole 255ths.
            params: Parameters of the same N images.

        Returns:
            N×C×H×W with the dtype and on the device of `images`.
        """
        x = self.weak(_as_uint8(images, len(params)), params.weak)
        if not len(x):
            return _as_dtype(x, images.dtype)
        # All chains at once: one batch of N·W images, of which D operations are made.
        chains = x.repeat_interleave(self.width, dim=0)
        steps = (values.flatten(0, 1).T for values in (params.op, params.level, params.sign))
        for op, level, sign in zip(*steps, strict=True):
            chains = in_groups(chains, op, level, sign, self._apply)
        # float32, one product and one sum at a time, is the same on every device.
        shares = ((1 - params.kept)[:, None] * params.weights).float().to(x.device)
        total = x.float() * params.kept.float().to(x.device).view(-1, 1, 1, 1)
        for i in range(self.width):
            total += chains[i :: self.width].float() * shares[:, i].view(-1, 1, 1, 1)
        return _as_dtype(_to_uint8(total.round_()), images.dtype)

    def _apply(self, name: str, x: Tensor, op: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        """Apply the operation of one group; "rotate" stands for all the geometric ones."""
        if name == "identity":
            return x
        if name == "rotate":
            return self._geometric(x, op, level, sign)
        if name in PLAIN:
            return PLAIN[name](x)
        return _GRADED[name](x, magnitudes(name, level))

    def _geometric(self, x: Tensor, op: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        height, width = x.shape[2:]
        angle, slope = (magnitudes(name, level) * sign for name in ("rotate", "shear_x"))
        shift = [magnitudes("translate_x", level, side) * sign for side in (width, height)]
        return geometric(x, op, angle, slope, shift, self.fill)


_GRADED = {**ENHANCE, "posterize": posterize, "solarize": solarize}
