"""Images that lie in a larger file, such as a tar shard, and are read from there as they are."""

from __future__ import annotations

import os


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


def size_of(path: str) -> int:
    """Bytes of an image, wherever it lies.

    Raises:
        OSError: there is no such file.
    """
    return path.size if isinstance(path, Piece) else os.path.getsize(path)


def file_of(path: str) -> str:
    """The file that has the image."""
    return path.file if isinstance(path, Piece) else path
