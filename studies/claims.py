"""What the SelMix paper claims, held against the runs of a sweep: one row per start and objective.

    python -m studies.claims runs/cifar10-jpeg/same

The first table has the change of test figures over the own start, in points, mean ± standard
deviation over seeds; how many seeds gained 8 points or more of worst-class recall and lost no more
than one of mean recall; and the second stage's share of the first one's time. The second has every
objective's own figure: that of the first stage with the best validation mean (nobody chooses by
test), and that of SelMix tuned for it after the start that was best on validation then, over the n
seeds that all of them have.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import table
from ssl_selmix.compare.tables import spread
from ssl_selmix.runs import archive

# What an objective wants, as recorded figures; coverage is a constraint, 0.95 / K at least.
OBJECTIVES = {
    "selmix": "min_recall",
    "selmix-mean": "mean_recall",
    "selmix-h_mean": "h_mean",
    "selmix-coverage": "mean_recall",
}
RISE, LOSS = 0.08, 0.01  # of the worst class, of the mean
HALF = 5e-10  # figures are multiples of 1 / (images of a class): no claim fails by a rounding


def arms(folder: Path) -> dict[str, dict[int, Any]]:
    """Finished results of a split's folder, by arm and seed."""
    found: dict[str, dict[int, Any]] = {}
    for run in archive.runs_below(folder):
        if run.stages and run.path.parent.parent == folder:
            found.setdefault(run.path.parts[-2], {})[run.results.seed] = run.results.plain()
    return found


def values(runs: Mapping[int, Any], figure: str, part: str = "test") -> list[float]:
    """A figure of the last stage, by seed."""
    return [float(run["stages"][-1][part][figure]) for run in runs.values()]


def change_row(
    start: str, second: str, firsts: Mapping[int, Any], runs: Mapping[int, Any]
) -> list[str]:
    """The row of one second stage after one start."""
    changes: dict[str, list[float]] = {}
    for figure in ("mean_recall", "min_recall", "h_mean", "min_coverage"):
        pairs = [
            (firsts[seed]["stages"][-1]["test"], run["stages"][-1]["test"])
            for seed, run in runs.items()
        ]
        changes[figure] = [end[figure] - begin[figure] for begin, end in pairs]
    both = zip(changes["min_recall"], changes["mean_recall"], strict=True)
    kept = sum(worst >= RISE - HALF and mean >= -LOSS - HALF for worst, mean in both)
    seconds = [
        run["stages"][-1]["seconds"] / firsts[seed]["stages"][-1]["seconds"]
        for seed, run in runs.items()
    ]
    share = f"{100 * statistics.mean(seconds):.0f} %"
    cells = [spread(found, signed=True) for found in changes.values()]
    return [start, second, *cells, f"{kept} of {len(runs)}", share]


def objective_row(second: str, figure: str, found: Mapping[str, Mapping[int, Any]]) -> list[str]:
    """The row of one objective: baselines against SelMix that was tuned for it."""
    kinds = (
        {name: runs for name, runs in found.items() if "+" not in name},
        {name: runs for name, runs in found.items() if name.rpartition("+")[2] == second},
    )
    seeds = set.intersection(*(set(runs) for kind in kinds for runs in kind.values()))
    row = [second, str(len(seeds))]
    for kind in kinds:
        runs = {name: {s: of[s] for s in sorted(seeds)} for name, of in kind.items()}
        best = max(runs, key=lambda name: statistics.mean(values(runs[name], figure, "validation")))
        row += [
            best,
            spread(values(runs[best], figure)),
            spread(values(runs[best], "min_coverage")),
        ]
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of one split of a sweep")
    found = arms(parser.parse_args(argv).folder)
    # The start of a third stage is the second one.
    pairs = [name.rpartition("+")[::2] for name in found if "+" in name]
    head = ["start", "second stage", "mean recall", "worst class", "H-mean", "min coverage"]
    rows = [change_row(a, b, found[a], found[f"{a}+{b}"]) for a, b in pairs]
    print(table([*head, f"+{100 * RISE:.0f} / -{100 * LOSS:.0f} holds", "time"], rows))
    objectives = {b: figure for b, figure in OBJECTIVES.items() if any(b == x for _, x in pairs)}
    head = ["tuned for", "n", "best baseline", "its figure", "min coverage"]
    head += ["SelMix after", "its figure", "min coverage"]
    print()
    print(table(head, [objective_row(b, figure, found) for b, figure in objectives.items()]))


if __name__ == "__main__":
    main()
