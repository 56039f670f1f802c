"""Folders of class folders: listed, decoded to a pool, found in the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common.console import say, warn
from ssl_selmix.images import cache as pool_cache
from ssl_selmix.images.cache import Notes, PoolCache, digest_of, digests_of, key_of
from ssl_selmix.images.checks import Copies, check_class_names
from ssl_selmix.images.decode import DECODING, contents, rgb, warn_of_corrections
from ssl_selmix.images.find import NO_SUFFIX, LeftOut, below, beside, is_tools, matching, told
from ssl_selmix.images.pieces import size_of

UNLABELED = "unlabeled"  # the folder of images without a class
LARGEST = 64  # pixels; a pool of larger images does not belong into memory
BATCH = 250  # images that a thread decodes in one go
# Bytes; a smaller file is parsed, under Python's lock, for longer than it is decoded.
SMALL_FILE = 16 << 10


def unlabeled(root: Path, *more: Path) -> list[str]:
    """All image files below PATH/unlabeled, in sorted order; what is left out is told.

    Raises:
        ValueError: there is none.
    """
    folders = [root / UNLABELED for root in (root, *more) if (root / UNLABELED).is_dir()]
    folder = root / UNLABELED
    if not folders:
        raise ValueError(
            f"no folder {folder}; data.unlabeled.shape=unknown is for images there, whose classes "
            "nobody knows; draw the pool from the training images with another shape"
        )
    files: list[str] = []
    for folder in folders:
        left_out: LeftOut = {}
        files += below(str(folder), left_out)
        _tell_left_out(folder, left_out)
    if not files:
        raise ValueError(f"{folder} holds no image; add some, or choose another shape of the pool")
    return files


def unlabeled_from(roots: Sequence[Path], patterns: Sequence[str]) -> list[str]:
    """The images that the patterns match, as absolute paths; what is left out is told.

    Raises:
        ValueError: a pattern without an image, or an image of the class folders of a part.
    """
    left_out: LeftOut = {}
    files = matching(patterns, left_out)
    _tell_left_out(Path("data.unlabeled_from"), left_out)
    for place in [root / part for root in roots for part in ("train", "validation", "test")]:
        folder = os.path.join(os.path.abspath(place), "")
        if inside := [file for file in files if file.startswith(folder)]:
            raise ValueError(
                f"data.unlabeled_from matches {len(inside)} images of {place} (first: "
                f"{inside[0]}); write patterns that leave out that folder"
            )
    return files


def class_names(folder: Path, *more: Path) -> tuple[str, ...]:
    """Sorted names of the class folders of a folder and, if there are some, of others beside it."""
    folders = [place for place in (folder, *more) if place.is_dir()]
    if not folders:
        others = ", or set data.test=20, say, to hold test images out of train"
        raise ValueError(
            f"no folder {folder}; data.root must hold train/<class>/* and test/<class>/*"
            f"{others if folder.name == 'test' else ''}"
        )
    found = {p.name for f in folders for p in f.iterdir() if p.is_dir() and p.name[0] != "."}
    names = tuple(sorted(name for name in found if not is_tools(name)))
    if len(names) < 2:
        raise ValueError(f"{folder} holds {len(names)} class folders; at least 2 are needed")
    check_class_names(folder, names)
    return names


def listing(folder: Path, names: Sequence[str], *more: Path) -> tuple[list[str], np.ndarray]:
    """All image files below the class folders, in sorted order, and their classes (N,) int64.

    Those of a class come folder by folder, if there are more. What is left out is told.

    Raises:
        ValueError: a class without images.
    """
    files: list[str] = []
    counts: list[int] = []
    left_out: LeftOut = {}
    for place in (folder, *more):
        beside(place, left_out)
    for name in names:
        here = [place / name for place in (folder, *more) if (place / name).is_dir()]
        found = [file for own in here or [folder / name] for file in below(str(own), left_out)]
        if not found:
            other = left_out.get(NO_SUFFIX, [])
            holds = f" (but {Path(other[-1]).name})" if other else ""
            raise ValueError(
                f"class folder {folder / name} holds no image{holds}; add some or remove it"
            )
        files += found
        counts.append(len(found))
    _tell_left_out(folder, left_out)
    return files, np.repeat(np.arange(len(names), dtype=np.int64), counts)


def _tell_left_out(folder: Path, left_out: LeftOut) -> None:
    for line in told(left_out):
        warn(f"{folder}: {line}")


@dataclass(frozen=True)
class Reading:
    """How the files of a data set are read: resized or not, kept where, damaged ones refused.

    Attributes:
        size: of the images, size×size pixels; None: they must be alike.
        cache: keeps decoded images.
        strict: refuse a JPEG that is damaged in its middle.
        copies: learns of every file.
        place: N×3×H×W uint8, where the images are written if they fit.
    """

    size: int | None
    cache: PoolCache
    strict: bool = True
    copies: Copies = field(default_factory=Copies)
    place: Tensor | None = None


def read(folder: Path, names: Sequence[str], how: Reading) -> tuple[Tensor, np.ndarray]:
    """All images below `folder`, N×3×H×W uint8, and their classes (N,), in sorted order."""
    files, labels = listing(folder, names)
    return read_files(folder, files, how, labels), labels


def read_files(
    folder: Path, files: Sequence[str], how: Reading, labels: np.ndarray | None = None
) -> Tensor:
    """The files' images, N×3×H×W uint8; what had to be corrected is told.

    Raises:
        ValueError: a file that is no whole image.
    """
    pool, notes, digests = _cached(folder, files, how)
    if how.strict and "damaged" in notes:  # a pool that was cached with strict=false
        decode(files[notes["damaged"][1]], how.size)
    warn_of_corrections(folder, notes, files)
    how.copies.add(folder.name, files, digests, labels)
    return pool


Part = tuple[Path, Sequence[str], np.ndarray | None]  # folder, files, their classes if known


def read_together(parts: Sequence[Part], how: Reading) -> list[Tensor]:
    """The images of each part, as pieces of one array where all have one shape.

    What needs them in one row, as a pool does its labeled and unlabeled images, need not copy them.
    """
    if len(parts) == 1:  # a pool from the cache stays mapped
        return [read_files(*parts[0][:2], how, parts[0][2])]
    first = decode(parts[0][1][0], how.size, how.strict)[0]
    num = sum(len(files) for _, files, _ in parts)
    whole = torch.empty((num, *first.shape), dtype=torch.uint8)
    places = whole.split([len(files) for _, files, _ in parts])
    return [
        read_files(folder, files, replace(how, place=place), labels)
        for (folder, files, labels), place in zip(parts, places, strict=True)
    ]


def _cached(
    folder: Path, files: Sequence[str], reading: Reading
) -> tuple[Tensor, Notes, list[bytes]]:
    import PIL

    cache, size, strict, place = reading.cache, reading.size, reading.strict, reading.place
    if cache.folder is None:
        return decode_all(files, size, strict, place)
    how = {"decoding": DECODING, "size": size, "resample": "bilinear", "pillow": PIL.__version__}
    before, volume = digests_of(files)
    if volume < pool_cache.LEAST:
        return decode_all(files, size, strict, place)
    key = key_of(before, how)
    if (found := cache.get(key)) is not None:
        return _into(place, found[0]), found[1], before
    with cache.alone(key):
        # Another process may have decoded these images while this one waited.
        if (found := cache.get(key)) is not None:
            return _into(place, found[0]), found[1], before
        pool, notes, digests = decode_all(files, size, strict, place)
        # By the bytes that were decoded: files may have changed since they were looked up.
        if (path := cache.put(key_of(digests, how), pool, notes)) is not None:
            say(f"cached {len(files)} images of {folder} in {path} ({pool.nbytes >> 20} MiB)")
    return pool, notes, digests


def _into(place: Tensor | None, pool: Tensor) -> Tensor:
    """A cached pool, copied to its place if there is one that fits."""
    return pool if place is None or place.shape != pool.shape else place.copy_(pool)


def decode_all(
    files: Sequence[str], size: int | None, strict: bool = True, place: Tensor | None = None
) -> tuple[Tensor, Notes, list[bytes]]:
    """Images N×3×H×W uint8, the corrections that they took, and the digests of their files.

    They are written to `place`, if there is one and it fits.

    Raises:
        ValueError: a file that is no image, or images of unequal or too large sizes.
    """
    first, _, _ = decode(files[0], size, strict)
    shape = (len(files), *first.shape)
    fits = place is not None and place.shape == shape
    kept = place if fits and place is not None else torch.empty(shape, dtype=torch.uint8)
    pool = kept.numpy()

    def batch(start: int) -> tuple[list[bytes], list[tuple[int, list[str]]]]:
        digests, corrected = [], []
        for i in range(start, min(start + BATCH, len(files))):
            image, corrections, digest = decode(files[i], size, strict)
            if image.shape != first.shape:
                raise _unequal(files[i], image, files[0], first)
            pool[i] = image
            digests.append(digest)
            if corrections:
                corrected.append((i, corrections))
                if "damaged" in corrections:
                    warn(f"{files[i]} is damaged and taken as it is")
        return digests, corrected

    notes: Notes = {}
    digests: list[bytes] = []
    with ThreadPoolExecutor(_num_threads(files)) as threads:
        for found, corrected in threads.map(batch, range(0, len(files), BATCH)):
            digests += found
            for i, corrections in corrected:
                for kind in corrections:
                    count, earliest = notes.get(kind, (0, i))
                    notes[kind] = (count + 1, earliest)
    return kept, notes, digests


def _num_threads(files: Sequence[str]) -> int:
    sample = files[:: max(1, len(files) // 100)]
    try:
        mean = sum(map(size_of, sample)) / len(sample)
    except OSError:  # reading the file will say what is wrong
        mean = 0
    return 1 if mean < SMALL_FILE else os.cpu_count() or 1


def decode(
    file: str, size: int | None, strict: bool = True
) -> tuple[np.ndarray[Any, Any], list[str], bytes]:
    """One image as 3×H×W uint8, the corrections that it took, the digest of its file.

    Raises:
        ValueError: the file is no image, or is too large for the pool.
    """
    from PIL import Image

    content = contents(file)
    # Twice the size, so that the filter below still has something to average.
    image, corrections = rgb(content, file, None if size is None else 2 * size, strict)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    if max(image.size) > LARGEST:
        raise ValueError(
            f"{file} is {image.width}×{image.height} pixels and the image pool takes at most "
            f"{LARGEST}; set data.size={LARGEST} or less to resize, or more to stream from files"
        )
    return np.asarray(image).transpose(2, 0, 1), corrections, digest_of(content)


def _unequal(file: str, image: np.ndarray, first_file: str, first: np.ndarray) -> ValueError:
    return ValueError(
        f"{file} is {image.shape[2]}×{image.shape[1]} pixels and {first_file} "
        f"{first.shape[2]}×{first.shape[1]}; set data.size=32 to resize all"
    )
