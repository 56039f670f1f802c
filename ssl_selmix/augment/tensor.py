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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

# Geometric operations come last: grouping then needs one clamp to give them a common key.
OPS: tuple[str, ...] = (
    "identity",
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "posterize",
    "sharpness",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_GEOMETRIC = OPS.index("rotate")
_SKIP = -1  # the operation was drawn and not applied

# Luma weights as float32 values.
_GRAY: tuple[float, ...] = tuple(torch.tensor([0.2989, 0.587, 0.114]).tolist())
# Products such as 0.03 * 5 * 100 may land one rounding error below the integer they denote.
_TINY = 1e-9


# --- Pixel functions -----------------------------------------------------------------------------


def _column(magnitude: Tensor, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Move magnitudes (N,) next to the images, as N×1×1×1."""
    return magnitude.to(x.device, dtype, non_blocking=True).view(-1, 1, 1, 1)


def _fma(total: Tensor, value: Tensor, factor: Tensor | float) -> Tensor:
    """Return total + value * factor in float32 with a single rounding, on every device.

    The product of two float32 is exact in float64. Plain float32 arithmetic would be off by one
    on many grey pixels, where the exact blend is an integer and the cast to uint8 truncates.
    """
    return (total.double() + value.double() * factor).float()


def _to_uint8(x: Tensor) -> Tensor:
    return x.clamp_(0, 255).to(torch.uint8)


def _gray(x: Tensor) -> Tensor:
    """Luma of N×C×H×W images, as N×1×H×W whole numbers in float32."""
    if x.shape[1] == 1:
        return x.float()
    if x.shape[1] != 3:
        raise ValueError(
            f"color and contrast need 1 or 3 channels, got {x.shape[1]}; "
            "leave them out of `ops` for other images"
        )
    total = _fma(x[:, 0:1].float() * _GRAY[0], x[:, 1:2], _GRAY[1])
    return _fma(total, x[:, 2:3], _GRAY[2]).floor_()


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return factor * x + (1 - factor) * other as uint8, both factors rounded to float32."""
    ratio = _column(factor, x)
    rest = (1.0 - ratio).float().double()
    return _to_uint8(_fma(x.float() * ratio.float(), other, rest))


def autocontrast(x: Tensor) -> Tensor:
    """Stretch every channel to the full range; a channel of one value stays as it is.

    Args:
        x: uint8, N×C×H×W.

    Returns:
        uint8, N×C×H×W.
    """
    pixels = x.float()
    low = pixels.amin(dim=(-2, -1), keepdim=True)
    high = pixels.amax(dim=(-2, -1), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / 255.0))
    return _to_uint8((pixels - torch.where(flat, 0.0, low)) / scale)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the pixels: 0 is black, 1 the image.

    Args:
        x: uint8, N×C×H×W.
        factor: (N,), not negative.

    Returns:
        uint8, N×C×H×W.
    """
    return _to_uint8(x.float() * _column(factor, x, torch.float32))


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: 0 is grey, 1 the image; one channel has no colour to change.

    Args:
        x: uint8, N×C×H×W.
        factor: (N,), not negative.

    Returns:
        uint8, N×C×H×W.
    """
    return x if x.shape[1] == 1 else _blend(x, _gray(x), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey of the image: 0 is uniform, 1 the image.

    Args:
        x: uint8, N×C×H×W.
        factor: (N,), not negative.

    Returns:
        uint8, N×C×H×W.
    """
    # The sum of whole numbers is exact up to 256×256 pixels, in whatever order a device adds.
    total = _gray(x).sum(dim=(-3, -2, -1), keepdim=True)
    mean = (total.double() / (x.shape[-2] * x.shape[-1])).float()
    return _blend(x, mean, factor)


def equalize(x: Tensor) -> Tensor:
    """Flatten the histogram of every channel, with the integer rule of Pillow.

    Args:
        x: uint8, N×C×H×W.

    Returns:
        uint8, N×C×H×W.
    """
    flat = x.flatten(2).long()
    histogram = flat.new_zeros((*x.shape[:2], 256), dtype=torch.int32)
    histogram.scatter_add_(2, flat, histogram.new_ones(1).expand_as(flat))
    num_at_max = histogram.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - num_at_max).div(255, rounding_mode="floor")
    below = histogram.cumsum(dim=2, dtype=torch.int32) - histogram
    table = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    # Too few pixels below the maximum: there is nothing to spread, the channel stays as it is.
    table = torch.where(step > 0, table, torch.arange(256, dtype=torch.int32, device=x.device))
    return table.to(torch.uint8).gather(2, flat).view_as(x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the leading bits of every pixel.

    Args:
        x: uint8, N×C×H×W.
        bits: (N,), whole numbers from 0 to 8.

    Returns:
        uint8, N×C×H×W.
    """
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(bits, dtype=torch.long), 8 - bits.long())
    return x & _column(mask, x, torch.uint8)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image: 0 is smooth, 1 the image; the border is not smoothed.

    Args:
        x: uint8, N×C×H×W.
        factor: (N,), not negative.

    Returns:
        uint8, N×C×H×W.
    """
    if min(x.shape[-2:]) <= 2:
        return x
    pixels = x.to(torch.int16)
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    centre = pixels[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * centre
    # Thirteenths are never within 1/26 of a tie: no order of summation changes this rounding.
    smooth = (total.float() * (1.0 / 13.0)).round_()
    inner = centre.float()
    rest = (1.0 - _column(factor, x)).float().double()
    result = x.clone()
    result[..., 1:-1, 1:-1] = _to_uint8(_fma(inner, smooth - inner, rest))
    return result


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above the threshold; 256 leaves the image as it is.

    Args:
        x: uint8, N×C×H×W.
        threshold: (N,).

    Returns:
        uint8, N×C×H×W.
    """
    return torch.where(x >= _column(threshold, x, torch.float32), x.bitwise_not(), x)


def _inverse_matrix(
    angle: Tensor, shear_x: Tensor, shear_y: Tensor, translate_x: Tensor, translate_y: Tensor
) -> Tensor:
    """Return N×2×3 matrices from output to input pixels, both measured from the image centre."""
    turn = torch.deg2rad(angle.double())
    cos, sin = turn.cos(), turn.sin()
    # Undo the rotation, then the shear along y, then the one along x.
    row_y = torch.stack((shear_y * cos - sin, shear_y * sin + cos), dim=1)
    row_x = torch.stack((cos, sin), dim=1) + shear_x.double()[:, None] * row_y
    linear = torch.stack((row_x, row_y), dim=1)
    shift = torch.stack((translate_x, translate_y), dim=1).double()
    # Not a matrix product: its rounding may depend on how many images there are.
    offset = -(linear * shift[:, None, :]).sum(dim=2, keepdim=True)
    return torch.cat((linear, offset), dim=2)


def affine(
    x: Tensor,
    angle: Tensor,
    shear_x: Tensor,
    shear_y: Tensor,
    translate_x: Tensor,
    translate_y: Tensor,
    fill: int = 0,
) -> Tensor:
    """Rotate, shear and translate about the image centre, nearest pixel.

    Coordinates are float64, torchvision's float32: a source point half-way between two pixels may
    fall to the other side, which touches a small fraction of the pixels (whole-pixel translations
    have no such point). Float64, one product and one sum at a time, is the same on every device.

    Args:
        x: uint8, N×C×H×W.
        angle: (N,), degrees clockwise.
        shear_x: (N,), slope: the column a source point moves by per row below the centre.
        shear_y: (N,), slope: the row a source point moves by per column right of the centre.
        translate_x: (N,), pixels to the right.
        translate_y: (N,), pixels down.
        fill: Value of the pixels that come from outside.

    Returns:
        uint8, N×C×H×W.
    """
    height, width = x.shape[2:]
    matrix = _inverse_matrix(angle, shear_x, shear_y, translate_x, translate_y)
    matrix = matrix.to(x.device, non_blocking=True).view(-1, 6, 1, 1)
    xx, xy, x0, yx, yy, y0 = matrix.unbind(1)
    col = torch.arange(width, dtype=torch.float64, device=x.device) - (width - 1) / 2
    row = torch.arange(height, dtype=torch.float64, device=x.device)[:, None] - (height - 1) / 2
    # Half up, not half to even: ties are the rule for a shift by half a pixel, and half to even
    # would double every second pixel and drop the others.
    source_col = (xx * col + (xy * row + (x0 + width / 2))).floor_().long()
    source_row = (yx * col + (yy * row + (y0 + height / 2))).floor_().long()
    inside = (source_col >= 0) & (source_col < width) & (source_row >= 0) & (source_row < height)
    source = source_row.clamp_(0, height - 1) * width + source_col.clamp_(0, width - 1)
    moved = _take(x, source)
    return _keep(moved, inside, fill)


def _keep(x: Tensor, kept: Tensor, fill: int) -> Tensor:
    """The pixels of N×C×H×W where N×H×W says so, and `fill` elsewhere.

    A product, for choosing single bytes takes a CPU ten times as long.
    """
    mask = kept[:, None].to(torch.uint8)
    return x * mask if fill == 0 else x * mask + (1 - mask) * fill


def _take(x: Tensor, source: Tensor) -> Tensor:
    """Gather the pixels of N×C×H×W images at flat positions N×H×W."""
    num, channels, height, width = x.shape
    index = source.view(num, 1, height * width).expand(num, channels, height * width)
    return x.flatten(2).gather(2, index).view_as(x)


def cutout(x: Tensor, centre: Tensor, size: Tensor, fill: int = 127) -> Tensor:
    """Fill one square per image, clipped at the borders.

    The square covers the rows and columns from ``centre - size // 2`` on, ``size`` of them.

    Args:
        x: uint8, N×C×H×W.
        centre: N×2, row and column.
        size: (N,), pixels; 0 cuts nothing.
        fill: Value of the square.

    Returns:
        uint8, N×C×H×W.
    """
    start = centre - size[:, None] // 2
    box = torch.cat((start, start + size[:, None]), dim=1).to(x.device, non_blocking=True)
    top, left, bottom, right = box.view(-1, 4, 1, 1).unbind(1)
    row = torch.arange(x.shape[2], device=x.device)[:, None]
    col = torch.arange(x.shape[3], device=x.device)
    hole = ((row >= top) & (row < bottom)) & ((col >= left) & (col < right))
    return _keep(x, ~hole, fill)


# --- Views ---------------------------------------------------------------------------------------


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
                x = self._round(x, op, level, sign)
        sides = torch.tensor(x.shape[2:])
        centre = (params.centre * sides).long()
        size = (params.side * sides.min() + _TINY).long()
        return _as_dtype(cutout(x, centre, size, self.cutout_fill), images.dtype)

    def _round(self, x: Tensor, op: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        """Apply one operation to every image; op, level and sign are (N,) on the CPU."""
        key = op.clamp(0, _GEOMETRIC)
        order = key.argsort(stable=True)
        keys, counts = torch.unique_consecutive(key[order], return_counts=True)
        bounds = [0, *counts.cumsum(0).tolist()]
        op, level, sign = op[order], level[order], sign[order]
        # Sorting the batch makes every group a slice: two copies in all instead of two per group.
        x = x.index_select(0, order.to(x.device, non_blocking=True))
        done = [
            self._apply(OPS[code], x[group], op[group], level[group], sign[group])
            for code, group in zip(keys.tolist(), map(slice, bounds, bounds[1:]), strict=True)
        ]
        return torch.cat(done).index_select(0, order.argsort().to(x.device, non_blocking=True))

    def _apply(self, name: str, x: Tensor, op: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        """Apply the operation of one group; "rotate" stands for all the geometric ones."""
        if name == "identity":
            return x
        if name in _PLAIN:
            return _PLAIN[name](x)
        if name in _ENHANCE:
            return _ENHANCE[name](x, 1.0 - self.magnitude * (0.95 - 0.9 * level))
        if name == "posterize":
            lost = 4 - (4 * level + _TINY).floor()
            return posterize(x, 8 - (self.magnitude * lost).round())
        if name == "solarize":
            return solarize(x, 256 - self._whole(256 * self.magnitude * level))
        return self._geometric(x, op, self.magnitude * level, sign)

    def _geometric(self, x: Tensor, op: Tensor, amount: Tensor, sign: Tensor) -> Tensor:
        height, width = x.shape[2:]

        def only(name: str, value: Tensor) -> Tensor:
            return value * sign * (op == OPS.index(name))

        shear_x, shear_y = only("shear_x", 0.3 * amount), only("shear_y", 0.3 * amount)
        return affine(
            x,
            angle=only("rotate", self._whole(30 * amount)),
            shear_x=shear_x,
            shear_y=shear_y,
            # Published code shears about the upper left corner, which is a shear about the centre
            # and a shift.
            translate_x=only("translate_x", self._whole(0.3 * amount * width))
            - shear_x * (height / 2),
            translate_y=only("translate_y", self._whole(0.3 * amount * height))
            - shear_y * (width / 2),
            fill=self.fill,
        )

    def _whole(self, amount: Tensor) -> Tensor:
        return amount if self.levels == "continuous" else (amount + _TINY).floor()


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"autocontrast": autocontrast, "equalize": equalize}
_ENHANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
}
