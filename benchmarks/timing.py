"""Shared by the benchmarks: arms that take turns, medians with their spread, tables, the machine.

Nothing heavy is imported here: a benchmark of start-up or memory must not begin with torch.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Arms = Mapping[str, Callable[[], object]]


def parser_of(doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser that says what the benchmark says of itself, with --rounds."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=f"of which medians are taken ({rounds})"
    )
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def threads_argument(parser: argparse.ArgumentParser, threads: int = 0) -> None:
    """Add --threads; 0 leaves torch's own choice."""
    parser.add_argument("--threads", type=int, default=threads, help="of torch; 0: as it chooses")


def set_threads(threads: int) -> None:
    """Use as many threads as were asked for."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Times:
    """Seconds of every arm, a number for each round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, arm: str) -> float:
        """The median over rounds."""
        return statistics.median(self.seconds[arm])

    def ratios(self, arm: str, baseline: str) -> list[float]:
        """How many times the baseline's time an arm took, in each round."""
        pairs = zip(self.seconds[arm], self.seconds[baseline], strict=True)
        return [own / other for own, other in pairs]

    def ratio(self, arm: str, baseline: str) -> float:
        """The median of these ratios, which a machine that is busy for a while does not move."""
        return statistics.median(self.ratios(arm, baseline))


def alternate(
    arms: Arms,
    rounds: int,
    *,
    warm: int = 1,
    calls: int = 1,
    wait: Callable[[], None] | None = None,
) -> Times:
    """Time all arms in turn, so that a busy machine slows all alike; every second round backwards.

    Args:
        arms: what to time, by name.
        rounds: measured rounds.
        warm: rounds before them that are not.
        calls: of an arm within a round, of which the mean counts.
        wait: returns when the device has finished; called before the clock is read.
    """
    wait = wait or _nothing
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(-warm, rounds):
        for name in list(arms)[:: -1 if index % 2 else 1]:
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                arms[name]()
            wait()
            if index >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
    return Times(seconds)


def _nothing() -> None:
    pass


def as_time(seconds: float) -> str:
    """Seconds with a unit and three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{digits(seconds * factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def digits(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def spread(values: Iterable[float], show: Callable[[float], str] = digits) -> str:
    """The least and the largest value."""
    found = sorted(values)
    return f"{show(found[0])} to {show(found[-1])}"


def times_row(times: Times, arm: str, baseline: str) -> list[str]:
    """Name, median, spread, and the ratio to the baseline with its spread."""
    of_baseline = (
        f"{times.ratio(arm, baseline):.2f} ({spread(times.ratios(arm, baseline), '{:.2f}'.format)})"
    )
    return [
        arm,
        as_time(times.median(arm)),
        spread(times.seconds[arm], as_time),
        "1" if arm == baseline else of_baseline,
    ]


@dataclass(frozen=True)
class Target:
    """A bound for the time of an arm, divided by that of another; None: only of interest."""

    what: str
    arm: str
    per: str
    bound: float | None
    at_least: bool = False

    def verdict(self, ratio: float) -> list[str]:
        """The bound, and whether a ratio keeps it."""
        if self.bound is None:
            return ["", ""]
        met = ratio >= self.bound if self.at_least else ratio <= self.bound
        aim = f"at {'least' if self.at_least else 'most'} {self.bound:g}"
        return [aim, "yes" if met else "no"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def targets_table(times: Times, targets: Iterable[Target]) -> str:
    """Measured ratios beside what was aimed at; targets of arms that did not run are left out."""
    rows = []
    for target in targets:
        if target.arm in times.seconds and target.per in times.seconds:
            ratios = times.ratios(target.arm, target.per)
            found = statistics.median(ratios)
            cells = [f"{found:.2f}", spread(ratios, "{:.2f}".format)]
            rows.append([target.what, *cells, *target.verdict(found)])
    return table(["ratio", "measured", "range", "target", "met"], rows)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size by least squares: cost grows as size to this power."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(x, y).slope


def about(*, rounds: int, threads: int | None = None) -> str:
    """Machine, versions, commit, date and load: what a table needs under it to mean anything."""
    from importlib.metadata import version

    from ssl_selmix.runs import environment

    parts = [
        f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        f"{threads} thread{'s' if threads > 1 else ''}" if threads else "",
        f"load {os.getloadavg()[0]:.1f}",
        f"torch {version('torch')}",
        f"Python {platform.python_version()}",
        f"commit {(environment.commit() or 'unknown')[:12]}{_dirty(environment.commit())}",
        time.strftime("%Y-%m-%d"),
        f"medians of {rounds}",
    ]
    return "; ".join(part for part in parts if part)


def _dirty(commit: str | None) -> str:
    return " with changes" if commit and commit.endswith("-dirty") else ""


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def apart(work: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a fresh process, which has imported nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """The most that `resident` has been since the process began or `forget_peak` (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say how much memory a process has used")


def forget_peak() -> None:
    """Let `peak` begin anew; without effect where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
