"""How much of the change that SelMix promised came: between its estimates, on validation images.

    python -m benchmarks.promises runs/cifar10-jpeg/same

Reads the logs of finished runs; nothing is trained. Between two estimates of the gains SelMix
promises a change of its objective (the gains times P and the rates), its centroids' logits move it
to first order by another amount, and the objective on validation images changes by a third. A row
is a second stage over all seeds: how many intervals, the sums of the three over a run, and how many
actual changes lie beyond two standard errors on either side. Changes that were taken back count as
well: they were predicted. Objectives are shares, printed times 100.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import cell, table

KEYS = ("promised", "moved", "actual", "error")


def intervals(log: Path) -> list[list[float]]:
    """Promised, moved, actual change and its standard error of every interval in one log."""
    lines = map(json.loads, log.read_text("utf-8").splitlines())
    names = [f"change_{key}" for key in KEYS]
    return [[line[name] for name in names] for line in lines if names[0] in line]


def logs(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """The name of each run with promises in its log: the folder above its seed's."""
    for folder in folders:
        for log in sorted(folder.rglob("metrics.jsonl")):
            if "change_promised" in log.read_text("utf-8"):
                run = log.parent.parent
                yield "/".join(run.parent.parts[-2:]), log


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run, or a folder")
    found: dict[str, list[list[list[float]]]] = defaultdict(list)
    for name, log in logs(parser.parse_args().runs):
        found[name].append(intervals(log))
    head = ["second stage", "runs", "intervals", "promised", "moved", "actual"]
    rows = []
    for name, runs in found.items():
        sums = [[sum(one[i] for one in run) for run in runs] for i in range(3)]
        every = [one for run in runs for one in run]
        rose = sum(actual > 2 * error for _, _, actual, error in every)
        fell = sum(actual < -2 * error for _, _, actual, error in every)
        cells = [cell(values, signed=True) for values in sums]
        rows.append([name, str(len(runs)), str(len(every)), *cells, str(rose), str(fell)])
    print(table([*head, "rose", "fell"], rows))


if __name__ == "__main__":
    main()
