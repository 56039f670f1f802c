"""Images that are no files of their own: pieces of a file, such as a tar shard, or pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt


class Piece(str):
    """So many bytes of a file from an offset on; as a text, FILE[NAME], what a person finds it by.

    It stands in the place of an image's path, and `decode.contents` reads it.

    Attributes:
        file: that has the bytes.
        offset: where they begin.
        size: how many there are.
        name: of the image within its data set, with forward slashes.
    """

    __slots__ = ("file", "name", "offset", "size")
    file: str
    name: str
    offset: int
    size: int

    def __new__(cls, file: str, offset: int, size: int, name: str) -> Piece:
        """The bytes from `offset` on, with a name."""
        made = super().__new__(cls, f"{file}[{name}]")
        made.file, made.offset, made.size, made.name = file, offset, size, name
        return made

    def __getnewargs__(self) -> tuple[str, int, int, str]:  # type: ignore[override]
        """What workers that are given it make it of."""
        return self.file, self.offset, self.size, self.name


class Held(str):
    """Pixels in memory; as a text, what a person finds them by, such as FILE.npz[test_images 3].

    It stands in the place of an image's path. `decode.contents` makes a file of it, so that pixels
    pass the same decoding as files do.

    Attributes:
        pixels: H×W×C uint8, C = 1 (grey) or 3 (RGB); of a run on features, D of those.
    """

    __slots__ = ("pixels",)
    pixels: npt.NDArray[Any]

    def __new__(cls, name: str, pixels: npt.NDArray[Any]) -> Held:
        """The pixels under a name."""
        made = super().__new__(cls, name)
        made.pixels = pixels
        return made

    def __getnewargs__(self) -> tuple[str, npt.NDArray[Any]]:  # type: ignore[override]
        """What workers that are given it make it of."""
        return str(self), self.pixels

    def content(self) -> bytes:
        """The bytes of a PGM or PPM file of it: a line of text, and the pixels as they are."""
        height, width, channels = self.pixels.shape
        head = f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n"
        return head.encode() + np.ascontiguousarray(self.pixels).tobytes()


def size_of(path: str) -> int:
    """Bytes of an image, wherever it lies.

    Raises:
        OSError: there is no such file.
    """
    return path.size if isinstance(path, Piece) else os.path.getsize(path)


def file_of(path: str) -> str:
    """The file that has the image."""
    return path.file if isinstance(path, Piece) else path
