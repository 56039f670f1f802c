"""A loop of your own: FixMatch without the command line and without the engine.

The loop asks the method for batches and for its losses; optimizer and steps are yours. The picture
has the mean recall and the recall of the worst of ten classes while FixMatch trains.
"""

import os

import matplotlib.pyplot as plt
import torch

from ssl_selmix import metrics, models
from ssl_selmix.algorithm import Context, load
from ssl_selmix.data import assemble
from ssl_selmix.datasets import digits

STEPS = int(os.environ.get("STEPS", 600))

# Handwritten digits: a long tail of 30 to 2 labeled images, and a pool without labels.
config = digits.Config()
source = digits.load(config)
split = config.draw(source.train_labels, 10, seed=0)
data, _ = assemble(source, split, 0, torch.device("cpu"))

torch.manual_seed(0)
net = models.build(models.Config(name="cnn-16"), num_classes=10, channels=1)
kind = load("fixmatch")[1]
method = kind(net, data.task, kind.Config(steps=STEPS, batch=32))
optimizer = torch.optim.SGD(method.parameters(), lr=0.03, momentum=0.9, nesterov=True)

curve: list[tuple[int, float, float]] = []
for step, batch in zip(range(STEPS), method.batches(data, start=0), strict=False):
    losses, logs = method(batch, Context(step, STEPS, teacher=method))
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % max(1, STEPS // 20) == 0:
        method.eval()
        with torch.no_grad():
            logits = torch.cat([method.predict(x) for x in data.test_batches(None)])
        method.train()
        confusion = metrics.confusion_matrix(data.test_labels, logits.argmax(1), 10)
        recalls = 100 * confusion.diagonal() / confusion.sum(1)
        curve.append((step + 1, float(recalls.mean()), float(recalls.min())))

steps, mean, worst = zip(*curve, strict=True)
print(f"after {STEPS} steps: mean recall {mean[-1]:.1f} %, worst class {worst[-1]:.1f} %")
figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
axis.plot(steps, mean, "k-", label="mean recall")
axis.plot(steps, worst, "k:", label="worst class")
axis.set(xlabel="step", ylabel="percent of the test images", ylim=(0, 100))
axis.legend()
figure.savefig("minimal_loop.png", dpi=110)
