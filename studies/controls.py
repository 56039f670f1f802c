"""What SelMix adds to its start, and what the controls add: one table, seeds × splits × arms.

    python -m studies.controls --seeds 0 1 2 3 4

Every arm starts from the same FixMatch weights of its seed and split, and takes the same number of
steps on the same labels. Numbers are test recalls in percent, mean ± standard deviation over seeds;
the weights of an arm are chosen on validation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.arms import cell, parallel, second_stage, table, train

SPLITS = {"same": [], "reversed": ["data.unlabeled.reverse=true"]}
ARMS = {
    "SelMix": [],
    "plain fine-tuning": ["selmix.policy=natural", "selmix.mix=none"],
    "same P, no mixing": ["selmix.mix=none"],
    "uniform pairs": ["selmix.policy=uniform"],
    "greedy pairs": ["selmix.policy=greedy"],
}
HEAD = ["stage", "mean recall", "worst class", "change of the mean", "change of the worst class"]
KEYS = ("mean_recall", "min_recall")


def job(folder: Path, split: str, seed: int, extra: Sequence[str]) -> dict[str, Any]:
    """All arms of one seed and split; arm name -> the stages of its results."""
    common = [f"seed={seed}", "threads=1", *SPLITS[split], *extra]
    start = folder / f"{split}-{seed}-start"
    train(start, ["fixmatch"], common)
    stages = {}
    for arm, settings in ARMS.items():
        out = folder / f"{split}-{seed}-{arm.replace(' ', '-').replace(',', '')}"
        words = [*common, "selmix.objective=min_recall", *settings]
        stages[arm] = second_stage(start, out, ["fixmatch", "selmix"], words)
    return stages


def rows(results: Sequence[dict[str, Any]], part: str) -> list[list[str]]:
    """Table rows of one split: the start, then every arm with its paired change."""
    starts = [r["SelMix"][0][part] for r in results]
    found = [["FixMatch (start)", *(cell([s[k] for s in starts]) for k in KEYS), "", ""]]
    for arm in ARMS:
        ends = [r[arm][1][part] for r in results]
        after = [cell([e[k] for e in ends]) for k in KEYS]
        pairs = list(zip(starts, ends, strict=True))
        found.append(
            [arm, *after, *(cell([e[k] - s[k] for s, e in pairs], signed=True) for k in KEYS)]
        )
    return found


def main() -> None:
    """Run what is missing and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_args()
    pairs = [(split, seed) for split in args.splits for seed in args.seeds]
    done = parallel(lambda p: job(args.out, p[0], p[1], args.settings), pairs, args.jobs)
    for part in ("test", "validation"):
        for split in args.splits:
            results = [r for (s, _), r in zip(pairs, done, strict=True) if s == split]
            print(f"\n{part}, unlabeled tail {split}, n = {len(results)} seeds\n")
            print(table(HEAD, rows(results, part)))


if __name__ == "__main__":
    main()
