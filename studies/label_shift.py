"""How well the pool's class distribution is estimated, and what it is worth, over shapes and seeds.

    python -m studies.label_shift --seeds 0 1 2 3 4 --gain-seeds 0 1 2
    python -m studies.label_shift --seeds 0 1 2 3 4 --methods simpro acr cdmad

For every shape of the unlabeled pool: FixMatch as it is, then the five estimates of the pool's
distribution from its posteriors. For the gain seeds also three ways to go on: SelMix, SelMix with
corrected pseudo-labels, and FixMatch that followed the estimate before such a SelMix. With
`--methods`: what these methods take the pool to hold at the end of their own training, and nothing
else.
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
ESTIMATES = {"cdmad": "reference_prior"}  # the vector in metrics.jsonl; of others estimated_prior


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


def method_job(
    folder: Path, shape: str, seed: int, extra: list[str], methods: list[str]
) -> dict[str, Any]:
    """L1 distances between the pool and what each method takes it for when it ends."""
    found: dict[str, Any] = {"shape": shape, "seed": seed, "methods": {}}
    for method in methods:
        out = folder / f"{shape}-{seed}" / method
        common = [f"seed={seed}", "threads=1", f"data.unlabeled.shape={shape}", *extra]
        stage = train(out, [method], common)["stages"][-1]
        rows = map(json.loads, (out / f"1-{method}" / "metrics.jsonl").read_text().splitlines())
        name = ESTIMATES.get(method, "estimated_prior")
        estimates = [row[name] for row in rows if name in row]
        found["methods"][method] = {
            "l1_error": l1(estimates[-1], true_prior(out)),
            **{figure: stage["test"][figure] for figure in FIGURES},
        }
    return found


def true_prior(run: Path) -> list[float]:
    """Shares of the classes among the unlabeled images of a run."""
    counts = json.loads((run / "manifest.json").read_text())["counts"]["unlabeled"]
    return [n / sum(counts) for n in counts]


def l1(a: list[float], b: list[float]) -> float:
    """Sum of absolute differences."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def methods_table(done: list[dict[str, Any]], methods: list[str]) -> str:
    """L1 distances and test recalls in percent, a row for each shape."""
    rows = []
    for shape in SHAPES:
        found = [r["methods"] for r in done if r["shape"] == shape]
        if found:
            cells = []
            for method, figure in product(methods, ("l1_error", *FIGURES)):
                cells.append(spread([f[method][figure] for f in found]))
            rows.append([shape, *cells])
    titles = {"l1_error": "L1 error", "mean_recall": "mean recall", "min_recall": "worst class"}
    return table(["pool", *(f"{m}: {t}" for m in methods for t in titles.values())], rows)


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
    parser.add_argument("--methods", nargs="+", help="what these estimate, in place of FixMatch")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for every run")
    args = parser.parse_args()
    pairs = list(product(args.seeds, args.shapes))
    if args.methods:
        of_methods = parallel(
            lambda p: method_job(args.out, p[1], p[0], args.settings, args.methods),
            pairs,
            args.jobs,
        )
        print(f"\nat the end of training, test, percent, n = {len(args.seeds)} seeds\n")
        print(methods_table(of_methods, args.methods))
        return
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
