"""A timm model that somebody trained, and a decision rule for its worst class, without training.

`posthoc` needs logits of held-out images and their classes, from any program. It adds a number to
the logits of every class. The picture has the recalls on other images, which the rule never saw.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate

import ssl_selmix
from ssl_selmix.splits import Counts, LongTailSplit

STEPS = int(os.environ.get("STEPS", 250))

digits = load_digits()
images = torch.from_numpy(digits.images / 16).float()[:, None]
images, labels = interpolate(images, scale_factor=4), torch.from_numpy(digits.target)
tails = LongTailSplit(Counts(100, rho=50), Counts(1), validation=25, test=50)
split = tails.draw(digits.target, num_classes=10, seed=0)

# The model: any classifier would do. This one has seen few images of the last classes.
torch.manual_seed(0)
model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
train = torch.from_numpy(split.labeled)
for _ in range(STEPS):
    batch = train[torch.randint(len(train), (32,))]
    optimizer.zero_grad()
    cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()

model.eval()
with torch.no_grad():
    held_out, test = (model(images[part]) for part in (split.validation, split.test))
rule = ssl_selmix.posthoc(held_out, labels[split.validation], objective="h_mean")
truth = digits.target[split.test]


def recalls(predicted: torch.Tensor) -> list[float]:
    """Percent of each class."""
    right = predicted.numpy() == truth
    return [float(100 * np.mean(right[truth == k])) for k in range(10)]


before, after = recalls(test.argmax(1)), recalls(torch.as_tensor(rule.predict(test)))
for name, found in (("as it came", before), ("with offsets", after)):
    print(f"{name}: mean recall {np.mean(found):.1f} %, worst class {min(found):.1f} %")
figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
axis.bar(np.arange(10) - 0.2, before, 0.4, color="w", edgecolor="k", label="as it came")
axis.bar(np.arange(10) + 0.2, after, 0.4, color="0.5", edgecolor="k", label="with offsets")
axis.set(xlabel="class, the rarest on the right", ylabel="test: recall, percent", xticks=range(10))
axis.legend(loc="lower left")
figure.savefig("timm_posthoc.png", dpi=110)
