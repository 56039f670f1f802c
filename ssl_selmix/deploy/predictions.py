"""`ssl-selmix predict RUN [PATH...]`: a row of CSV for every image, a batch of them in memory.

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
from ssl_selmix.common.names import printable, unknown
from ssl_selmix.deploy import loaded, sources
from ssl_selmix.deploy.decoder import Chunk, Taker, taker_of
from ssl_selmix.deploy.judged import Judged
from ssl_selmix.deploy.listings import PARTS, Asked, Images
from ssl_selmix.deploy.model import BATCH, SETTINGS, Network, check_batch
from ssl_selmix.images.find import shown, told
from ssl_selmix.images.pieces import Held, file_of
from ssl_selmix.runs.folder import RunFolder, check_free, open_run

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so
PIPE_CLOSED = 141  # as a shell reports a process that SIGPIPE ended


@dataclass(frozen=True)
class Request:
    """What `ssl-selmix predict` was asked for."""

    run: Path
    images: Sequence[str]
    settings: Sequence[str] = ()
    data: Sequence[str] = ()  # settings of a data set, data.key=value
    dataset: str | None = None  # in the place of paths
    part: str | None = None  # of the images; without paths and data set, of the run's own
    evaluate: bool = False  # the figures of images with a label
    trust: Sequence[str] = ()  # what of the run's data set may be executed
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
        data = [
            w for w in settings if w.startswith("data.") and w.partition("=")[0] not in SETTINGS
        ]
        images = [w for w in rest if w not in settings]
        return cls(run, images, [w for w in settings if w not in data], data, **options)

    def found(self, run: RunFolder) -> Images:
        """The images that are meant.

        Args:
            run: the one whose model predicts.

        Raises:
            ValueError: there are none, or they cannot be read.
        """
        if self.part and self.part not in PARTS:
            raise ValueError(unknown("part", self.part, PARTS))
        if self.dataset and self.images:
            raise ValueError(
                f"{shown(self.images[0])} and --dataset {self.dataset} both say what to predict; "
                "leave out one"
            )
        asked = Asked.of(run.manifest, self.part or "", self.evaluate)
        if self.dataset:
            return sources.of_dataset(self.dataset, self.data, asked, run)
        if self.images or not self.part:
            return sources.of_words(self.images, self.data, asked)
        return sources.of_run(loaded.of_run(run, self.data, self.part, self.trust), asked)


def to_csv(request: Request) -> int:
    """Write a row per image; 0, or 1 if there were files that could not be read.

    Raises:
        ValueError: a mistake in the request; with `strict`, the first unreadable file.
        OSError: the output cannot be written.
    """
    check_batch(request.batch)
    _check_out(request.out, request.force)
    run = open_run(request.run)
    images = request.found(run)
    _check_not_read(request.out, [*images.files, *request.images])
    if request.evaluate and max(images.labels, default=-1) < 0:
        raise ValueError(
            "--evaluate needs labels, and no image has one; name folders by class, or a data set "
            "with labels"
        )
    network = Network(run, request.settings)
    if not 1 <= request.top <= len(network.class_names):
        raise ValueError(
            f"--top must be 1 to {len(network.class_names)}, the number of classes, not "
            f"{request.top}"
        )
    decoder = taker_of(network.manifest)
    shown = request.out is None and sys.stdout.isatty()
    teller = _Teller(shown)
    judged = Judged(network.class_names) if request.evaluate else None
    try:
        with _output(request.out) as file, teller.progress(len(images.files)):
            teller.tell_model(network.stage)
            teller.tell_found(images)
            file.write(_lines([_header(request.top, judged)]))
            for chunk, probs in network.of_files(images.files, decoder, request.batch):
                if chunk.unreadable and request.strict:
                    raise ValueError(chunk.unreadable[0])
                names = [images.names[row] for row in chunk.rows]
                rows = _rows(names, probs, network.class_names, request.top)
                if judged is not None:
                    labels = [images.labels[row] for row in chunk.rows]
                    judged.add(labels, probs)
                    rows = _labeled(rows, labels, network.class_names)
                file.write(_lines(rows, shown))
                teller.tell(chunk)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    teller.sum_up(request.out, decoder)
    if judged is not None:
        judged.show(teller.out)
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


def _check_not_read(out: Path | None, read: Sequence[str]) -> None:
    """Refuse an output that is one of the files that are read."""
    if out is None:
        return
    files = {file_of(file) for file in read if not isinstance(file, Held)}
    if os.path.realpath(out) in map(os.path.realpath, files):
        raise ValueError(f"--out {out} is one of the images; name another file")


def _header(top: int, judged: Judged | None) -> list[str]:
    more = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "probability")]
    own = [] if judged is None else ["label"]
    return ["path", "class", "probability", "entropy", *more, *own]


def _labeled(
    rows: Iterable[list[str]], labels: Sequence[int], names: Sequence[str]
) -> Iterator[list[str]]:
    """The rows with the label of each; empty if it has none."""
    for row, label in zip(rows, labels, strict=True):
        yield [*row, _no_formula(names[label], "'") if label >= 0 else ""]


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
        self.out = Terminal(stderr=True, soft_wrap=True, highlight=False)
        self._bar = self.out.is_terminal and not rows_on_terminal  # rows are progress enough
        self._notes: dict[str, tuple[int, str]] = {}
        self._advance: Callable[[int], None] = lambda num: None
        self._since = time.perf_counter()
        self.done = self.unreadable = 0

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar on a terminal, nothing elsewhere."""
        columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.out, disable=not self._bar, transient=True) as bar:
            task = bar.add_task("predict", total=total)
            self._advance = lambda num: bar.advance(task, num)
            yield

    def _say(self, text: str) -> None:
        self.out.print(text, markup=False)

    def tell_model(self, stage: str) -> None:
        """Of which stage the model is."""
        self._say(f"model: {stage}")

    def tell_found(self, images: Images) -> None:
        """What was found in folders and is not taken for an image, and other notes."""
        for line in told(images.left_out):
            self._say(f"warning: {line}")
        for line in images.notes:
            self._say(line)

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

    def sum_up(self, out: Path | None, decoder: Taker) -> None:
        """What was changed about images, and how many there were."""
        for kind, (count, first) in self._notes.items():
            images = "image" if count == 1 else "images"
            done = decoder.told(kind)
            self._say(f"note: {count} {kind} {images} {done} (first: {shown(first)})")
        skipped = f", {self.unreadable} unreadable" if self.unreadable else ""
        where = f" -> {out}" if out is not None else ""
        seconds = time.perf_counter() - self._since
        self._say(f"{self.done} images{skipped} in {seconds:.1f} s{where}")
