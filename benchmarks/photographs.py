"""Shared by the benchmarks of image files: JPEG files of about 500×375 pixels and some 80 kB."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def smooth_noise(rng: np.random.Generator) -> Image.Image:
    """A small image of random colours, in place of a photograph."""
    return Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))


def jpeg(image: Image.Image, rng: np.random.Generator, *, upright: bool = False) -> bytes:
    """The image enlarged, with noise, as the bytes of a JPEG file."""
    size = (375, 500) if upright else (500, 375)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = (pixels + rng.normal(0, 14, pixels.shape)).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def jpegs(number: int) -> Iterator[bytes]:
    """Files made of smooth noise; every fourth is upright."""
    rng = np.random.default_rng(0)
    for i in range(number):
        yield jpeg(smooth_noise(rng), rng, upright=i % 4 == 0)
