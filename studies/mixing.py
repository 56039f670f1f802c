"""What mixing adds to SelMix on frozen features, at one rate and at one length of the way.

    python -m studies.mixing collect runs/features-mixing docs/results/features/mixing.json
    python -m studies.mixing table docs/results/features/mixing.json

`collect` reads the runs of studies/features-mixing.yaml: test figures, and how far the classifier's
weights went from the first stage, |W - W0|. `table` prints them, mean ± standard deviation over the
seeds, and three kinds of differences, paired by seed with 95 % t intervals: mixing and none at one
rate; mixing and none at one length of the way, where the worst class without mixing is interpolated
in the logarithm of the length between the two runs of the seed that are next to it; other settings
and their base.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import table
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.compare.tables import spread
from ssl_selmix.runs.folder import RunFolder
from studies.frozen_features import interval

RATES = ("0.0003", "0.003", "0.03", "0.3")
STARTS = ("length-8", "length-32")
HEAD = "classifier.weight"
PAIRS = (  # a row, what it is held against
    ("mixing-0.03-labeled-partners", "mixing-0.03"),
    ("mixing-0.03-true-partners", "mixing-0.03"),
    ("none-0.03-decay-0.005", "none-0.03"),
    ("none-0.03-decay-0.05", "none-0.03"),
    ("trusted-mixing", "trusted-none"),
    ("trusted-mixing-uniform", "trusted-none-uniform"),
    ("trusted-mixing", "trusted-mixing-uniform"),
)
Rows = dict[str, dict[str, dict[int, dict[str, float]]]]  # start, row, seed, figure


def collect(runs: Path) -> list[dict[str, Any]]:
    """Figures of every finished run: start, row, seed, recalls, way."""
    found = []
    for folder in sorted(runs.glob("*/*/seed-*")):
        if not (folder / "results.json").exists():
            continue
        start, _, row = folder.parent.name.partition("+")
        first = folder.parent.parent / start / folder.name
        weight, before = (RunFolder(path).weights()[HEAD].double() for path in (folder, first))
        stage = json.loads((folder / "results.json").read_text())["stages"][-1]
        test = stage["test"]
        found.append(
            {"start": start, "row": row or "start", "seed": int(folder.name.partition("-")[2])}
            | {"mean_recall": test["mean_recall"], "min_recall": test["min_recall"]}
            | {"validation": stage["validation"]["min_recall"]}
            | {"way": round(float((weight - before).norm()), 6)}
        )
    return found


def by_row(found: Sequence[dict[str, Any]]) -> Rows:
    """The same by start, row and seed; of the seeds of which every row of a start is there."""
    rows: Rows = defaultdict(lambda: defaultdict(dict))
    for one in found:
        rows[one["start"]][one["row"]][one["seed"]] = one
    for start, of_start in rows.items():
        common = set.intersection(*(set(seeds) for seeds in of_start.values()))
        rows[start] = {
            row: {seed: seeds[seed] for seed in sorted(common)} for row, seeds in of_start.items()
        }
    return rows


def worst(rows: dict[str, dict[int, dict[str, float]]], row: str) -> np.ndarray:
    """Worst class of every seed."""
    return np.array([one["min_recall"] for one in rows[row].values()])


def chosen(rows: dict[str, dict[int, dict[str, float]]], how: str) -> np.ndarray:
    """Worst class of every seed at the rate whose worst class on validation is best."""
    return np.array(
        [
            max((rows[f"{how}-{rate}"][seed] for rate in RATES), key=lambda r: r["validation"])[
                "min_recall"
            ]
            for seed in rows["start"]
        ]
    )


def at_length(
    rows: dict[str, dict[int, dict[str, float]]], rate: str
) -> tuple[list[float], list[float]]:
    """Worst class with mixing less that without at the same way, and the way, of each seed.

    A seed without runs of none on both sides is left out.
    """
    found, ways = [], []
    for seed, mixed in rows[f"mixing-{rate}"].items():
        plain = [rows[f"none-{other}"][seed] for other in RATES]
        for low, high in pairwise(plain):
            if low["way"] <= mixed["way"] < high["way"]:
                share = math.log(mixed["way"] / low["way"]) / math.log(high["way"] / low["way"])
                there = (1 - share) * low["min_recall"] + share * high["min_recall"]
                found.append(mixed["min_recall"] - there)
                ways.append(mixed["way"])
                break
    return found, ways


def tables_of(rows: Rows, start: str) -> str:
    """The tables of one start as Markdown.

    Raises:
        KeyError: there is no such start.
    """
    of = rows[start]
    lines = [
        [row, *(spread([one[key] for one in of[row].values()]) for key in FIGURES), way(of[row])]
        for row in of
    ]
    parts = [table(["row", *FIGURES.values(), "way"], lines)]
    lines = []
    for rate in RATES:
        same = worst(of, f"mixing-{rate}") - worst(of, f"none-{rate}")
        there, ways = at_length(of, rate)
        told = f"{interval(there)} (way {np.mean(ways):.2f}, n = {len(there)})" if there else "–"
        lines.append([rate, interval(list(same)), told])
    best = [chosen(of, how) for how in ("mixing", "none")]
    lines.append(["chosen on validation", interval(list(best[0] - best[1])), "–"])
    parts.append(table(["rate", "mixing less none, same rate", "same way"], lines))
    lines = [[a, b, interval(list(worst(of, a) - worst(of, b)))] for a, b in PAIRS]
    parts.append(table(["row", "less", "worst class"], lines))
    return "\n\n".join(parts)


FIGURES = {"mean_recall": "mean recall", "min_recall": "worst class"}


def way(seeds: dict[int, dict[str, float]]) -> str:
    """How far the weights went."""
    values = [one["way"] for one in seeds.values()]
    return f"{np.mean(values):.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Collect, or print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("collect", "table"))
    parser.add_argument("source", type=Path, help="folder of runs, or what was collected")
    parser.add_argument("to", type=Path, nargs="?", help="of collect: the file to write")
    args = parser.parse_args(argv)
    if args.what == "collect":
        lines = [json.dumps(one) for one in collect(args.source)]
        write_atomically(args.to, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    else:
        rows = by_row(json.loads(args.source.read_text()))
        for start in STARTS:
            print(f"{start}, n = {len(rows[start]['start'])}\n\n{tables_of(rows, start)}\n")


if __name__ == "__main__":
    main()
