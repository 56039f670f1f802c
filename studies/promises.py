"""How much of the change that SelMix promised came: between its estimates, on validation images.

    python -m studies.promises runs/cifar10-jpeg

Reads the logs of finished runs; nothing is trained. Between two estimates of the gains SelMix
promises a change of its objective (the gains times P and the rates), its centroids' logits move it
to first order by another amount, and the objective on validation images changes by a third. A row
is a second stage after all its starts, over all splits and seeds: the three changes of an interval
in hundredths, the rank correlation of the first two with the third, and how many of the changes lay
beyond two standard errors on either side. What was taken back counts: it was promised as well.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from scipy.stats import spearmanr  # type: ignore[import-untyped]

from benchmarks.timing import table
from ssl_selmix.compare.tables import spread
from ssl_selmix.runs import archive

KEYS = ("promised", "moved", "actual", "error")
HEAD = ["second stage", "runs", "intervals", *KEYS[:3], "promised ~ actual", "moved ~ actual"]


def intervals(log: Sequence[str]) -> list[list[float]]:
    """Promised, moved, actual change and its standard error of every interval in one log."""
    lines = map(json.loads, log)
    names = [f"change_{key}" for key in KEYS]
    return [[line[name] for name in names] for line in lines if names[0] in line]


def logs(folders: Sequence[Path]) -> Iterator[tuple[str, list[list[float]]]]:
    """The second stage's name and the intervals of every run that has some."""
    for folder in folders:
        for run in archive.runs_below(folder):
            for index in range(len(run.stages)):
                name = f"{run.place(index).name}/{archive.LOG}"
                if run.has(name) and (found := intervals(run.lines(name))):
                    yield run.path.parts[-2].partition("+")[2], found


def row(name: str, runs: Sequence[list[list[float]]]) -> list[str]:
    """The table's row of one second stage."""
    promised, moved, actual, error = zip(*(one for run in runs for one in run), strict=True)
    ranks = [f"{spearmanr(kind, actual).statistic:+.2f}" for kind in (promised, moved)]
    beyond = [sum(sign * a > 2 * e for a, e in zip(actual, error, strict=True)) for sign in (1, -1)]
    changes = [spread(kind, signed=True) for kind in (promised, moved, actual)]
    return [name, str(len(runs)), str(len(actual)), *changes, *ranks, *map(str, beyond)]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a sweep's folder")
    found: dict[str, list[list[list[float]]]] = defaultdict(list)
    for name, run in logs(parser.parse_args(argv).runs):
        found[name].append(run)
    print(table([*HEAD, "rose", "fell"], [row(*item) for item in found.items()]))


if __name__ == "__main__":
    main()
