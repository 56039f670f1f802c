"""What split, lazy, bf16 and compiled steps do to accuracy: the main job in each way, over seeds.

    python -m studies.step_accuracy --seeds 0 1 2 3 4
    python -m studies.step_accuracy --seeds 0 1 2 --alone --arms joint split lazy lazy-time -- \
        --dataset image_folder data.root=data model.name=wrn-10-1 precision=bf16 \
        fixmatch.steps=1500

All ways have equally many steps; `lazy-time` is lazy with as many steps as take the time of joint,
by the seconds of that seed's joint and lazy runs. Test figures in percent, mean ± sd over seeds;
seconds are those of the first stage. Mask rate: mean over the run of the share of pseudo-labels
that count. It is no sweep, for the steps of `lazy-time` follow from the seconds of other runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import table
from ssl_selmix.common import config
from ssl_selmix.compare.tables import spread
from studies.arms import parallel, train

AVERAGED, TEACHER = "fixmatch.ema_buffers=average", "fixmatch.pseudo_labels=teacher"
ARMS = {
    "joint": [],
    "joint-averaged": [AVERAGED],
    "bf16": ["precision=bf16"],
    "split": ["views.split=true"],
    "lazy": ["views.lazy=true"],
    "lazy-averaged": ["views.lazy=true", AVERAGED],
    "lazy-teacher": ["views.lazy=true", TEACHER],
    "lazy-teacher-averaged": ["views.lazy=true", TEACHER, AVERAGED],
    "lazy-time": ["views.lazy=true"],
    "compile": ["compile=true"],
}
HEAD = ["step", "steps", "mask rate", "s", "FixMatch: mean", "worst", "SelMix: mean", "worst"]


def job(
    folder: Path, seed: int, arms: Sequence[str], chain: Sequence[str], extra: Sequence[str]
) -> dict[str, Any]:
    """Results of every way with one seed; way -> results, with the mask rate of its first stage."""
    found: dict[str, Any] = {}
    for arm in arms:
        settings = [f"seed={seed}", "threads=1", *extra, *ARMS[arm]]
        if arm == "lazy-time":
            seconds = {name: found[name]["stages"][0]["seconds"] for name in ("joint", "lazy")}
            steps = found["joint"]["stages"][0]["steps"]
            longer = round(steps * seconds["joint"] / seconds["lazy"])
            settings.append(f"fixmatch.steps={longer}")
        out = folder / f"{seed}-{arm}"
        found[arm] = train(out, chain, settings)
        found[arm]["mask_rate"] = mask_rate(out / "1-fixmatch" / "metrics.jsonl")
    return found


def mask_rate(path: Path) -> float:
    """Mean over the steps of a stage."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return float(statistics.mean(row["mask_rate"] for row in rows if row["kind"] == "train"))


def row(arm: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """Figures of one way over its seeds."""
    first = [f["stages"][0] for f in found]
    cells = [arm, f"{statistics.median(s['steps'] for s in first):.0f}"]
    cells += [f"{statistics.mean(f['mask_rate'] for f in found):.2f}"]
    cells += [f"{statistics.median(s['seconds'] for s in first):.0f}"]
    for stage in range(len(found[0]["stages"])):
        for key in ("mean_recall", "min_recall"):
            cells.append(spread([f["stages"][stage]["test"][key] for f in found]))
    return cells


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/step-accuracy"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--alone", action="store_true", help="FixMatch without SelMix")
    parser.add_argument("words", nargs="*", help="key=value and options for every run, after --")
    args = parser.parse_args()
    chain = ["fixmatch"] if args.alone else ["fixmatch", "selmix"]
    # Runs with other settings must not be taken for these.
    folder = args.out / config.fingerprint(chain, args.words)[:8]
    done = parallel(lambda s: job(folder, s, args.arms, chain, args.words), args.seeds, args.jobs)
    head = HEAD[: 4 + 2 * len(chain)]
    print(table(head, [row(arm, [d[arm] for d in done]) for arm in args.arms]))
    print(f"\nn = {len(args.seeds)} seeds; {args.jobs} processes at a time, one thread each")


if __name__ == "__main__":
    main()
