"""What a stage leaves while it trains: metrics.jsonl, TensorBoard; and its progress."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.figures import fixed
from ssl_selmix.training import pictures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


MATRICES_UP_TO = 100  # classes, in metrics.jsonl
DRAWN = 4  # times in a stage, and at its beginning: a drawing takes as long as many steps


class StageLog:
    """The log of one stage in its folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        class_names: Sequence[str],
        out: Console,
        images: int,
        *,
        pictures: bool = True,
    ) -> None:
        """With `pictures`, TensorBoard gets drawings of the matrices of a few validations."""
        self.folder, self.name, self.class_names, self.out = folder, name, class_names, out
        self._pictures = pictures
        self._part = -1  # of the stage, of which the last drawing was
        self._undrawn: tuple[int, dict[str, Tensor]] | None = None
        self._images = images  # through the network per step, for the throughput
        self._last: dict[str, float] = {}
        self._progress: Progress | None = None
        self._writer: SummaryWriter | None = None
        self._start = self._since = (0, time.perf_counter())
        self._total = 1

    def warn(self, text: str) -> None:
        """Say something that the user should know and that does not stop the run."""
        self.out.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    @contextmanager
    def stage(self, step: int, total: int, *, resumed: bool) -> Iterator[None]:
        """Open the files at a step, forgetting rows that a killed run wrote after it.

        A stage that is not resumed, for want of a checkpoint, forgets the rows of step 0 too.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._total, self._start = total, (step, time.perf_counter())
        self._part, self._undrawn = step * DRAWN // total if resumed and total else -1, None
        self._since = self._start
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cut_rows_after(step if resumed else -1)
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if resumed else 0)
        try:
            if self.out.is_terminal:
                with self._bar() as self._progress:
                    self._task = self._progress.add_task(
                        self.name, total=total, completed=step, figures=""
                    )
                    yield
            else:
                yield
            self._draw()
        finally:
            self._progress = None
            self._writer.close()

    def training(self, step: int, values: dict[str, float]) -> None:
        """Record means over the steps since the last call."""
        now = time.perf_counter()
        rate = (step - self._since[0]) / max(now - self._since[1], 1e-9)
        self._since = (step, now)
        # A method whose steps have different numbers of images logs how many there were.
        images = values.get("images", self._images)
        values = values | {"steps_per_second": rate, "images_per_second": rate * images}
        self._last |= values
        self._write({"kind": "train", "step": step, **values})
        for key, value in values.items():
            self._scalar(f"train/{key}", value, step)
        self._show(step)

    def validation(
        self, step: int, figures: dict[str, Any], extra: dict[str, Tensor], confusion: Tensor
    ) -> None:
        """Record an evaluation: figures, the algorithm's scalars and vectors, its matrices."""
        row: dict[str, Any] = {"kind": "validation", "step": step, **figures}
        # A matrix of a thousand classes is 20 MB of text: above the limit only pictures show it.
        written = {k: v for k, v in extra.items() if v.ndim < 2 or len(v) <= MATRICES_UP_TO}
        row |= {key: value.tolist() for key, value in written.items()}
        self._write(row)
        self._last |= {k: v for k, v in figures.items() if isinstance(v, float)}
        for key, value in row.items():
            if isinstance(value, float):
                self._scalar(f"validation/{key}", value, step)
            elif isinstance(value, list) and not isinstance(value[0], list):
                for name, item in zip(self.class_names, value, strict=True):
                    self._scalar(f"{key}/{name}", item, step)
        if self._pictures:
            matrices = {"confusion": confusion, **extra}
            # Copies: a matrix may be a buffer that training goes on to change.
            kept = {k: v.detach().cpu().clone() for k, v in matrices.items() if v.ndim == 2}
            self._undrawn = step, kept
            if (part := step * DRAWN // max(1, self._total)) > self._part:
                self._part = part
                self._draw()
        self._show(step)
        if self._progress is None:
            self._print_line(step)

    def _draw(self) -> None:
        """Draw the matrices of the last validation, unless they have been."""
        step, matrices = self._undrawn or (0, {})
        self._undrawn = None
        for title, matrix in matrices.items():
            drawn = pictures.pixels(pictures.figure(matrix, title, self.class_names))
            if self._writer is not None:
                self._writer.add_image(title, drawn, step, dataformats="HWC")

    def remark(self, step: int, text: str) -> None:
        """Record and show a sentence of the algorithm about its last validation."""
        self._write({"kind": "remark", "step": step, "text": text})
        self.out.print(f"  {self.name}: {text}", highlight=False, markup=False)

    def _scalar(self, key: str, value: float | None, step: int) -> None:
        if self._writer is not None and value is not None:
            self._writer.add_scalar(key, value, step)

    def _write(self, row: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _cut_rows_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # half a row, written when the run was killed
            if row["step"] <= step:
                kept.append(line + "\n")
        write_atomically(path, "".join(kept).encode())

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.out,
        )

    def _figures(self) -> str:
        names = {"loss": "loss", "mask_rate": "mask", "min_recall": "worst class"}
        return "  ".join(f"{names[k]} {fixed(self._last[k], 3)}" for k in names if k in self._last)

    def _show(self, step: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step, figures=self._figures())

    def _print_line(self, step: int) -> None:
        done = step - self._start[0]
        elapsed = time.perf_counter() - self._start[1]
        left = f"  {elapsed / done * (self._total - step):.0f} s left" if done else ""
        mean = f"  mean recall {self._last['mean_recall']:.3f}"
        line = f"{self.name}  {step}/{self._total}  {self._figures()}{mean}{left}"
        self.out.print(line, highlight=False, markup=False)


class SilentLog(StageLog):
    """Writes nothing: for the processes that are not the first of several, and for checks.

    With `keep` it remembers what it is told: `trained` and `validated`, by step, `extras`, which
    `on_validation` returned, and `warnings`.
    """

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__(Path(), "", (), Console(quiet=True), 1, pictures=False)
        self._keep = keep
        self.trained: list[tuple[int, dict[str, float]]] = []
        self.validated: list[tuple[int, dict[str, Any]]] = []
        self.extras: list[dict[str, Tensor]] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Remember it at most."""
        if self._keep:
            self.warnings.append(text)

    def remark(self, step: int, text: str) -> None:
        """Write nothing."""

    @contextmanager
    def stage(self, step: int, total: int, *, resumed: bool = False) -> Iterator[None]:
        """Open nothing."""
        yield

    def training(self, step: int, values: dict[str, float]) -> None:
        """Remember it at most."""
        if self._keep:
            self.trained.append((step, values))

    def validation(
        self, step: int, figures: dict[str, Any], extra: dict[str, Tensor], confusion: Tensor
    ) -> None:
        """Remember it at most."""
        if self._keep:
            self.validated.append((step, figures | extra))
            self.extras.append(extra)
