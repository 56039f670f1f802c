"""An objective of your own with a constraint: miss as few 8s as you can, but raise few alarms."""

import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ssl_selmix
from ssl_selmix import objectives
from ssl_selmix.splits import Counts, LongTailSplit

STEPS, CLASS, ALARMS = int(os.environ.get("STEPS", 300)), 8, 0.03

digits = load_digits()
images = torch.from_numpy(digits.images / 16).float().flatten(1)
labels = torch.from_numpy(digits.target)
tails = LongTailSplit(Counts(60, rho=30), Counts(1), validation=30, test=60)
split = tails.draw(digits.target, num_classes=10, seed=0)


def part(name: str) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    rows = getattr(split, name)
    return images[rows], labels[rows]


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(part("labeled")[0]), part("labeled")[1]).backward()
    optimizer.step()


def few_alarms(c: Tensor) -> Tensor:
    """At least 0 where few images of other classes are called an 8; c sums to 1."""
    others = 1 - c[CLASS].sum()
    return ALARMS - (c[:, CLASS].sum() - c[CLASS, CLASS]) / others


figure, axis = plt.subplots(figsize=(4.4, 2.8), layout="constrained")
free, bounded = objectives.recall_of(CLASS), objectives.get(
    objectives.recall_of(CLASS), 10, constraints=[few_alarms]
)
for name, objective, mark in (("recall alone", free, "s"), ("with a bound", bounded, "D")):
    result = ssl_selmix.finetune(
        model, labeled=part("labeled"), validation=part("validation"), test=part("test"),
        objective=objective, steps=STEPS, progress=False,
    )
    for when, net, face in (("before", model, "w"), (name, result.model, "k")):
        taken = net(part("test")[0]).argmax(1) == CLASS
        truth = part("test")[1] == CLASS
        recall, alarms = (100 * taken[rows].float().mean().item() for rows in (truth, ~truth))
        print(f"{when}: finds {recall:.1f} % of the 8s, alarms at {alarms:.1f} % of the others")
        axis.plot(alarms, recall, mark, color="k", markerfacecolor=face, label=when)
axis.axvline(100 * ALARMS, color="k", ls=":", label="the bound")
axis.set(xlabel="other digits taken for an 8, percent", ylabel="8s found, percent")
axis.legend(fontsize=8)
figure.savefig("own_objective.png", dpi=110)
