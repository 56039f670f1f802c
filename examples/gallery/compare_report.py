"""Two methods, three seeds each: which is better, how sure is that, and a page to send.

`compare` makes tables with intervals, a CSV, and one page with sortable tables, recalls by class
and the worst confusions. The picture is drawn from the CSV: a point for every seed.
"""

import csv
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ssl_selmix.cli import main

STEPS = int(os.environ.get("STEPS", 200))
SEEDS = range(3 if STEPS > 9 else 1)

for seed in SEEDS:
    for method in ("supervised", "fixmatch"):
        words = [f"{method}.steps={STEPS}", f"{method}.batch=32", f"{method}.ema=0.99"]
        words += [f"selmix.steps={max(1, STEPS // 4)}", "model.name=cnn-16", "pictures=false"]
        chain = ["--algo", method, "--then", "selmix", "--seed", str(seed)]
        assert main(["train", *chain, "--out", f"runs/{method}-{seed}", *words]) == 0

# The page has sortable tables, recalls by class and the worst confusions; the CSV every value.
words = ["--csv", "values.csv"] + (["--html", "report.html"] if STEPS > 9 else [])
assert main(["compare", "runs", *words]) == 0

found: dict[str, list[tuple[float, float]]] = {}
with Path("values.csv").open(newline="") as file:
    kept = [r for r in csv.DictReader(file) if (r["part"], r["weights"]) == ("test", "kept")]
for name in dict.fromkeys(row["method"] for row in kept):
    values = {
        figure: [
            100 * float(r["value"]) for r in kept if (r["method"], r["figure"]) == (name, figure)
        ]
        for figure in ("mean_recall", "min_recall")
    }
    found[name] = list(zip(*values.values(), strict=True))
figure, axis = plt.subplots(figsize=(4.4, 3.0), layout="constrained")
for (name, points), mark in zip(found.items(), "osDv", strict=True):
    x, y = np.transpose(points)
    face = "k" if "selmix" in name else "w"
    axis.plot(x, y, mark, color="k", markerfacecolor=face, label=name)
    print(f"{name}: mean recall {x.mean():.1f} %, worst class {y.mean():.1f} %")
axis.set(xlabel="test: mean recall, percent", ylabel="test: worst class, percent")
axis.legend(fontsize=8)
figure.savefig("compare_report.png", dpi=110)
