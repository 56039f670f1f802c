"""How long a user waits before anything is trained, and for the whole job on digits.

    python -m benchmarks.startup
    python -m benchmarks.startup --parts job --rounds 3

Every measurement is a process of its own, from its start to its end; the processes take turns. The
first step includes all that comes before it: imports, images, split, network, the validation before
step 0, views and the step. The files are in the system's memory, as they are read again and again.
The job is the README's: `train.py --algo fixmatch --then selmix`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.timing import Times, about, alternate, as_time, parser_of, spread, table

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")
JOB = ["--algo", "fixmatch", "--then", "selmix"]
PARTS = ("start", "imports", "job")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, start processes, print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", default=["start", "imports"], choices=PARTS)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the runs")
    args = parser.parse_intermixed_args(argv)
    print(about(rounds=args.rounds) + "\n")
    with TemporaryDirectory() as name:
        for part in args.parts:
            {"start": start, "imports": imports, "job": job}[part](Path(name), args)


if __name__ == "__main__":
    main()
