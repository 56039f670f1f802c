"""Operations on batches of images, as tensors, on the device of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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

# Luma weights as float32 values.
_GRAY: tuple[float, ...] = tuple(torch.tensor([0.2989, 0.587, 0.114]).tolist())
# Products such as 0.03 * 5 * 100 may land one rounding error below the integer they denote.
_TINY = 1e-9


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


def in_groups(
    x: Tensor,
    op: Tensor,
    level: Tensor,
    sign: Tensor,
    apply: Callable[[str, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Apply one operation to every image, and each operation once, to all of its images together.

    Args:
        x: uint8, N×C×H×W.
        op: (N,) on the CPU, positions in `OPS`; -1: none.
        level: (N,) on the CPU.
        sign: (N,) on the CPU.
        apply: what makes the images of one group, given the operation's name and the group's rows
            of all of these; "rotate" stands for all the geometric ones, which are one group.
    """
    key = op.clamp(0, _GEOMETRIC)
    order = key.argsort(stable=True)
    keys, counts = torch.unique_consecutive(key[order], return_counts=True)
    bounds = [0, *counts.cumsum(0).tolist()]
    op, level, sign = op[order], level[order], sign[order]
    # Sorting the batch makes every group a slice: two copies in all instead of two per group.
    x = x.index_select(0, order.to(x.device, non_blocking=True))
    done = [
        apply(OPS[code], x[group], op[group], level[group], sign[group])
        for code, group in zip(keys.tolist(), map(slice, bounds, bounds[1:]), strict=True)
    ]
    return torch.cat(done).index_select(0, order.argsort().to(x.device, non_blocking=True))


def geometric(
    x: Tensor, op: Tensor, angle: Tensor, slope: Tensor, shift: Sequence[Tensor], fill: int
) -> Tensor:
    """Rotate, shear or translate each image, whichever its operation is.

    Args:
        x: uint8, N×C×H×W.
        op: (N,), positions in `OPS` of geometric operations.
        angle: (N,), degrees of a rotation.
        slope: (N,), of a shear.
        shift: (N,) pixels of a translation to the right, and (N,) of one down.
        fill: Value of the pixels that come from outside.

    Returns:
        uint8, N×C×H×W.
    """
    height, width = x.shape[2:]

    def only(name: str, value: Tensor) -> Tensor:
        return value * (op == OPS.index(name))

    shear_x, shear_y = only("shear_x", slope), only("shear_y", slope)
    return affine(
        x,
        angle=only("rotate", angle),
        shear_x=shear_x,
        shear_y=shear_y,
        # Published code shears about the upper left corner, which is a shear about the centre
        # and a shift.
        translate_x=only("translate_x", shift[0]) - shear_x * (height / 2),
        translate_y=only("translate_y", shift[1]) - shear_y * (width / 2),
        fill=fill,
    )


# Operations by name: those without a level, and those that blend by a factor.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"autocontrast": autocontrast, "equalize": equalize}
ENHANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
}
