"""The chunks of a folder of features: who computes which, what is done, how far it is.

A process that has a chunk's lock writes its rows, and then marks the chunk in a table with the
checksum of its rows.

Shapes: N images of a part, n of them in a chunk, D features, V views of an image.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssl_selmix.common.console import say
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data.batch import Pool, SeededView
from ssl_selmix.data.features import VIEWS

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TABLE = "chunks.table"
EVERY = 20.0  # seconds between lines about the progress
MARK = np.dtype([("done", "<u4"), ("crc32", "<u4")])
PLAIN = SeededView("plain", 0)


@dataclass(frozen=True)
class Part:
    """Images of a pool, and which views of them are drawn, by name.

    Shape: index (N,) positions in the pool.
    """

    name: str
    pool: Pool
    index: Tensor
    views: Mapping[str, int]


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` of a part; `number` counts through all parts."""

    number: int
    part: Part
    start: int
    stop: int

    @property
    def index(self) -> Tensor:
        """Their positions in the pool."""
        return self.part.index[self.start : self.stop]

    @property
    def views(self) -> list[SeededView]:
        """The views of the chunk: plain, then those that are drawn; the seeds say which."""
        drawn = [
            SeededView(name, seed_of("features", self.part.name, name, view, self.start))
            for name in VIEWS
            for view in range(self.part.views.get(name, 0))
        ]
        return [PLAIN, *drawn]


def sum_of(rows: Sequence[Any]) -> int:
    """The checksum of the bytes of some arrays, one after the other."""
    found = 0
    for array in rows:
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return found


class Writer:
    """The open files of a folder that is being filled, and the locks of its chunks.

    The locks are POSIX's, one byte of the table each: they end with the process, and other threads
    of it do not count.
    """

    def __init__(
        self, folder: Path, chunks: Sequence[Chunk], files: Mapping[str, int], table: int, kind: str
    ) -> None:
        self._folder, self._chunks = folder, chunks
        self._files, self._table, self._kind = files, table, np.dtype(kind)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, chunks: Sequence[Chunk], names: Iterable[str], kind: str
    ) -> Iterator[Writer]:
        """With files and table open; what is marked as done is so.

        Args:
            folder: of the features.
            chunks: all of them.
            names: of the arrays.
            kind: their number format.
        """
        with ExitStack() as held:

            def file(name: str) -> int:
                opened = os.open(folder / name, os.O_RDWR)
                held.callback(os.close, opened)
                return opened

            table = file(TABLE)
            found = cls(folder, chunks, {name: file(f"{name}.npy") for name in names}, table, kind)
            found._check_done()
            yield found

    def _check_done(self) -> None:
        """Take marks back that a power failure left without their rows."""
        for chunk in self._chunks:
            mark = self._mark(chunk)
            if mark["done"] and sum_of(self._rows(chunk)) != mark["crc32"]:
                os.pwrite(self._table, bytes(MARK.itemsize), MARK.itemsize * chunk.number)

    def _rows(self, chunk: Chunk) -> list[Any]:
        """The bytes of a chunk as they are in the files."""
        found = []
        for name in self._names(chunk):
            size = os.fstat(self._files[name]).st_size - self._offset(name)
            of_row = size // len(chunk.part.index)
            place = self._offset(name) + of_row * chunk.start
            content = os.pread(self._files[name], of_row * (chunk.stop - chunk.start), place)
            found.append(np.frombuffer(content, np.uint8))
        return found

    def _names(self, chunk: Chunk) -> list[str]:
        """The arrays that have rows of a chunk."""
        names = [chunk.part.name, *(f"{chunk.part.name}_{name}" for name in VIEWS)]
        return [name for name in names if name in self._files]

    def marks(self) -> Any:
        """Of all chunks whether they are done, and their checksums."""
        size = MARK.itemsize * len(self._chunks)
        return np.frombuffer(os.pread(self._table, size, 0), MARK)

    def free(self) -> Iterator[Chunk]:
        """The chunks that nobody has done or is at work on, each with its lock."""
        for chunk in self._chunks:
            if not self._mark(chunk)["done"] and self._lock(chunk, wait=False):
                if self._mark(chunk)["done"]:  # meanwhile, by who had the lock
                    self._let_go(chunk)
                else:
                    yield chunk

    def left(self) -> Iterator[Chunk]:
        """The chunks that others had the lock of and did not finish; waits for those others."""
        for chunk in self._chunks:
            if not self._mark(chunk)["done"]:
                self._lock(chunk, wait=True)
                if self._mark(chunk)["done"]:
                    self._let_go(chunk)
                else:
                    yield chunk

    def _mark(self, chunk: Chunk) -> Any:
        mark = os.pread(self._table, MARK.itemsize, MARK.itemsize * chunk.number)
        return np.frombuffer(mark, MARK)[0]

    def _lock(self, chunk: Chunk, *, wait: bool) -> bool:
        if fcntl is None:
            return True
        how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.lockf(self._table, how, 1, chunk.number)
        except OSError as error:
            # Where nothing can be locked, work may be done twice, with the same result.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def _let_go(self, chunk: Chunk) -> None:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(self._table, fcntl.LOCK_UN, 1, chunk.number)

    def write(self, chunk: Chunk, rows: Sequence[Tensor]) -> None:
        """The rows of a chunk, and then its mark.

        Raises:
            OSError: the disk is full.
            ValueError: the numbers do not fit into their format.
        """
        with np.errstate(over="ignore"):  # told below
            arrays = [np.ascontiguousarray(found.numpy(), self._kind) for found in rows]
        for name, array in zip(self._names(chunk), arrays, strict=True):
            if not bool(np.isfinite(array).all()):
                raise ValueError(
                    f"features of {chunk.part.name} are no numbers in {self._kind}; set "
                    "features.dtype=float32, or look at the network's weights"
                )
            data = array.reshape(-1).view(np.uint8).data
            size = len(data) // len(array)
            self._put(name, data, self._offset(name) + size * chunk.start)
        mark = np.array([(1, sum_of(arrays))], MARK).tobytes()
        os.pwrite(self._table, mark, MARK.itemsize * chunk.number)
        self._let_go(chunk)

    def _offset(self, name: str) -> int:
        """Where the rows begin: after the header, whose length stands in its bytes 8 and 9."""
        return 10 + int.from_bytes(os.pread(self._files[name], 2, 8), "little")

    def _put(self, name: str, data: Any, place: int) -> None:
        try:
            while len(data):
                written = os.pwrite(self._files[name], data, place)
                data, place = data[written:], place + written
        except OSError as error:
            error.filename = error.filename or f"{self._folder / name}.npy"
            raise


class Teller:
    """Says how far it is, and how fast; what others do meanwhile counts as done."""

    def __init__(self, writer: Writer, chunks: Sequence[Chunk], folder: Path) -> None:
        self._writer, self._folder, self._own = writer, folder, 0
        self._sizes = np.array([chunk.stop - chunk.start for chunk in chunks])
        self._num = int(self._sizes.sum())
        self._since = self._last = time.perf_counter()

    @property
    def _rate(self) -> float:
        return self._own / max(1e-9, time.perf_counter() - self._since)

    def tell(self, chunk: Chunk) -> None:
        """A chunk more is done by this process."""
        self._own += chunk.stop - chunk.start
        if (now := time.perf_counter()) - self._last >= EVERY:
            self._last = now
            done = int(self._sizes[self._writer.marks()["done"] > 0].sum())
            left = (self._num - done) / self._rate
            say(
                f"  features: {done} of {self._num} images, "
                f"{self._rate:.1f} images/s, {left:.0f} s left"
            )

    def end(self) -> None:
        """All are done."""
        say(
            f"  features: {self._own} of {self._num} images computed here, "
            f"{self._rate:.1f} images/s -> {self._folder}"
        )
