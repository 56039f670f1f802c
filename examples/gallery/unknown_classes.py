"""Which classes are in the pool? Five estimates of what nobody has told.

The labeled images fall from class 0 to class 9, while the pool rises. Counting predictions follows
the labeled images; estimates that use held-out images find the pool.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from ssl_selmix.label_shift import METHODS, estimate
from ssl_selmix.splits import Counts, LongTailSplit

STEPS = int(os.environ.get("STEPS", 300))

# The labeled images fall from class 0 to class 9, and the pool rises.
digits = load_digits()
images = torch.from_numpy(digits.data / 16).float()
labels = torch.from_numpy(digits.target)
tails = LongTailSplit(
    Counts(50, rho=10), Counts(80, rho=10, shape="inverted"), validation=30, test=None
)
split = tails.draw(digits.target, num_classes=10, seed=0)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[split.labeled]), labels[split.labeled]).backward()
    optimizer.step()

with torch.no_grad():
    held_out, pool = (model(images[p]).softmax(1) for p in (split.validation, split.unlabeled))
truth = np.bincount(digits.target[split.unlabeled], minlength=10) / len(split.unlabeled) * 100
for method in METHODS:
    found = estimate(
        method, val_probs=held_out, val_labels=labels[split.validation], unlabeled_probs=pool
    )
    far = np.abs(100 * found.prior.numpy() - truth).sum()
    print(f"{method:10} distance from the truth {far:.1f} (0 to 200)  {found.note}")

low, high = 100 * found.interval.numpy()
middle = 100 * found.prior.numpy()
figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
axis.bar(np.arange(10), truth, color="0.8", edgecolor="k", label="the pool")
bars = np.clip([middle - low, high - middle], 0, None)
axis.errorbar(np.arange(10), middle, bars, fmt="ko", ms=4, capsize=2, label=f"{method}, 95 %")
labeled = np.bincount(digits.target[split.labeled], minlength=10)
axis.plot(100 * labeled / labeled.sum(), "k:", label="the labeled images")
axis.set(xlabel="class", ylabel="percent", xticks=range(10))
axis.legend(fontsize=8)
figure.savefig("unknown_classes.png", dpi=110)
