"""Weak and strong views of a batch of small images, as tensor code on the images' device.

Every random number is drawn on the CPU from the generator handed in, before an image is touched.
The same seed therefore gives the same views on every device, and the host knows which image gets
which operation: groups are formed there, and nothing ever waits for the device.

The pixel functions return the bytes that ``torchvision.transforms.v2.functional`` returns for the
same image and magnitude on a CPU. Where torchvision's result depends on rounding (a fused
multiply-add in float32) that rounding is spelled out, see `_fma`, instead of left to a kernel.
Two exceptions: nearest sampling, see `affine`, and the last few pixels of an image whose size is
no multiple of the processor's vector length, where torchvision itself rounds once more and a
blend may come out one lower or higher.

Shapes: N images, C channels (1 or 3), H×W pixels, R rounds of RandAugment.

References:
    RandAugment, https://arxiv.org/abs/1909.13719; FixMatch, https://arxiv.org/abs/2001.07685.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from ssl_selmix.augment.ops import (
    _TINY,
    ENHANCE,
    OPS,
    PLAIN,
    _keep,
    _take,
    _to_uint8,
    cutout,
    geometric,
    in_groups,
    posterize,
    solarize,
)

_SKIP = -1  # the operation was drawn and not applied


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(
            f"{name} must lie between {low} and {high}, got {value}; "
            f"the nearest allowed value is {low if value < low else high}"
        )


def _check_whole(name: str, value: int, high: float = math.inf) -> None:
    if not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {value!r}; write it as an int")
    _check_range(name, value, 0, high)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=3) or allowed
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {value!r}; "
            f"did you mean {' or '.join(near)}?"
        )


def _as_uint8(images: Tensor, num_params: int) -> Tensor:
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "images must be N×C×H×W, uint8 or float in [0, 1], "
            f"got {tuple(images.shape)} {images.dtype}; convert them first"
        )
    if len(images) != num_params:
        raise ValueError(
            f"one set of parameters per image, got {num_params} for {len(images)} images; "
            "call draw(len(images), generator) or take params.rows(index)"
        )
    if images.dtype == torch.uint8:
        return images
    return _to_uint8(images.float().mul(255).round_())


def _as_dtype(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    # A product, not a quotient: devices differ in how they divide by a constant.
    return pixels if dtype == torch.uint8 else pixels.to(dtype).mul_(1.0 / 255.0)


def _as_index(index: Tensor | Sequence[int]) -> Tensor:
    rows = torch.as_tensor(index)
    if rows.dtype == torch.bool:
        raise ValueError("rows are chosen by position, got a mask; pass mask.nonzero()[:, 0]")
    return rows.long()


@dataclass(frozen=True, eq=False)
class WeakParams:
    """Random choices of a weak view, on the CPU.

    Attributes:
        top: (N,), first row of the crop in the padded image.
        left: (N,), first column of the crop in the padded image.
        flip: (N,), whether the crop is mirrored.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def rows(self, index: Tensor | Sequence[int]) -> WeakParams:
        """Return the parameters of the images at these positions."""
        rows = _as_index(index)
        return WeakParams(self.top[rows], self.left[rows], self.flip[rows])


@dataclass(frozen=True, eq=False)
class StrongParams:
    """Random choices of a strong view, on the CPU.

    Attributes:
        weak: Crop and flip that come first.
        op: N×R, positions in `OPS`; -1 where the operation drawn is not applied.
        level: N×R, in [0, 1], position in the operation's range.
        sign: N×R, -1 or 1.
        centre: N×2, row and column of the cutout as a fraction of the side, in [0, 1).
        side: (N,), side of the cutout as a fraction of the shorter image side.
    """

    weak: WeakParams
    op: Tensor
    level: Tensor
    sign: Tensor
    centre: Tensor
    side: Tensor

    def __len__(self) -> int:
        return len(self.side)

    def rows(self, index: Tensor | Sequence[int]) -> StrongParams:
        """Return the parameters of the images at these positions."""
        rows = _as_index(index)
        return StrongParams(
            weak=self.weak.rows(rows),
            op=self.op[rows],
            level=self.level[rows],
            sign=self.sign[rows],
            centre=self.centre[rows],
            side=self.side[rows],
        )


@dataclass(frozen=True)
class Weak:
    """Random crop of the padded image, then a horizontal flip with probability 1/2.

    Attributes:
        pad: Pixels added on every side before the crop.
        flip: Whether to flip at all; off for digits and text.
        padding: ``"reflect"`` (the border pixel is not repeated) or ``"zeros"``.

    Example:
        >>> weak = Weak(pad=1)
        >>> params = weak.draw(2, torch.Generator().manual_seed(0))
        >>> images = torch.arange(18, dtype=torch.uint8).view(2, 1, 3, 3)
        >>> weak(images, params).shape
        torch.Size([2, 1, 3, 3])
    """

    pad: int = 4
    flip: bool = True
    padding: Literal["reflect", "zeros"] = "reflect"

    def __post_init__(self) -> None:
        _check_whole("pad", self.pad)
        _check_choice("padding", self.padding, ("reflect", "zeros"))

    def draw(self, num: int, generator: Generator) -> WeakParams:
        """Draw the parameters of `num` views from a CPU generator."""
        offset = torch.randint(2 * self.pad + 1, (2, num), generator=generator)
        # Drawn even when unused, so that the switch does not change the other numbers.
        coin = torch.rand(num, generator=generator) < 0.5
        return WeakParams(offset[0], offset[1], coin & self.flip)

    def __call__(self, images: Tensor, params: WeakParams) -> Tensor:
        """Return the weak views of a batch.

        Args:
            images: N×C×H×W, uint8, or float in [0, 1], which is rounded to whole 255ths.
            params: Parameters of the same N images.

        Returns:
            N×C×H×W with the dtype and on the device of `images`.
        """
        x = _as_uint8(images, len(params))
        height, width = x.shape[2:]
        if self.padding == "reflect" and self.pad >= min(height, width):
            raise ValueError(
                f"reflect padding must be smaller than the image, got pad={self.pad} for "
                f"{height}×{width}; use padding='zeros' or a pad of {min(height, width) - 1}"
            )
        first = torch.stack((params.top, params.left, params.flip.long()))
        top, left, flip = first.to(x.device, non_blocking=True)[:, :, None].unbind()
        row = torch.arange(height, device=x.device) + top - self.pad
        col = torch.arange(width, device=x.device)
        col = torch.where(flip == 1, width - 1 - col, col) + left - self.pad
        return _as_dtype(self._crop(x, row, col), images.dtype)

    def _crop(self, x: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Take rows N×H and columns N×W, positions that may lie outside the image."""
        height, width = x.shape[2:]
        if self.padding == "reflect":
            row, col = _reflect(row, height), _reflect(col, width)
            return _take(x, row[:, :, None] * width + col[:, None, :])
        inside_row, inside_col = (row >= 0) & (row < height), (col >= 0) & (col < width)
        row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
        moved = _take(x, row[:, :, None] * width + col[:, None, :])
        inside = inside_row[:, :, None] & inside_col[:, None, :]
        return _keep(moved, inside, 0)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions at the first and at the last pixel."""
    last = size - 1
    return last - (last - position.abs()).abs()


@dataclass(frozen=True, kw_only=True)
class Strong:
    """Weak crop and flip, then RandAugment, then cutout.

    `num_ops` operations are drawn per image with replacement from `ops`, each with its own level
    and sign. A level in [0, 1) stands for: enhancement factor 0.05 + 0.9 level (brightness, color,
    contrast, sharpness), 4 + ⌊4 level⌋ bits, solarize threshold 256 - 256 level, rotation by
    ±30 level degrees, shear by ±0.3 level, translation by ±0.3 level of the side. Discrete levels
    are 0.1, 0.2, … 0.9 and round degrees, pixels and thresholds down to whole numbers.

    Published settings: ``p=0.5, levels="discrete"`` for the PyTorch FixMatch and DASO;
    ``weak=Weak(padding="zeros"), num_ops=3, random_cutout=True`` for CSST and SelMix.

    Attributes:
        weak: Crop and flip that come first.
        num_ops: Rounds R of RandAugment.
        ops: Names out of `OPS`.
        levels: ``"continuous"`` or ``"discrete"``.
        p: Probability with which a drawn operation is applied.
        magnitude: Scales the distance of every magnitude from the one that changes nothing, in
            [0, 1]; 1 is the published range.
        fill: Value of pixels that a geometric operation takes from outside.
        cutout: Side of the square, as a fraction of the shorter image side.
        random_cutout: Draw the side uniformly between 0 and `cutout`.
        cutout_fill: Value of the square.

    Example:
        >>> strong = Strong(ops=("rotate", "equalize"))
        >>> params = strong.draw(4, torch.Generator().manual_seed(0))
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> torch.equal(strong(images, params)[2:], strong(images[2:], params.rows([2, 3])))
        True
    """

    weak: Weak = field(default_factory=Weak)
    num_ops: int = 2
    ops: tuple[str, ...] = OPS
    levels: Literal["continuous", "discrete"] = "continuous"
    p: float = 1.0
    magnitude: float = 1.0
    fill: int = 0
    cutout: float = 0.5
    random_cutout: bool = False
    cutout_fill: int = 127

    def __post_init__(self) -> None:
        _check_whole("num_ops", self.num_ops)
        _check_range("p", self.p, 0, 1)
        _check_range("magnitude", self.magnitude, 0, 1)
        _check_whole("fill", self.fill, 255)
        _check_range("cutout", self.cutout, 0, 1)
        _check_whole("cutout_fill", self.cutout_fill, 255)
        _check_choice("levels", self.levels, ("continuous", "discrete"))
        if not self.ops:
            raise ValueError("ops must name an operation, got none; use num_ops=0 for none at all")
        for name in self.ops:
            _check_choice("every op", name, OPS)

    def draw(self, num: int, generator: Generator) -> StrongParams:
        """Draw the parameters of `num` views from a CPU generator."""
        weak = self.weak.draw(num, generator)
        shape = (num, self.num_ops)
        choice = torch.randint(len(self.ops), shape, generator=generator)
        op = torch.tensor([OPS.index(name) for name in self.ops])[choice]
        applied = torch.rand(shape, generator=generator) < self.p
        if self.levels == "continuous":
            level = torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            level = torch.randint(1, 10, shape, generator=generator).double() / 10
        sign = torch.randint(2, shape, generator=generator) * 2 - 1
        centre = torch.rand((num, 2), generator=generator, dtype=torch.float64)
        side = torch.rand(num, generator=generator, dtype=torch.float64) * self.cutout
        return StrongParams(
            weak=weak,
            op=op.where(applied, torch.tensor(_SKIP)),
            level=level,
            sign=sign,
            centre=centre,
            side=side if self.random_cutout else torch.full_like(side, self.cutout),
        )

    def __call__(self, images: Tensor, params: StrongParams) -> Tensor:
        """Return the strong views of a batch.

        Args:
            images: N×C×H×W, uint8, or float in [0, 1], which is rounded to whole 255ths.
            params: Parameters of the same N images.

        Returns:
            N×C×H×W with the dtype and on the device of `images`.
        """
        x = self.weak(_as_uint8(images, len(params)), params.weak)
        if len(x):
            for op, level, sign in zip(params.op.T, params.level.T, params.sign.T, strict=True):
                x = in_groups(x, op, level, sign, self._apply)
        sides = torch.tensor(x.shape[2:])
        centre = (params.centre * sides).long()
        size = (params.side * sides.min() + _TINY).long()
        return _as_dtype(cutout(x, centre, size, self.cutout_fill), images.dtype)

    def _apply(self, name: str, x: Tensor, op: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        """Apply the operation of one group; "rotate" stands for all the geometric ones."""
        if name == "identity":
            return x
        if name in PLAIN:
            return PLAIN[name](x)
        if name in ENHANCE:
            return ENHANCE[name](x, 1.0 - self.magnitude * (0.95 - 0.9 * level))
        if name == "posterize":
            lost = 4 - (4 * level + _TINY).floor()
            return posterize(x, 8 - (self.magnitude * lost).round())
        if name == "solarize":
            return solarize(x, 256 - self._whole(256 * self.magnitude * level))
        return self._geometric(x, op, self.magnitude * level, sign)

    def _geometric(self, x: Tensor, op: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
        height, width = x.shape[2:]
        shift = (self._whole(0.3 * amount * width), self._whole(0.3 * amount * height))
        angle, slope = self._whole(30 * amount), 0.3 * amount
        return geometric(x, op, angle * sign, slope * sign, [s * sign for s in shift], self.fill)

    def _whole(self, amount: Tensor) -> Tensor:
        return amount if self.levels == "continuous" else (amount + _TINY).floor()
