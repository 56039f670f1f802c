"""`ssl-selmix predict RUN PATH...`: a row of CSV for every image, a batch of them in memory.

Shapes: n images of a batch, K classes.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ssl_selmix.common.atomic import replaced
from ssl_selmix.common.console import Terminal
from ssl_selmix.common.names import printable
from ssl_selmix.deploy.decoder import Chunk, Decoder
from ssl_selmix.deploy.model import BATCH, SETTINGS, Network, check_batch
from ssl_selmix.images.find import LeftOut, find, shown, told
from ssl_selmix.runs.folder import check_free

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so
PIPE_CLOSED = 141  # as a shell reports a process that SIGPIPE ended


@dataclass(frozen=True)
class Request:
    """What `ssl-selmix predict` was asked for."""

    run: Path
    images: Sequence[str]
    settings: Sequence[str] = ()
    out: Path | None = None  # None: the standard output
    top: int = 1
    batch: int = BATCH
    strict: bool = False
    force: bool = False

    @classmethod
    def of_words(cls, run: Path, words: Sequence[str], **options: Any) -> Request:
        """From paths and key=value settings in any order; what exists as a path is one."""
        settings = [w for w in words if w.partition("=")[0] in SETTINGS and "=" in w]
        rest = [w for w in words if w not in settings]
        settings += [w for w in rest if "=" in w and not os.path.lexists(w)]
        return cls(run, [w for w in rest if w not in settings], settings, **options)


def to_csv(request: Request) -> int:
    """Write a row per image; 0, or 1 if there were files that could not be read.

    Raises:
        ValueError: a mistake in the request; with `strict`, the first unreadable file.
        OSError: the output cannot be written.
    """
    check_batch(request.batch)
    _check_out(request.out, request.force)
    files, left_out = find([os.path.expanduser(place) for place in request.images])
    if request.out is not None and os.path.realpath(request.out) in map(os.path.realpath, files):
        raise ValueError(f"--out {request.out} is one of the images; name another file")
    network = Network(request.run, request.settings)
    if not 1 <= request.top <= len(network.class_names):
        raise ValueError(
            f"--top must be 1 to {len(network.class_names)}, the number of classes, not "
            f"{request.top}"
        )
    decoder = Decoder(network.manifest)
    shown = request.out is None and sys.stdout.isatty()
    teller = _Teller(shown)
    try:
        with _output(request.out) as file, teller.progress(len(files)):
            teller.tell_model(network.stage)
            teller.tell_left_out(left_out)
            file.write(_lines([_header(request.top)]))
            for chunk, probs in network.of_files(files, decoder, request.batch):
                if chunk.unreadable and request.strict:
                    raise ValueError(chunk.unreadable[0])
                rows = _rows(chunk.files, probs, network.class_names, request.top)
                file.write(_lines(rows, shown))
                teller.tell(chunk)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    teller.sum_up(request.out, decoder)
    return 1 if teller.unreadable else 0


def _check_out(path: Path | None, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is predicted."""
    if path is None:
        return
    if not path.name:
        raise ValueError(f"--out {path} is a folder; name a file in it")
    folder = path.resolve().parent  # of what a link leads to
    if not folder.is_dir():
        raise ValueError(f"no folder {folder if path.is_symlink() else path.parent}; create it")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"no file can be written in {folder}; choose another --out")
    check_free(path, force)


def _header(top: int) -> list[str]:
    more = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    return ["path", "class", "probability", "entropy", *more]


def _rows(
    files: Sequence[str], probs: Tensor, class_names: Sequence[str], top: int
) -> Iterator[list[str]]:
    """Path, class, its probability, entropy in nats, and the next classes."""
    if not files:
        return
    entropy = torch.special.entr(probs).sum(1).tolist()
    order = probs.sort(dim=1, descending=True, stable=True)  # of equal ones, the first class
    best = zip(order.values[:, :top].tolist(), order.indices[:, :top].tolist(), strict=True)
    for file, of_file, (values, classes) in zip(files, entropy, best, strict=True):
        cells = [
            text
            for k, p in zip(classes, values, strict=True)
            for text in (_no_formula(class_names[k], "'"), f"{p:.6g}")
        ]
        entropy_ = f"{of_file + 0.0:.6g}"  # 0 for the -0 of a sure prediction
        yield [_no_formula(file, "./"), *cells[:2], entropy_, *cells[2:]]


def _no_formula(cell: str, mark: str) -> str:
    """A name that no spreadsheet computes; a mark comes before one that it would.

    Before a path it is ./, which is the same file, before a class an apostrophe, which a
    spreadsheet takes for "this is text". Numbers, such as a class -1, are no formulas.
    """
    number = cell[1:].replace(".", "", 1).isdecimal()
    return mark + cell if cell[:1] in FORMULA and not number else cell


def _lines(rows: Iterable[Sequence[str]], shown: bool = False) -> bytes:
    """CSV with Unix line ends; the bytes of a file name that is no UTF-8 stay as they are.

    On a terminal (`shown`) they are spelled out, like escape sequences.
    """
    lines = []
    for row in rows:
        buffer = io.StringIO()
        # With its own line end, for only then does every Python quote a carriage return.
        csv.writer(buffer).writerow([printable(cell) for cell in row] if shown else row)
        lines.append(buffer.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines).encode("utf-8", "surrogateescape")


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """The standard output, or a file that appears when it is complete."""
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replaced(path.resolve(), sync=False) as file:  # a link stays one
        yield file


class _Teller:
    """What the user sees while files are read, on the standard error."""

    def __init__(self, rows_on_terminal: bool) -> None:
        self._out = Terminal(stderr=True, soft_wrap=True, highlight=False)
        self._bar = self._out.is_terminal and not rows_on_terminal  # rows are progress enough
        self._notes: dict[str, tuple[int, str]] = {}
        self._advance: Callable[[int], None] = lambda num: None
        self._since = time.perf_counter()
        self.done = self.unreadable = 0

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar on a terminal, nothing elsewhere."""
        columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._out, disable=not self._bar, transient=True) as bar:
            task = bar.add_task("predict", total=total)
            self._advance = lambda num: bar.advance(task, num)
            yield

    def _say(self, text: str) -> None:
        self._out.print(text, markup=False)

    def tell_model(self, stage: str) -> None:
        """Of which stage the model is."""
        self._say(f"model: {stage}")

    def tell_left_out(self, left_out: LeftOut) -> None:
        """What was found in folders and is not taken for an image."""
        for line in told(left_out):
            self._say(f"warning: {line}")

    def tell(self, chunk: Chunk) -> None:
        """That a chunk is done, and which of its files could not be read."""
        for reason in chunk.unreadable:
            self._say(f"skipped: {reason}")
        for kind, file in chunk.notes:
            count, first = self._notes.get(kind, (0, file))
            self._notes[kind] = (count + 1, first)
        self.done += len(chunk.files)
        self.unreadable += len(chunk.unreadable)
        self._advance(len(chunk.files) + len(chunk.unreadable))

    def sum_up(self, out: Path | None, decoder: Decoder) -> None:
        """What was changed about images, and how many there were."""
        for kind, (count, first) in self._notes.items():
            images = "image" if count == 1 else "images"
            done = decoder.told(kind)
            self._say(f"note: {count} {kind} {images} {done} (first: {shown(first)})")
        skipped = f", {self.unreadable} unreadable" if self.unreadable else ""
        where = f" -> {out}" if out is not None else ""
        seconds = time.perf_counter() - self._since
        self._say(f"{self.done} images{skipped} in {seconds:.1f} s{where}")
