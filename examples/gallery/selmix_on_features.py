"""SelMix on features of a network that stays as it is: seconds, and which classes it mixes.

Any features do: here random filters of 8×8 digits, in your case those of a large network. The
picture shows which pairs of classes SelMix mixes first, as the objective is the worst class.
"""

import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from ssl_selmix.cli import main

STEPS = int(os.environ.get("STEPS", 400))

# In the place of a large network: random filters, as features that somebody else computed.
digits = load_digits()
rng = np.random.default_rng(0)
features = np.maximum(digits.data @ rng.normal(size=(64, 128)) / 64, 0).astype("float32")
np.savez("features.npz", train_features=features, train_labels=digits.target)

words = ["--algo", "supervised", "--then", "selmix", "--dataset", "features"]
words += ["data.root=features.npz", "data.test=50", "data.validation=30"]
words += ["data.labeled.largest=60", "data.labeled.rho=30", "data.unlabeled.largest=20"]
words += ["data.unlabeled.rho=1", f"supervised.steps={STEPS}", f"selmix.steps={STEPS}"]
assert main(["train", *words, "selmix.objective=min_recall", "--out", "run"]) == 0

results = json.loads(Path("run/results.json").read_text())
for stage in results["stages"]:
    figures, seconds = stage["test"], stage["seconds"]
    print(
        f"{stage['algorithm']}: mean recall {100 * figures['mean_recall']:.1f} %, worst class "
        f"{100 * figures['min_recall']:.1f} %, {seconds:.1f} s"
    )

rows = [json.loads(line) for line in Path("run/2-selmix/metrics.jsonl").read_text().splitlines()]
mixed = np.array(next(row["pair_distribution"] for row in rows if "pair_distribution" in row))
figure, axis = plt.subplots(figsize=(3.6, 3.0), layout="constrained")
shown = axis.imshow(100 * mixed, cmap="Greys")
axis.set(xlabel="class of the second image", ylabel="class of the labeled image")
axis.set(xticks=range(10), yticks=range(10))
figure.colorbar(shown, label="percent of the pairs")
figure.savefig("selmix_on_features.png", dpi=110)
