"""A photograph, decoded at the smallest size that fills the view."""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ssl_selmix.images.damage import heard
from ssl_selmix.images.decode import check_damage, rgb

Pixels = npt.NDArray[np.uint8]
FACTORS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR),  # the former from OpenCV 4.11 on
}


class Photo:
    """An image file, decoded when asked for, to upright RGB by the rules for small images.

    The usual JPEG is decoded by OpenCV, to the bytes that Pillow gives; `images.decode.rgb` decodes
    all other files and says what is wrong with them.

    Raises:
        ValueError: the file is no whole image; with `strict`, a JPEG damaged in its middle.
    """

    def __init__(self, content: bytes, file: str, strict: bool = True) -> None:
        self._content, self._file, self._strict = content, file, strict
        size = _size_of_usual(content)
        self._image: Image.Image | None = None
        self.width, self.height = size or self.upright.size
        self._decoded: dict[int, Pixels] = {}

    def factor(self, width: float, height: float, target: int) -> int:
        """How much smaller a width×height part may be decoded to fill target×target pixels."""
        return next(f for f in FACTORS if f == 1 or min(width, height) >= f * target)

    def pixels(self, factor: int) -> Pixels:
        """The whole image at 1/factor of its size."""
        if factor not in self._decoded:
            self._decoded[factor] = self._decode(factor)
        return self._decoded[factor]

    def _decode(self, factor: int) -> Pixels:
        if self._image is None:
            flags = FACTORS[factor] | cv2.IMREAD_IGNORE_ORIENTATION
            content = np.frombuffer(self._content, np.uint8)
            decoded, damage = heard(lambda: cv2.imdecode(content, flags))
            check_damage(damage, self._file, self._strict)
            if decoded is not None:
                swap = flags & cv2.IMREAD_COLOR  # blue comes first
                return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) if swap else decoded)
        image = self.upright
        return np.asarray(image.reduce(factor) if factor > 1 else image)

    @property
    def upright(self) -> Image.Image:
        """The whole image as Pillow decodes it."""
        if self._image is None:
            self._image = rgb(self._content, self._file, strict=self._strict)[0]
        return self._image


def _size_of_usual(content: bytes) -> tuple[int, int] | None:
    """Width and height of a whole upright JPEG of one or three colours; None for other files.

    A JPEG that was cut off lacks the marker of its end. OpenCV would fill the rest with grey and
    say nothing, so a file that ends otherwise is not given to it.
    """
    if not content.endswith(b"\xff\xd9"):
        return None
    try:
        with Image.open(io.BytesIO(content)) as header:
            upright = header.getexif().get(0x0112, 1) == 1
            usual = header.format == "JPEG" and header.mode in ("RGB", "L") and upright
            return header.size if usual else None
    except Exception:  # damaged bytes make a parser raise nearly anything; `rgb` says it well
        return None
