"""A trained model outside: a table of predictions, and a file that needs torch alone.

`predict` writes a row for each image file. `export` writes a program and checks it against the
run's model; torch runs it without this package. The picture shows what both say of eight digits.
"""

import csv
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ssl_selmix.cli import main

STEPS = int(os.environ.get("STEPS", 300))

words = [f"fixmatch.steps={STEPS}", "fixmatch.batch=32", "fixmatch.ema=0.99", "pictures=false"]
assert main(["train", "--algo", "fixmatch", "--out", "run", "model.name=cnn-16", *words]) == 0

# Images of the world: files in a folder.
Path("inbox").mkdir(exist_ok=True)
digits = load_digits()
for i in range(8):
    Image.fromarray((digits.images[i] * 255 / 16).astype("uint8")).save(f"inbox/{i}.png")
assert main(["predict", "run", "inbox", "--top", "2", "--out", "found.csv"]) == 0
with open("found.csv", newline="") as file:
    rows = list(csv.DictReader(file))
print(", ".join(rows[0]))
for row in rows[:3]:
    print(", ".join(row.values()))

# A program that torch runs without this package; it takes pixels in 0..255.
assert main(["export", "run", "--pt2", "model.pt2", "--normalise"]) == 0
program = torch.export.load("model.pt2").module()
pixels = torch.from_numpy(digits.images[:8] * 255 / 16).round().float()[:, None]
again = program(pixels).softmax(1).max(1)

figure, axes = plt.subplots(1, 8, figsize=(6.4, 1.3), layout="constrained")
for axis, row, p, k, image in zip(axes, rows, *again, digits.images, strict=False):
    assert row["class"] == str(int(k)), (row, k)
    axis.imshow(image, cmap="Greys")
    axis.set_title(f"{row['class']}\n{100 * float(p):.0f} %", fontsize=9)
    axis.axis("off")
figure.savefig("export_predict.png", dpi=110)
