"""How long a user waits before anything is trained, and for the whole job on digits.

    python -m benchmarks.startup
    python -m benchmarks.startup --parts job --rounds 3
    python -m benchmarks.startup --parts runs --dataset features data.root=FILE

Every measurement is a process of its own, from its start to its end; the processes take turns. The
first step includes all that comes before it: imports, images, split, network, the validation before
step 0, views and the step. The files are in the system's memory, as they are read again and again.
The job is the README's: `train.py --algo fixmatch --then selmix`. The runs take ten steps, alone
and in a sweep; what is no training is all but the seconds that `results.json` has of their stages.
A busy machine makes all of that longer, but hardly the seconds of its processors.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.timing import Times, about, alternate, as_time, parser_of, spread, table

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")
JOB = ["--algo", "fixmatch", "--then", "selmix"]
PARTS = ("start", "imports", "job", "runs")
RUN = ["--algo", "supervised", "supervised.steps=10", "pictures=false"]
SHOWN = 8  # packages in the table of imports
# Leaves with the first step done: what follows is no start.
FIRST_STEP = """
import os, sys
from ssl_selmix import cli
from ssl_selmix.training import engine
step = engine.Trainer.step_once
def once(self, batches):
    step(self, batches)
    os._exit(0)
engine.Trainer.step_once = once
sys.exit(cli.main(sys.argv[1:]) or 9)
"""


def python(*words: str) -> str:
    """Run this interpreter; what it wrote to stderr.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stderr


def start_arms(folder: Path, settings: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Processes from the empty one to the first step."""
    runs = iter(range(10**6))

    def first_step() -> None:
        python("-c", FIRST_STEP, *JOB, "--out", str(folder / f"first-{next(runs)}"), *settings)

    return {
        "an empty program": lambda: python("-c", "pass"),
        "import torch": lambda: python("-c", "import torch"),
        "import ssl_selmix": lambda: python("-c", "import ssl_selmix"),
        "import ssl_selmix.cli": lambda: python("-c", "import ssl_selmix.cli"),
        "import ssl_selmix.runs.train": lambda: python("-c", "import ssl_selmix.runs.train"),
        "train.py --help": lambda: python(TRAIN, "--help"),
        "an unknown key is refused": lambda: refused(folder),
        "the first step on digits": first_step,
    }


def refused(folder: Path) -> None:
    """A mistake on the command line, from the return key to the message."""
    words = [sys.executable, TRAIN, *JOB, "--out", str(folder / "refused"), "fixmatch.stpes=1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 2 or "stpes" not in done.stderr:
        raise SystemExit(f"a wrong key was not refused:\n{done.stderr[-2000:]}")


def packages(trace: str) -> dict[str, float]:
    r"""Seconds that each top-level package took to import, by `python -X importtime`.

    >>> packages("import time:  1500 |  2000 |   torch.nn\nimport time:  500 | 500 | torch")
    {'torch': 0.002}
    """
    found: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", trace):
        package = name.partition(".")[0]
        found[package] = found.get(package, 0.0) + int(own) / 1e6
    return found


def start(folder: Path, args: argparse.Namespace) -> None:
    """Print seconds of processes that start and do little."""
    arms = start_arms(folder, args.settings)
    times = alternate(arms, args.rounds, warm=int(args.rounds > 1))
    rows = [
        [arm, as_time(times.median(arm)), spread(times.seconds[arm], as_time)]
        for arm in times.seconds
    ]
    print(table(["process", "median", "range"], rows))


def imports(folder: Path, args: argparse.Namespace) -> None:
    """Print which packages the imports' time goes to, without those that they import."""
    for module in ("ssl_selmix.cli", "ssl_selmix.runs.train"):
        traces = [
            packages(python("-X", "importtime", "-c", f"import {module}"))
            for _ in range(args.rounds)
        ]
        median = {name: statistics.median(t.get(name, 0.0) for t in traces) for name in traces[0]}
        largest = sorted(median, key=lambda name: -median[name])[:SHOWN]
        rows = [[name, as_time(median[name])] for name in largest]
        rows.append([f"the other {len(median) - len(largest)}", as_time(_rest(median, largest))])
        rows.append(["together", as_time(sum(median.values()))])
        print(f"\nimport {module}, by package (-X importtime, which itself costs time)\n")
        print(table(["package", "itself"], rows))


def _rest(median: dict[str, float], largest: Sequence[str]) -> float:
    return sum(seconds for name, seconds in median.items() if name not in largest)


def job(folder: Path, args: argparse.Namespace) -> None:
    """Print the seconds of the whole job, and of its stages."""
    stages: dict[str, list[float]] = {}
    runs = iter(range(10**6))

    def train() -> None:
        out = folder / f"job-{next(runs)}"
        python(TRAIN, *JOB, "--out", str(out), *args.settings)
        for stage in json.loads((out / "results.json").read_text())["stages"]:
            name = f"stage {stage['algorithm']}, {stage['steps']} steps"
            stages.setdefault(name, []).append(stage["seconds"])

    whole = alternate({"the job on digits": train}, args.rounds, warm=0).seconds
    times = Times({**whole, **stages})
    rows = [
        [arm, as_time(times.median(arm)), spread(times.seconds[arm], as_time)]
        for arm in times.seconds
    ]
    print(f"\ntrain.py {' '.join([*JOB, *args.settings])}\n")
    print(table(["seconds of", "median", "range"], rows))


def processor_seconds() -> float:
    """Of all processors, for the processes that this one started and those that they started."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[1]) == os.getpid() else 0
    return ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


class Runs:
    """Runs of ten steps, each started in one of the ways of a sweep; their seconds of training."""

    def __init__(self, folder: Path, dataset: str, settings: Sequence[str]) -> None:
        from ssl_selmix.runs.plan import Plan, Request
        from ssl_selmix.sweep.forks import Forks
        from ssl_selmix.sweep.processes import Children

        self._folder, self._words = folder, [*RUN, "--dataset", dataset, *settings]
        plain = Plan(Request(["supervised"], dataset, settings=settings)).plain["data"]
        self._places = iter([str(folder / f"run-{i}") for i in range(10**4)])
        self._data = {str(folder / f"run-{i}"): (dataset, plain, "") for i in range(10**4)}
        self._kinds = (Children, Forks)
        self.trained: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}

    def arms(self) -> dict[str, Callable[[], object]]:
        """A program, a fork of a new server, and a fork of one that had a run already."""
        programs, forked = self._kinds
        warm = forked(self._data)

        def first() -> None:
            new = forked(self._data)
            self._run("first in a sweep", new)
            new.close()

        def alone() -> None:
            self._run("a program of its own", programs())

        def later() -> None:
            self._run("later in a sweep", warm)

        return {"a program of its own": alone, "first in a sweep": first, "later in a sweep": later}

    def _run(self, arm: str, children: Any) -> None:
        out = next(self._places)
        words = [sys.executable, "-u", "-m", "ssl_selmix.cli", "train", "--out", out, *self._words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        before = processor_seconds()
        with (self._folder / "log.txt").open("wb") as log:
            if children.run(words, log, environment, None) != 0:
                raise SystemExit(f"{out} failed:\n{(self._folder / 'log.txt').read_text()[-2000:]}")
        stages = json.loads((Path(out) / "results.json").read_text())["stages"]
        self.trained.setdefault(arm, []).append(sum(stage["seconds"] for stage in stages))
        self.processor.setdefault(arm, []).append(processor_seconds() - before)


def runs(folder: Path, args: argparse.Namespace) -> None:
    """Print what a run of ten steps takes, and how much of it is no training."""
    found = Runs(folder, args.dataset, args.settings)
    whole = alternate(found.arms(), args.rounds).seconds
    rows = []
    for arm, seconds in whole.items():
        trained = found.trained[arm][-args.rounds :]
        rest = [both - own for both, own in zip(seconds, trained, strict=True)]
        row = [arm]
        for values in (seconds, rest, found.processor[arm][-args.rounds :]):
            row += [as_time(statistics.median(values)), spread(values, as_time)]
        rows.append(row)
    print(f"\ntrain {' '.join([*RUN, '--dataset', args.dataset, *args.settings])}\n")
    print(table(["run", "median", "range", "no training", "range", "processors", "range"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, start processes, print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", default=["start", "imports"], choices=PARTS)
    parser.add_argument("--dataset", default="digits", help="of the part runs; default: digits")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the runs")
    args = parser.parse_intermixed_args(argv)
    print(about(rounds=args.rounds) + "\n")
    with TemporaryDirectory() as name:
        for part in args.parts:
            found = {"start": start, "imports": imports, "job": job, "runs": runs}
            found[part](Path(name), args)


if __name__ == "__main__":
    main()
