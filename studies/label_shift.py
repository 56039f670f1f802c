"""How well the pool's class distribution is estimated, and what it is worth, over shapes and seeds.

    python -m studies.label_shift --seeds 0 1 2 3 4 --gain-seeds 0 1 2

For every shape of the unlabeled pool: FixMatch as it is, then the five estimates of the pool's
distribution from its posteriors. For the gain seeds also three ways to go on: SelMix, SelMix with
corrected pseudo-labels, and FixMatch that followed the estimate before such a SelMix.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.timing import table
from ssl_selmix.compare.tables import spread
from ssl_selmix.deploy import estimate
from ssl_selmix.label_shift import METHODS
from studies.arms import parallel, second_stage, train

SHAPES = ("long_tail", "uniform", "inverted", "middle", "head_tail")
STAGES = ["fixmatch", "selmix"]
FIGURES = ("mean_recall", "min_recall")


def job(
    folder: Path, shape: str, seed: int, extra: list[str], every: int, gains: bool
) -> dict[str, Any]:
    """All runs of one shape and seed: estimates, and if asked the stages of every arm."""
    common = [f"seed={seed}", "threads=1", f"data.unlabeled.shape={shape}", *extra]
    follow = ["fixmatch.prior=estimated", f"fixmatch.prior_every={every}"]
    corrected = "selmix.pseudo_prior=estimated"
    here = folder / f"{shape}-{seed}"
    train(here / "none", ["fixmatch"], common)
    kept = here / "estimates.json"
    if not kept.exists():
        kept.write_text(json.dumps(estimate.of_run(here / "none").plain()))
    if not gains:
        return {"shape": shape, "seed": seed, "estimates": json.loads(kept.read_text())}
    train(here / "estimated", ["fixmatch"], [*common, *follow])
    arms = {
        "none": second_stage(here / "none", here / "none-none", STAGES, common),
        "pseudo": second_stage(here / "none", here / "none-pseudo", STAGES, [*common, corrected]),
        "both": second_stage(
            here / "estimated", here / "both", STAGES, [*common, *follow, corrected]
        ),
    }
    return {"shape": shape, "seed": seed, "estimates": json.loads(kept.read_text()), **arms}


def estimates_table(done: list[dict[str, Any]]) -> str:
    """L1 distance from the true distribution per shape and method, in percent."""
    rows = []
    for shape in SHAPES:
        found = [r["estimates"] for r in done if r["shape"] == shape]
        if found:
            assumed = [
                sum(abs(a - b) for a, b in zip(f["labeled"], f["truth"], strict=True))
                for f in found
            ]
            errors = [[f["estimates"][m]["l1_error"] for f in found] for m in METHODS]
            fallen = sum(f["estimates"][m]["method"] != m for f in found for m in METHODS)
            rows.append([shape, *map(spread, (assumed, *errors)), str(fallen)])
    return table(["pool", "labeled prior", *METHODS, "fell back"], rows)


def gains_table(done: list[dict[str, Any]], part: str) -> str:
    """Mean recall and worst class of every arm, and the paired change by the estimate."""
    rows = []
    for shape, figure in product(SHAPES, FIGURES):
        found = [r for r in done if r["shape"] == shape and "none" in r]
        if found:
            at = {
                (arm, stage): [r[arm][stage][part][figure] for r in found]
                for arm in ("none", "pseudo", "both")
                for stage in (0, 1)
            }
            change = [b - a for a, b in zip(at["none", 0], at["both", 0], strict=True)]
            after = [b - a for a, b in zip(at["none", 1], at["both", 1], strict=True)]
            rows.append(
                [
                    shape,
                    figure,
                    spread(at["none", 0]),
                    spread(at["both", 0]),
                    spread(change, signed=True),
                ]
                + [spread(at[arm, 1]) for arm in ("none", "pseudo", "both")]
                + [spread(after, signed=True)]
            )
    head = ["pool", "figure", "FixMatch", "with prior=estimated", "change"]
    head += ["then SelMix", "with pseudo_prior", "both estimated", "change"]
    return table(head, rows)


def main() -> None:
    """Run what is missing and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--gain-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--every", type=int, default=200, help="steps between estimates")
    parser.add_argument("--out", type=Path, default=Path("runs/label_shift"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/label-shift.json"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_args()
    pairs = list(product(args.seeds, args.shapes))
    done = parallel(
        lambda p: job(args.out, p[1], p[0], args.settings, args.every, p[0] in args.gain_seeds),
        pairs,
        args.jobs,
    )
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(done) + "\n")
    print(f"\nL1 error of the estimates, percent, n = {len(args.seeds)} seeds\n")
    print(estimates_table(done))
    for part in ("test", "validation"):
        print(f"\n{part}, percent, n = {len(args.gain_seeds)} seeds\n")
        print(gains_table(done, part))


if __name__ == "__main__":
    main()
