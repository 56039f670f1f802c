"""Every objective on digits: its own figure on test before and after, over seeds.

    python -m studies.objectives --seeds 0 1 2 3 4

All nine start from the same FixMatch weights of their seed. Minimum coverage is the smallest share
of predictions that a class gets, in percent of 1/K: 100 is balanced, 95 what the constraint asks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ssl_selmix.objectives import DESCRIPTIONS
from studies.arms import cell, parallel, second_stage, table, train

FIGURE = {name: name for name in ("mean_recall", "min_recall", "min_ht_recall", "g_mean", "h_mean")}
HEAD = ["objective", "figure", "before", "after", "change", "min coverage", "after"]


def own_figure(name: str) -> str:
    """The figure of results.json that an objective reports."""
    return FIGURE.get(name) or ("h_mean" if name.startswith("h_mean") else "mean_recall")


def job(folder: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """All objectives of one seed; name -> the stages of its results."""
    common = [f"seed={seed}", "threads=1", *extra]
    start = folder / f"{seed}-start"
    train(start, ["fixmatch"], common)
    return {
        name: second_stage(
            start,
            folder / f"{seed}-{name}",
            ["fixmatch", "selmix"],
            [*common, f"selmix.objective={name}"],
        )
        for name in DESCRIPTIONS
    }


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_args()
    done = parallel(lambda seed: job(args.out, seed, args.settings), args.seeds, args.jobs)
    for part in ("test", "validation"):
        rows = []
        for name in DESCRIPTIONS:
            key = own_figure(name)
            before = [r[name][0][part] for r in done]
            after = [r[name][1][part] for r in done]
            num_classes = len(before[0]["per_class_recall"])
            change = [a[key] - b[key] for b, a in zip(before, after, strict=True)]
            coverage = [
                cell([f["min_coverage"] * num_classes for f in figures])
                for figures in (before, after)
            ]
            figures = [cell([f[key] for f in figures]) for figures in (before, after)]
            rows.append([name, key, *figures, cell(change, signed=True), *coverage])
        print(f"\n{part}, percent, n = {len(done)} seeds\n")
        print(table(HEAD, rows))


if __name__ == "__main__":
    main()
