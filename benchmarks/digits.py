"""Every algorithm on digits, alone and with SelMix, over seeds and two shapes of the pool.

    python -m benchmarks.digits --seeds 0 1 2

First stages have 2,000 steps; second stages start from FixMatch's weights and have SelMix's number
of steps. Nothing is tuned: values are the defaults, the papers', except for what the digits preset
says for all alike. The results.json of every finished run goes to docs/results/digits, and what is
there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.arms import cell, parallel, second_stage, table, train
from ssl_selmix import plugins

SECOND_STAGES = ("selmix", "crt", "lws", "mixup", "cutmix")
POOLS = {"same": "long_tail", "inverted": "inverted"}
FIGURES = ("mean_recall", "min_recall")
# Alone, logit adjustment is on in `fixmatch` and `supervised`; these are their plain variants.
VARIANTS = {
    "supervised": {"supervised": "1.0", "supervised plain": "0.0"},
    "fixmatch": {"fixmatch": "1.0", "fixmatch plain": "0.0"},
}


def arms() -> dict[str, tuple[str, list[str]]]:
    """Name of the arm -> first algorithm and its settings."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name in plugins.available("algorithm"):
        if name not in SECOND_STAGES:
            for arm, tau in VARIANTS.get(name, {name: ""}).items():
                found[arm] = (name, [f"{name}.logit_adjustment={tau}"] if tau else [])
    return found


def job(
    folder: Path, kept: Path, pool: str, seed: int, arm: str, extra: list[str]
) -> list[dict[str, Any]]:
    """Results of one algorithm with every second stage after it."""
    name, settings = arms()[arm]
    common = [f"seed={seed}", "threads=1", f"data.unlabeled.shape={POOLS[pool]}"]
    common += [f"{name}.steps=2000", *settings, *extra]
    here = folder / f"{pool}-{seed}-{arm.replace(' ', '-')}"
    found = []
    for second in SECOND_STAGES if arm == "fixmatch" else ("selmix",):
        file = kept / f"{here.name}-{second}.json"
        if not file.exists():
            train(here, [name], common)
            out = here.with_name(f"{here.name}-{second}")
            second_stage(here, out, [name, second], common)
            shutil.copy(out / "results.json", file)
        stages = json.loads(file.read_text())["stages"]
        found.append({"pool": pool, "seed": seed, "arm": arm, "then": second, "stages": stages})
    return found


def rows(done: list[dict[str, Any]], pool: str, part: str) -> list[list[str]]:
    """A row per algorithm: figures alone, after SelMix, and the paired change."""
    made = []
    for arm in arms():
        found = [r for r in done if (r["pool"], r["arm"], r["then"]) == (pool, arm, "selmix")]
        if found:
            row = [arm]
            for figure in FIGURES:
                before, after = ([r["stages"][i][part][figure] for r in found] for i in (0, 1))
                change = [b - a for a, b in zip(before, after, strict=True)]
                row += [cell(before), cell(after), cell(change, signed=True)]
            made.append(row)
    return made


def second_rows(done: list[dict[str, Any]], pool: str, part: str) -> list[list[str]]:
    """A row per second stage after FixMatch."""
    made = []
    for second in SECOND_STAGES:
        found = [r for r in done if (r["pool"], r["arm"], r["then"]) == (pool, "fixmatch", second)]
        if found:
            row = [second]
            for figure in FIGURES:
                before, after = ([r["stages"][i][part][figure] for r in found] for i in (0, 1))
                change = [b - a for a, b in zip(before, after, strict=True)]
                row += [cell(after), cell(change, signed=True)]
            made.append(row)
    return made


def main() -> None:
    """Run what is missing, keep the raw results, print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=list(POOLS))
    parser.add_argument("--arms", nargs="+", default=list(arms()), choices=list(arms()))
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/digits"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_args()
    # Seeds last: the first finished seed of every arm shows mistakes early.
    jobs = list(product(args.seeds, args.pools, args.arms))
    args.results.mkdir(parents=True, exist_ok=True)
    lists = parallel(
        lambda j: job(args.out, args.results, j[1], j[0], j[2], args.settings), jobs, args.jobs
    )
    done = [result for found in lists for result in found]
    head = ["algorithm"]
    head += [
        f"{f}{s}" for f in ("mean recall", "worst class") for s in ("", " + SelMix", " change")
    ]
    for pool, part in product(args.pools, ("test", "validation")):
        print(f"\npool: {pool}; {part}, percent, n = {len(args.seeds)} seeds\n")
        print(table(head, rows(done, pool, part)))
        print("\nafter fixmatch:\n")
        second = ["second stage", "mean recall", "change", "worst class", "change"]
        print(table(second, second_rows(done, pool, part)))


if __name__ == "__main__":
    main()
