"""Which network gets furthest on validation in a given time: FixMatch with logit adjustment.

    python -m studies.candidates --minutes 10 -- --dataset image_folder data.root=data

A short run says how many steps a network takes in that time beside another job; a run of so many
steps, with its schedule, says how far it gets. That is why it is no sweep, whose steps are given.
Two jobs at a time, one thread each. Test figures are not looked at: this is how the network of the
study on photographs was chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import table
from studies.arms import parallel, train

NETWORKS = ["wrn-10-1", "wrn-10-2", "wrn-16-2", "wrn-10-2-s2", "wrn-10-4-s2", "wrn-16-4-s2"]
TRIAL = 100  # steps by which a network's speed is found


def job(folder: Path, network: str, minutes: float, words: Sequence[str]) -> list[str]:
    """The row of one network."""
    common = ["threads=1", f"model.name={network}", *words]
    trial = [f"fixmatch.steps={TRIAL}", f"fixmatch.evaluate_every={TRIAL}"]
    train(folder / f"{network}-trial", ["fixmatch"], [*common, *trial])
    rate = speed(folder / f"{network}-trial")
    steps = round(60 * minutes * rate / 50) * 50
    settings = [f"fixmatch.steps={steps}", f"fixmatch.evaluate_every={max(50, steps // 4)}"]
    found = train(folder / f"{network}-{steps}", ["fixmatch"], [*common, *settings])
    figures = found["stages"][0]["validation"]
    recalls = [f"{100 * figures[key]:.1f}" for key in ("mean_recall", "min_recall")]
    parameters = f"{found['protocol']['parameters']:,}"
    return [network, parameters, f"{rate:.2f}", str(steps), *recalls]


def speed(run: Path) -> float:
    """Steps per second, but for the first reading, which warms up."""
    lines = (run / "1-fixmatch" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line).get("steps_per_second") for line in lines]
    found = [float(rate) for rate in rates if rate]
    return sum(found[1:]) / len(found[1:])


def main() -> None:
    """Run what is missing and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/candidates"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("words", nargs="*", help="key=value and options for every run, after --")
    args = parser.parse_args()
    rows = parallel(
        lambda name: job(args.out, name, args.minutes, args.words), args.networks, args.jobs
    )
    head = ["network", "parameters", "steps/s", "steps", "validation: mean", "worst class"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
