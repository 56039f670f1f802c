"""A table with patients: what happens if images of one patient are in two parts.

Images of one patient look alike. Drawn one by one, they are in training and in test, and the test
says how well the network knows the patients. With `data.group_column` no patient is in two parts.
"""

import csv
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ssl_selmix.cli import main

STEPS = int(os.environ.get("STEPS", 300))

# 48 patients with six images each. A lesion is a brighter or darker spot, hard to see. The skin
# around it differs from patient to patient, and every network recognises it.
rng = np.random.default_rng(0)
Path("images").mkdir(exist_ok=True)
rows = []
for patient in range(48):
    skin, label = rng.integers(60, 190, (16, 16, 3)), "ab"[patient % 4 == 0]
    for shot in range(6):
        pixels = skin + rng.normal(0, 8, skin.shape)
        x, y = rng.integers(2, 11, 2)
        pixels[y : y + 4, x : x + 4] += 12 if label == "a" else -12
        name = f"images/{patient}-{shot}.png"
        Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(name)
        rows.append((name, label, f"p{patient}"))
with open("labels.csv", "w", newline="") as file:
    csv.writer(file).writerows([("path", "label", "patient"), *rows])

found: dict[str, float] = {}
for name, group in (("images drawn alone", []), ("by patient", ["data.group_column=patient"])):
    out = f"runs/{len(found)}"
    words = ["--algo", "supervised", "--dataset", "table", "data.file=labels.csv", *group]
    words += ["data.test=0.25", "data.unlabeled.shape=none", "model.name=cnn-16"]
    words += [f"supervised.steps={STEPS}", "supervised.batch=32", "supervised.keep=last"]
    assert main(["train", *words, "--out", out]) == 0
    stage = json.loads(Path(out, "results.json").read_text())["stages"][0]
    found[name] = 100 * stage["test"]["mean_recall"]
    print(f"{name}: mean recall on test {found[name]:.1f} %")

figure, axis = plt.subplots(figsize=(4.4, 2.4), layout="constrained")
bars = axis.bar(list(found), list(found.values()), color="0.75", edgecolor="k", width=0.5)
bars[1].set_hatch("//")
axis.bar_label(bars, fmt="%.0f")
axis.axhline(50, color="k", ls=":", label="a coin")
axis.set(ylabel="test: mean recall, percent", ylim=(0, 110))
axis.legend(loc="lower right")
figure.savefig("patients.png", dpi=110)
