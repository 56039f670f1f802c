"""What data sets share: files that torchvision fetches, and image files as users have them.

torchvision's readers check every file against the published MD5. Here are the settings that its
data sets share, their errors in one line, and the way from their arrays to an image pool. An image
file of any kind becomes 8-bit RGB, and what that changed is told.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import ImageSet
from ssl_selmix.log import warn
from ssl_selmix.splits import LongTailSplit

if TYPE_CHECKING:
    from PIL import Image

# Zero padding, three operations, a square of random size: the views of the SelMix paper's code.
WEAK = Weak(padding="zeros")
STRONG = Strong(weak=WEAK, num_ops=3, random_cutout=True)

READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
# Errors of a file, as opposed to those of a machine that is short of something.
BROKEN_FILE = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.EPERM)
DECODING = 1  # raise it when `rgb` or its callers make other pixels of the same file

# What becomes of images that are not 8-bit RGB; "made RGB" if nothing is said here.
CORRECTIONS = {
    "16-bit": "cut to the upper 8 bits",
    "transparent": "laid on white",
    "rotated": "turned upright, as the EXIF orientation says",
    "multi-frame": "represented by the first frame",
}


@dataclass
class Downloaded(LongTailSplit):
    """A split of a data set that torchvision knows, and where its files are."""

    root: str = "data"  # the folder that holds the data set's own folder
    download: bool = True  # fetch and unpack missing or damaged files


def open_part(name: str, config: Downloaded, **part: Any) -> Any:
    """One part of a torchvision data set, its files fetched if need be and verified.

    Args:
        name: of the class in torchvision.datasets.
        config: where the files are.
        part: arguments that choose the part, such as train=True or split="test".

    Raises:
        ValueError: files are missing or damaged and could not be downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    root = Path(os.path.expanduser(config.root))
    try:
        return kind(root, download=config.download, **part)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, with an open connection
        raise ValueError(_remedy(kind, root, config.download, error)) from error


def _remedy(kind: Any, root: Path, download: bool, error: Exception) -> str:
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    known = dict([*kind.train_list, *kind.test_list])
    if meta := getattr(kind, "meta", None):
        known[meta["filename"]] = meta["md5"]
    present = [file for file in known if (folder / file).is_file()]
    try:
        damaged = [file for file in present if not check_integrity(folder / file, known[file])]
    except OSError:  # not allowed to read; the first error says so
        damaged = []
    reason = " ".join(str(error).split()) or type(error).__name__
    if missing := [file for file in known if file not in present]:
        state = f"{folder} lacks {_some(missing)}"
    elif damaged:
        state = f"{folder} has a damaged {_some(damaged)}"
    else:
        state = f"{folder} cannot be used ({reason})"
    if download:
        state += f", and the download failed ({reason})"
    put = f"unpack {kind.url} in {root}" + ("" if download else ", set data.download=true")
    return f"{kind.__name__}: {state}; {put}, or set data.root to the folder that has {folder.name}"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def pool(images: np.ndarray, size: int | None = None) -> Tensor:
    """N×C×H×W uint8 as a contiguous pool; bilinear with antialiasing to size×size pixels."""
    whole = torch.from_numpy(images)
    if size is None or whole.shape[2:] == (size, size):
        return whole.contiguous()
    resized = torch.empty((*whole.shape[:2], size, size), dtype=torch.uint8)
    # In pieces, because an interpolation copies what it is given: 2.8 GB for all of STL-10.
    for piece, out in zip(whole.split(1000), resized.split(1000), strict=True):
        # Bytes in, bytes out is Pillow's arithmetic, and so that of torchvision's Resize.
        out.copy_(F.interpolate(piece, (size, size), mode="bilinear", antialias=True))
    return resized


def cifar(
    name: str, config: Downloaded, mean: tuple[float, ...], std: tuple[float, ...]
) -> ImageSet:
    """CIFAR-10 or CIFAR-100, training and test images, normalised by the given constants."""
    train, test = (open_part(name, config, train=part) for part in (True, False))
    return ImageSet(
        train=pool(train.data.transpose(0, 3, 1, 2)),
        train_labels=np.asarray(train.targets, dtype=np.int64),
        test=pool(test.data.transpose(0, 3, 1, 2)),
        test_labels=np.asarray(test.targets, dtype=np.int64),
        class_names=tuple(train.classes),
        mean=mean,
        std=std,
        weak=WEAK,
        strong=STRONG,
    )


def warn_of_corrections(
    where: object, notes: Mapping[str, tuple[int, int]], files: Sequence[str]
) -> None:
    """A line for each kind of correction: how many images, and the first of them."""
    for kind, (count, first) in notes.items():
        images = "image" if count == 1 else "images"
        done = CORRECTIONS.get(kind, "made RGB")
        warn(f"{where}: {count} {kind} {images} {done} (first: {files[first]})")


def contents(file: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ValueError: the file cannot be read.
    """
    # Half the time of open(): with 60,000 files of 1 kB this is most of what a start costs.
    try:
        handle = os.open(file, READ)
        try:
            content = os.read(handle, 1 << 15)
            if len(content) < 1 << 15:  # should it not be all, the image is a truncated one
                return content
            parts = [content]
            while part := os.read(handle, 1 << 20):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in BROKEN_FILE:
            raise _unreadable(file, error.strerror or str(error)) from error
        raise  # of the machine, such as too many open files: the image may be as good as any


def rgb(content: bytes, file: str, at_least: int | None = None) -> tuple[Image.Image, list[str]]:
    """The bytes of an image file as an upright 8-bit RGB image, and the corrections that it took.

    Args:
        content: of the file.
        file: its name, for errors.
        at_least: pixels that each side must keep; a large JPEG is then decoded at 1/2, 1/4 or 1/8.

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
            return _rgb(opened)
    except UnidentifiedImageError as error:
        reason = "its bytes are of no known format" if content else "the file is empty"
        raise _unreadable(file, reason) from error
    except Exception as error:  # damaged bytes make a decoder raise nearly anything
        raise _unreadable(file, " ".join(str(error).split())) from error


def _unreadable(file: str, reason: str) -> ValueError:
    return ValueError(f"{file} is no readable image ({reason}); remove or replace it")


def _rgb(opened: Image.Image) -> tuple[Image.Image, list[str]]:
    corrections = ["multi-frame"] if getattr(opened, "is_animated", False) else []
    mode, deep = opened.mode, ";16" in str(getattr(opened, "tile", ""))  # loading clears it
    opened.load()
    if deep or mode.startswith("I"):
        corrections.append("16-bit")
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        corrections.append("greyscale")
    elif mode in ("P", "PA"):
        corrections.append("palette")
    elif mode not in ("RGB", "RGBA"):
        corrections.append(mode)
    image = opened
    if mode.startswith(("I", "F")):
        image = _upper_bits(opened, deep)
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


def _upper_bits(opened: Image.Image, deep: bool) -> Image.Image:
    """16-bit grey as 8-bit grey: Pillow's own conversion makes all above 255 white."""
    from PIL import Image

    if opened.mode == "F" or not (deep or opened.mode.startswith("I;16") or opened.format == "PPM"):
        raise ValueError("32-bit values have no known range, save it with 8 or 16 bits")
    return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))


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
