"""Views of images that come from files, one at a time: albumentations on the workers' processors.

A view is drawn from a key of its own, (seed of batch and view, row in the batch), and so depends on
nothing else: not on the process that makes it, on its neighbours, or on other views of its image.

Weak: random resized crop and flip. Strong: the same, then operations of RandAugment with magnitudes
uniform in the ranges of the SelMix code, then a square of random size, as for small images
(`augment.tensor`); or, in their place, AugMix. Plain: the shorter side to 256/224 of the size,
then the central square.

Sharper than in Pillow, cheaper than its filter: a JPEG is decoded at the smallest of 1, 1/2, 1/4,
1/8 of its size that still has a pixel for every pixel of the view; bilinear sampling does the rest,
always by less than a factor of 2.

Shapes: H×W pixels of the file, S×S of a view; arrays are H×W×3, RGB, uint8.

References:
    RandAugment, https://arxiv.org/abs/1909.13719; Albumentations, https://arxiv.org/abs/1809.06839.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import cv2
import numpy as np
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask a server
import albumentations as A

from ssl_selmix.augment.augmix import AugMix
from ssl_selmix.images.photo import Photo, Pixels

Box = tuple[int, int, int, int]  # left, upper, right, lower

NUM_OPS = 3
FILL = (125, 123, 114)  # of the square
LARGEST_SQUARE = 0.5  # of the side
THIN = 16  # times longer than wide
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13


@dataclass(frozen=True)
class Plain:
    """The view without augmentation, for validation, test and pseudo-labels."""

    size: int

    @cached_property
    def _steps(self) -> tuple[Any, Any]:
        shorter = round(self.size * 256 / 224)
        crop = A.CenterCrop(self.size, self.size)
        return A.SmallestMaxSize(shorter, interpolation=cv2.INTER_LINEAR), crop

    def __call__(self, photo: Photo, key: tuple[int, int]) -> Pixels:
        """The central square; the key has no meaning."""
        resize, crop = self._steps
        factor = photo.factor(photo.width, photo.height, round(self.size * 256 / 224))
        image = resize(image=_without_ends(photo.pixels(factor)))["image"]
        return np.asarray(crop(image=image)["image"])


def _without_ends(pixels: Pixels) -> Pixels:
    """A thin image without the ends that the central square cannot show.

    Of 3000×1 pixels the whole image would be resized to 768,000×256 before it is cut. Both ends
    lose the same, so that the centre stays.
    """
    for axis in (0, 1):
        length, across = pixels.shape[axis], pixels.shape[1 - axis]
        if (surplus := (length - THIN * across) // 2) > 0:
            pixels = pixels.take(range(surplus, length - surplus), axis)
    return pixels


@dataclass(frozen=True)
class Weak:
    """Random resized crop of 8 to 100 % of the area, mirrored half the time."""

    size: int

    @cached_property
    def _steps(self) -> tuple[Any, Any]:
        crop = A.RandomResizedCrop((self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return crop, A.HorizontalFlip(p=0.5)

    def __call__(self, photo: Photo, key: tuple[int, int]) -> Pixels:
        """The view that belongs to the key."""
        return self.view(photo, _Chance(key))

    def view(self, photo: Photo, chance: _Chance) -> Pixels:
        """The view that comes next in this stream of random numbers."""
        crop, flip = self._steps
        # Where the crop lies is drawn before anything is decoded, and so decides how finely.
        crop.set_random_state(chance.numpy, chance.python)
        shape = {"shape": (photo.height, photo.width, 3)}
        left, upper, right, lower = crop.get_params_dependent_on_data(shape, {})["crop_coords"]
        factor = photo.factor(right - left, lower - upper, self.size)
        pixels = photo.pixels(factor)
        across, down = pixels.shape[1] / photo.width, pixels.shape[0] / photo.height
        box = (*_scaled(left, right, across), *_scaled(upper, lower, down))
        image = crop.apply(pixels, crop_coords=(box[0], box[2], box[1], box[3]))
        return chance.apply(flip, image)


def _scaled(start: int, end: int, scale: float) -> tuple[int, int]:
    first = math.floor(start * scale)
    return first, max(first + 1, math.floor(end * scale))


@dataclass(frozen=True)
class Strong:
    """The weak view, then operations drawn with replacement, then a grey square.

    The published code applies the operations to the whole image, before the crop; after it they
    cost a fraction, as there are fewer pixels.
    """

    size: int
    num_ops: int = NUM_OPS

    @cached_property
    def _weak(self) -> Weak:
        return Weak(self.size)

    def __call__(self, photo: Photo, key: tuple[int, int]) -> Pixels:
        """The view that belongs to the key."""
        chance = _Chance(key)
        image = self._weak.view(photo, chance)
        ops = tuple(operations().values())
        for choice in chance.numpy.integers(len(ops), size=self.num_ops):
            image = ops[choice](image, chance)
        return _square(image, chance)


@dataclass(frozen=True)
class Mixed:
    """The weak view, then AugMix, whose operations are those of small images (`augment.augmix`).

    One implementation serves both. On one core a view of 224×224 pixels took it 5 ms, of which
    torchvision's AugMix took 9.
    """

    size: int
    mix: AugMix  # whose own weak view changes nothing

    @cached_property
    def _weak(self) -> Weak:
        return Weak(self.size)

    def __call__(self, photo: Photo, key: tuple[int, int]) -> Pixels:
        """The view that belongs to the key."""
        chance = _Chance(key)
        image = np.ascontiguousarray(self._weak.view(photo, chance))
        generator = torch.Generator().manual_seed(int(chance.numpy.integers(2**62)))
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        mixed = self.mix(x, self.mix.draw(1, generator))
        return np.asarray(mixed[0].permute(1, 2, 0).numpy())


class _Chance:
    """The random numbers of one view, as albumentations takes them."""

    def __init__(self, key: tuple[int, int]) -> None:
        self.numpy = np.random.default_rng(key)
        self.python = random.Random(int(self.numpy.integers(2**63)))

    def apply(self, transform: Any, image: Pixels) -> Pixels:
        """One albumentations transform, drawing from these numbers alone.

        Giving the generators away costs nothing; seeding a `Compose` of all operations takes as
        long as applying two of them.
        """
        transform.set_random_state(self.numpy, self.python)
        return np.asarray(transform(image=image)["image"])


Operation = Callable[[Pixels, _Chance], Pixels]


@cache
def operations() -> dict[str, Operation]:
    """RandAugment's operations by name, each at a magnitude drawn uniformly from its range."""

    def plain(transform: Any) -> Operation:
        return lambda image, chance: chance.apply(transform, image)

    def jitter(**changed: tuple[float, float]) -> Operation:
        still: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation"), (1, 1))
        return plain(A.ColorJitter(**(still | changed), hue=(0, 0), p=1))

    def affine(**change: Any) -> Operation:
        return plain(A.Affine(**change, interpolation=cv2.INTER_NEAREST, fill=0, p=1))

    factor = (0.05, 0.95)
    slope = math.degrees(math.atan(0.3))
    return {
        "identity": lambda image, chance: image,
        "autocontrast": plain(A.AutoContrast(method="pil", p=1)),
        "brightness": jitter(brightness=factor),
        "color": jitter(saturation=factor),
        "contrast": jitter(contrast=factor),
        "equalize": plain(A.Equalize(mode="pil", p=1)),
        "posterize": plain(A.Posterize(num_bits=(4, 7), p=1)),
        "sharpness": _soften,
        "solarize": plain(A.Solarize(threshold_range=(0, 1), p=1)),
        "rotate": affine(rotate=(-30, 30)),
        "shear_x": affine(shear={"x": (-slope, slope), "y": 0}),
        "shear_y": affine(shear={"x": 0, "y": (-slope, slope)}),
        "translate_x": affine(translate_percent={"x": (-0.3, 0.3), "y": 0}),
        "translate_y": affine(translate_percent={"x": 0, "y": (-0.3, 0.3)}),
    }


def _soften(image: Pixels, chance: _Chance) -> Pixels:
    """Pillow's sharpness below 1, a blend with a smoothed image; albumentations only sharpens."""
    factor = float(chance.numpy.uniform(0.05, 0.95))
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    return np.asarray(cv2.addWeighted(image, factor, smooth, 1 - factor, 0))


def _square(image: Pixels, chance: _Chance) -> Pixels:
    """A square of up to half the side at a uniform centre, clipped at the border."""
    height, width = image.shape[:2]
    share, down, across = chance.numpy.random(3)
    side = int(share * LARGEST_SQUARE * min(height, width))
    upper, left = int(down * height) - side // 2, int(across * width) - side // 2
    if side:
        image = image.copy()  # it may be the decoded photo itself
        image[max(0, upper) : upper + side, max(0, left) : left + side] = FILL
    return image


@cache
def views(
    size: int, mix: AugMix | None = None
) -> dict[str, Callable[[Photo, tuple[int, int]], Pixels]]:
    """The views that files can be asked for, by name, S×S×3; strong ones by `mix`, if given."""
    strong = Strong(size) if mix is None else Mixed(size, mix)
    return {"plain": Plain(size), "weak": Weak(size), "strong": strong}
