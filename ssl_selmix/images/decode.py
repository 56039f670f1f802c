"""Image files of any kind as upright 8-bit RGB; what that changed is told."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_selmix.common.console import warn
from ssl_selmix.images.damage import damage_of
from ssl_selmix.images.pieces import Held, Piece

if TYPE_CHECKING:
    from PIL import Image


# Opening a pipe that nobody writes into would wait for ever; regular files know no O_NONBLOCK.
READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
LARGEST_FILE = 512 << 20  # bytes; Pillow's limit of 179 million pixels, uncompressed
# Errors of a file, as opposed to those of a machine that is short of something.
BROKEN_FILE = (
    *(errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM),
    *(errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG),  # a socket, a device that is not there
)
DECODING = 2  # raise it when `rgb` or its callers make other pixels of the same file

# What becomes of images that are not 8-bit RGB; "made RGB" if nothing is said here.
CORRECTIONS = {
    "16-bit": "cut to the upper 8 bits",
    "12-bit": "cut to the upper 8 of their bits",
    "negative": "inverted, as the file says that white is 0",
    "damaged": "taken as they are",
    "transparent": "laid on white",
    "rotated": "turned upright, as the EXIF orientation says",
    "multi-frame": "represented by the first frame",
}


def warn_of_corrections(
    where: object, notes: Mapping[str, tuple[int, int]], files: Sequence[str]
) -> None:
    """A line for each kind of correction: how many images, and the first of them."""
    for kind, (count, first) in notes.items():
        images = "image" if count == 1 else "images"
        done = CORRECTIONS.get(kind, "made RGB")
        warn(f"{where}: {count} {kind} {images} {done} (first: {files[first]})")


def contents(file: str) -> bytes:
    """The bytes of an image file, or of the piece of a file that is an image.

    Raises:
        ValueError: the file cannot be read.
    """
    if isinstance(file, Piece):
        return _of_piece(file)
    if isinstance(file, Held):
        return file.content()
    # Half the time of open(): with 60,000 files of 1 kB this is most of what a start costs.
    try:
        handle = os.open(file, READ)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
                raise _unreadable(file, f"it is {kind}")
            if status.st_size > LARGEST_FILE:
                raise _unreadable(file, _too_long(status.st_size))
            content = os.read(handle, 1 << 15)
            if len(content) < 1 << 15:  # should it not be all, the image is a truncated one
                return content
            parts, length = [content], len(content)
            while part := os.read(handle, 1 << 20):
                parts.append(part)
                length += len(part)
                if length > LARGEST_FILE:  # another program is writing it
                    raise _unreadable(file, _too_long(length))
            return b"".join(parts)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in BROKEN_FILE:
            raise _unreadable(file, error.strerror or str(error)) from error
        raise  # of the machine, such as too many open files: the image may be as good as any


def _of_piece(piece: Piece) -> bytes:
    if piece.size > LARGEST_FILE:
        raise _unreadable(piece, _too_long(piece.size))
    try:
        with open(piece.file, "rb") as file:
            file.seek(piece.offset)
            content = file.read(piece.size)
    except OSError as error:
        if error.errno in BROKEN_FILE:
            raise _unreadable(piece, error.strerror or str(error)) from error
        raise
    if len(content) != piece.size:
        raise _unreadable(piece, "the file that has it became shorter")
    return content


def _too_long(length: int) -> str:
    return f"it has {length >> 20} MiB and an image file has at most {LARGEST_FILE >> 20}"


def rgb(
    content: bytes, file: str, at_least: int | None = None, strict: bool = True
) -> tuple[Image.Image, list[str]]:
    """The bytes of an image file as an upright 8-bit RGB image, and the corrections that it took.

    Args:
        content: of the file.
        file: its name, for errors.
        at_least: pixels that each side must keep; a large JPEG is then decoded at 1/2, 1/4 or 1/8.
        strict: refuse a JPEG that is damaged in its middle; else the correction "damaged" tells it.

    Raises:
        ValueError: the bytes are no whole image, or have values of unknown range.
    """
    from PIL import Image, ImageFile, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on and would fill truncated images with grey; "
            "set it to False, or leave out the plug-in that sets it"
        )
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if at_least is not None:
                opened.draft(None, (at_least, at_least))
            image, corrections = _rgb(opened)
    except UnidentifiedImageError as error:
        reason = "its bytes are of no known format" if content else "the file is empty"
        raise _unreadable(file, reason) from error
    except Exception as error:  # damaged bytes make a decoder raise nearly anything
        raise _unreadable(file, " ".join(str(error).split())) from error
    if damage := damage_of(content):
        check_damage(damage, file, strict)
        corrections.append("damaged")
    return image, corrections


def check_damage(damage: str, file: str, strict: bool) -> None:
    """Refuse a JPEG that is damaged in its middle, if this is wanted.

    Raises:
        ValueError: it is.
    """
    if damage and strict:
        raise ValueError(
            f"{file} is no readable image (a damaged JPEG: {damage}); remove or replace it, or "
            "train with data.strict=false to take it as it is"
        )


def _unreadable(file: str, reason: str) -> ValueError:
    return ValueError(f"{file} is no readable image ({reason}); remove or replace it")


def _rgb(opened: Image.Image) -> tuple[Image.Image, list[str]]:
    corrections = ["multi-frame"] if getattr(opened, "is_animated", False) else []
    mode, deep = opened.mode, ";16" in str(getattr(opened, "tile", ""))  # loading clears it
    opened.load()
    bits = _bits_of_tiff(opened) if mode.startswith("I;16") else 16
    if deep or mode.startswith("I"):
        corrections.append("16-bit" if bits == 16 else "12-bit" if bits == 12 else f"{bits}-bit")
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        corrections.append("greyscale")
    elif mode in ("P", "PA"):
        corrections.append("palette")
    elif mode not in ("RGB", "RGBA"):
        corrections.append(mode)
    image = opened
    if mode.startswith(("I", "F")):
        image = _upper_bits(opened, deep, bits)
        if _white_is_zero(opened):
            image = image.point(lambda value: 255 - value)
            corrections.append("negative")
    elif mode in ("LA", "PA", "RGBA") or "transparency" in opened.info:
        image = opened.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = _on_white(image)
            corrections.append("transparent")
        elif mode == "RGBA":
            corrections.append("opaque RGBA")
    if (turn := _orientation(opened)) is not None:
        image = image.transpose(turn)
        corrections.append("rotated")
    return (image if image.mode == "RGB" else image.convert("RGB")), corrections


def _bits_of_tiff(opened: Image.Image) -> int:
    """Of a grey value: Pillow gives 12 of them, the usual scanner's, in 16 without scaling."""
    found = getattr(opened, "tag_v2", {}).get(258, 16)
    bits = int(found[0] if isinstance(found, tuple) else found)
    return bits if 8 < bits < 16 else 16


def _white_is_zero(opened: Image.Image) -> bool:
    """Whether a TIFF's 0 is white, which Pillow heeds up to 8 bits only."""
    return bool(getattr(opened, "tag_v2", {}).get(262, 1) == 0)


def _upper_bits(opened: Image.Image, deep: bool, bits: int) -> Image.Image:
    """Deep grey as 8-bit grey: Pillow's own conversion makes all above 255 white."""
    from PIL import Image

    if opened.mode == "F" or not (deep or opened.mode.startswith("I;16") or opened.format == "PPM"):
        raise ValueError("32-bit values have no known range, save it with 8 or 16 bits")
    return Image.fromarray((np.asarray(opened) >> (bits - 8)).clip(0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as a page shows it: below transparent pixels files hold anything."""
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _orientation(opened: Image.Image) -> Image.Transpose | None:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(opened.getexif().get(0x0112, 1))
    except Exception:  # the image is whole; damaged notes about it say nothing
        return None
