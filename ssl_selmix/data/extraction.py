"""Features that are computed once: a folder of mapped arrays, filled by one or several processes.

The images are cut into chunks. A process that has a chunk's lock passes its images through the
body, writes the rows, and then marks the chunk in a table with the checksum of its rows. So a
killed process costs the chunks that it was working on, and others go on meanwhile. What says that
the features are whole, `about.json`, is written when all chunks are.

Shapes: N images of a part, n of them in a chunk, D features, V views of an image.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.locks import in_turn
from ssl_selmix.common.rules import Checked, at_least, one_of
from ssl_selmix.data.batch import Draw, Pool, SeededDraw
from ssl_selmix.data.chunks import MARK, PLAIN, TABLE, Chunk, Part, Teller, Writer, sum_of
from ssl_selmix.data.features import VIEWS, FeatureSet, Rows
from ssl_selmix.data.source import Source

FORMAT = "ssl_selmix features 1"
ABOUT = "about.json"
CHUNK = 256  # images that are marked together
AT_ONCE = (64, 256)  # images that pass the body together, on a CPU and on a GPU


@dataclass
class Config(Checked):
    """Whether the body passes every image once, before training, and what of it is kept."""

    # cached: features are computed once; none: images pass the body at every step; auto: cached
    # for a pre-trained body that stays as it is (model.tune=head). Also written features=cached
    mode: str = one_of("auto", "cached", "none")
    weak: int = at_least(0, 0)  # weak views of each image; 0: its plain view in their place
    strong: int = at_least(0, 0)  # strong views of each image; 0: its plain view in their place
    dtype: str = one_of("float16", "float32")  # number format of features on the disk
    dir: str = "auto"  # folder of folders of features, or one of them; auto: that of the cache

    def __post_init__(self) -> None:
        """Refuse an empty folder."""
        super().__post_init__()
        if not self.dir or self.dir == "none":
            raise ValueError("dir must be a folder or auto; write features=none for no features")


Embed = Callable[[Tensor], Tensor]


def parts_of(source: Source, device: torch.device, views: Mapping[str, int]) -> list[Part]:
    """The parts of a data set; images to test on have their plain view alone."""
    pool, own_test = source.pools(device)
    num, extra = len(source.train), source.extra_unlabeled
    drawn = {name: count for name, count in views.items() if count}
    found = [Part("train", pool, torch.arange(num - source.apart), drawn)]
    if source.apart:
        held = torch.arange(num - source.apart, num)
        found.append(Part("validation", pool, held, drawn))
    if extra is not None:
        found.append(Part("unlabeled", pool, torch.arange(num, num + len(extra)), drawn))
    if own_test is not None:
        found.append(Part("test", *own_test, {}))
    return found


class Features:
    """A folder of features: perhaps whole, perhaps begun, perhaps absent."""

    def __init__(self, folder: Path, parts: Sequence[Part], how: Mapping[str, Any]) -> None:
        """`how`: all that decides the features, as plain values."""
        self.folder, self.parts = folder, parts
        self.how = json.loads(json.dumps(how))

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All chunks, in order."""
        pieces = (
            (part, start, min(start + CHUNK, len(part.index)))
            for part in self.parts
            for start in range(0, len(part.index), CHUNK)
        )
        return [Chunk(number, *piece) for number, piece in enumerate(pieces)]

    @property
    def num_images(self) -> int:
        """Of all parts."""
        return sum(len(part.index) for part in self.parts)

    def shapes(self, dimension: int) -> dict[str, tuple[int, ...]]:
        """The arrays by their names, and their shapes."""
        found: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            found[part.name] = (len(part.index), dimension)
            for name, num in part.views.items():
                found[f"{part.name}_{name}"] = (len(part.index), num, dimension)
        return found

    def about(self) -> dict[str, Any] | None:
        """What a whole folder says of itself; None if it is not whole.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        file = self.folder / ABOUT
        try:
            found = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete {self.folder}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{file} is of another version; delete {self.folder}")
        return found

    def opened(self) -> Mapping[str, Tensor] | None:
        """The arrays, mapped, if the folder is whole; None if it is not.

        Raises:
            ValueError: it has features of other images, another body or other views, or is damaged.
        """
        about = self.about()
        if about is None:
            return None
        self._check_same(about["how"])
        found = {}
        for name, shape in self.shapes(about["dimension"]).items():
            file = self.folder / f"{name}.npy"
            try:
                array = np.load(file, mmap_mode="c", allow_pickle=False)
                whole = array.shape == shape and str(array.dtype) == self.how["dtype"]
            except (OSError, ValueError, EOFError):
                whole = False
            if not whole:
                raise ValueError(f"{file} is damaged or missing; delete {self.folder}")
            found[name] = torch.from_numpy(array)
        now = stamps(self.folder, list(found))
        if now != about["stamps"]:
            self._check_sums(about["crc32"], found)
            with suppress(OSError):  # a folder that others may only read is as good
                write_atomically(self.folder / ABOUT, json.dumps(about | {"stamps": now}).encode())
        return found

    def _check_same(self, how: Mapping[str, Any]) -> None:
        """Refuse features that were made otherwise; says what differs first."""
        for key, wanted in self.how.items():
            if how.get(key) != wanted:
                told = WORDS.get(key, key)
                raise ValueError(
                    f"{self.folder} has features of {told} ({_short(how.get(key))}) than this run "
                    f"({_short(wanted)}); name another folder, or none, with features.dir"
                )

    def _check_sums(self, sums: Sequence[int], arrays: Mapping[str, Tensor]) -> None:
        """Read all rows of a folder that was copied or changed."""
        for chunk, crc32 in zip(self.chunks, sums, strict=True):
            rows = [
                arrays[name][chunk.start : chunk.stop].numpy()
                for name in self.shapes(1)
                if name.partition("_")[0] == chunk.part.name
            ]
            if sum_of(rows) != crc32:
                raise ValueError(
                    f"{self.folder} is damaged: rows {chunk.start} to {chunk.stop} of "
                    f"{chunk.part.name} do not match their checksum; delete it"
                )

    def make(self, embed: Embed, *, at_once: int) -> Mapping[str, Tensor]:
        """Compute what is missing, together with other processes, and open it.

        Args:
            embed: the body; images n×C×H×W as the pools give them -> features n×D.
            at_once: images that it takes.

        Raises:
            ValueError: the body gives no vector of an image; the folder is damaged.
            OSError: the disk is full; what is there stays and is gone on with.
        """
        with torch.inference_mode():
            first = embed(next(self.parts[0].pool.plain(self.parts[0].index[:1], 1)))
        if first.ndim != 2:
            raise ValueError(
                f"the body gives {tuple(first.shape[1:])} of an image and no vector of features"
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images may be private
        shapes = self.shapes(int(first.shape[1]))
        with in_turn(self._lock):
            if self.about() is None:
                self._lay_out(shapes)
        with Writer.opened(self.folder, self.chunks, shapes, self.how["dtype"]) as writer:
            teller = Teller(writer, self.chunks, self.folder)
            for chunk, rows in _computed(writer.free(), embed, at_once):
                writer.write(chunk, rows)
                teller.tell(chunk)
            # One at a time: who waits holds no lock that another waits for.
            for chunk in writer.left():
                for _, rows in _computed(iter([chunk]), embed, at_once):
                    writer.write(chunk, rows)
                    teller.tell(chunk)
            teller.end()
            sums = writer.marks()["crc32"].tolist()
        with in_turn(self._lock):
            if self.about() is None:
                self._finish(int(first.shape[1]), sums, list(shapes))
        found = self.opened()
        assert found is not None
        return found

    @property
    def _lock(self) -> Path:
        return self.folder / ".lock"

    def _lay_out(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Files of their full size, unless there are some; the table is the last."""
        table = self.folder / TABLE
        if table.exists() and table.stat().st_size == MARK.itemsize * len(self.chunks):
            return
        made = []
        try:
            for name, shape in shapes.items():
                file = self.folder / f"{name}.npy"
                made.append(file)
                array = np.lib.format.open_memmap(file, "w+", self.how["dtype"], shape)
                size = array.offset + array.nbytes
                del array  # nothing is written through the map: a full disk would end the process
                _reserve(file, size)
            made.append(table)
            table.write_bytes(bytes(MARK.itemsize * len(self.chunks)))
        except OSError as error:
            for file in made:
                file.unlink(missing_ok=True)
            raise _told(error, self.folder, shapes, self.how["dtype"]) from error

    def _finish(self, dimension: int, sums: Sequence[int], names: list[str]) -> None:
        for name in names:
            with (self.folder / f"{name}.npy").open("rb") as file:
                os.fsync(file.fileno())  # before what says that they are whole
        about = {
            "format": FORMAT,
            "dimension": dimension,
            "how": self.how,
            "crc32": list(sums),
            "stamps": stamps(self.folder, names),
        }
        write_atomically(self.folder / ABOUT, (json.dumps(about) + "\n").encode())


WORDS = {
    "images": "other images",
    "network": "another network",
    "body": "other weights",
    "input": "images that were prepared otherwise",
    "views": "other views",
    "dtype": "another number format",
    "precision": "another precision",
}


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}…"


def stamps(folder: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Size and time of change of the arrays: as long as they stay, nobody wrote to them."""
    found = {name: (folder / f"{name}.npy").stat() for name in names}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def _reserve(file: Path, size: int) -> None:
    """Take the room now, where the system can: a disk that is full later would cost hours."""
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def _told(
    error: OSError, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> OSError:
    """The error with the room that is needed."""
    nbytes = np.dtype(dtype).itemsize * sum(map(math.prod, shapes.values()))
    found = OSError(error.errno, error.strerror)
    found.filename = f"{folder}, features of {nbytes / 2**30:.2f} GiB"
    with suppress(OSError):
        found.filename += f", {shutil.disk_usage(folder).free / 2**30:.2f} GiB free"
    return found


def _computed(
    chunks: Iterator[Chunk], embed: Embed, at_once: int
) -> Iterator[tuple[Chunk, list[Tensor]]]:
    """The features of every chunk: n×D of its plain view, n×V×D of its weak and strong ones."""
    begun: list[Chunk] = []

    def draws(pool: Pool) -> Iterator[SeededDraw]:
        while pending and pending[0].part.pool is pool:
            chunk = pending.pop(0)
            begun.append(chunk)
            none = torch.empty(0, dtype=torch.int64)
            draw = Draw(chunk.number, none, none, chunk.index, none)
            yield SeededDraw(draw, (PLAIN,), tuple(chunk.views))
            if (following := next(chunks, None)) is not None:
                pending.append(following)

    pending = [chunk for chunk in (next(chunks, None),) if chunk is not None]
    while pending:
        pool = pending[0].part.pool
        for batch in pool.stream(draws(pool), None):
            chunk = begun.pop(0)
            with torch.inference_mode():
                views = [
                    torch.cat([embed(images).cpu() for images in batch.u[view].split(at_once)])
                    for view in range(len(batch.u))
                ]
            found, start = [views[0]], 1
            for name in VIEWS:
                if num := chunk.part.views.get(name, 0):
                    found.append(torch.stack(views[start : start + num], dim=1))
                    start += num
            yield chunk, found


def as_data(source: Source, found: Mapping[str, Tensor]) -> FeatureSet:
    """The features in the place of the images of a data set, with its labels and classes."""
    train = [name for name in ("train", "validation") if name in found]
    pooled = [*train, *(["unlabeled"] if "unlabeled" in found else [])]
    views = {
        name: Rows(*(found[f"{part}_{name}"] for part in pooled))
        for name in VIEWS
        if f"train_{name}" in found
    }
    return FeatureSet(
        train=Rows(*(found[name] for name in train)),
        train_labels=source.train_labels,
        class_names=source.class_names,
        views=views,
        test=Rows(found["test"]) if "test" in found else None,
        test_labels=source.test_labels,
        extra_unlabeled=Rows(found["unlabeled"]) if "unlabeled" in found else None,
        apart=source.apart,
        weights=source.weights,
        shares=source.shares,
    )
