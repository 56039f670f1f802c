"""The rate that finds itself against fixed rates, from starts of different quality.

    python -m studies.trust --seeds 0 1 2 3 4
    python -m studies.trust --seeds 0 --start 240 1200 --rates 3e-4 3e-3 -- \
        --dataset image_folder data.root=data model.name=wrn-10-2 selmix.steps=400

Each start is a FixMatch of so many steps. `fixed` is the paper's step
with a cosine schedule at each rate; `trust` is the default. Worst-class and mean recall in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.arms import cell, parallel, second_stage, table, train

RATES = ["1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2"]
HEAD = ["start after", "step", "validation: worst", "mean", "test: worst", "mean"]


def job(
    folder: Path, seed: int, steps: int, arms: dict[str, list[str]], extra: Sequence[str]
) -> Any:
    """All arms of one seed and start; arm -> the stages of its results."""
    common = [f"seed={seed}", "threads=1", f"fixmatch.steps={steps}", *extra]
    start = folder / f"{seed}-{steps}-start"
    train(start, ["fixmatch"], common)
    algorithms = ["fixmatch", "selmix"]
    return {
        arm: second_stage(start, folder / f"{seed}-{steps}-{arm}", algorithms, [*common, *settings])
        for arm, settings in arms.items()
    }


def row(label: list[str], stages: Sequence[dict[str, Any]]) -> list[str]:
    """Figures of one arm over its seeds."""
    return label + [
        cell([s[part][key] for s in stages])
        for part in ("validation", "test")
        for key in ("min_recall", "mean_recall")
    ]


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--start", type=int, nargs="+", default=[200, 1000], help="FixMatch steps")
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--out", type=Path, default=Path("runs/trust"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("words", nargs="*", help="key=value and options for every run, after --")
    args = parser.parse_args()
    arms = {f"fixed-{r}": ["selmix.step=fixed", f"selmix.lr={r}"] for r in args.rates}
    arms["trust"] = []
    pairs = [(steps, seed) for steps in args.start for seed in args.seeds]
    done = parallel(lambda p: job(args.out, p[1], p[0], arms, args.words), pairs, args.jobs)
    rows = []
    for steps in args.start:
        found = [r for (s, _), r in zip(pairs, done, strict=True) if s == steps]
        rows.append(row([str(steps), "(none)"], [r["trust"][0] for r in found]))
        rows += [row([str(steps), arm], [r[arm][1] for r in found]) for arm in arms]
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
