"""A method of your own in a dozen lines: how sure a pseudo-label is, is how much it counts.

A method is a class with one mandatory function. `ssl-selmix check` holds it to the contract of
all methods; then it trains as the shipped ones do. This one is short, and no good: labels alone
do better here.
"""

import json
import os
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Batch, Context
from ssl_selmix.methods.views import joint_logits


class OwnMethod(Algorithm):
    """Pseudo-labels of the weak view teach the strong view."""

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses, whose sum is minimised, and what is logged."""
        x, weak, strong = joint_logits(self.net, batch)
        sure, classes = weak.detach().softmax(1).max(1)
        unlabeled = (F.cross_entropy(strong, classes, reduction="none") * sure).mean()
        return {"labeled": F.cross_entropy(x, batch.y), "unlabeled": unlabeled}, {
            "sure": sure.mean()
        }


def main() -> None:
    """Check it, train it beside a shipped method, and draw both curves."""
    import matplotlib.pyplot as plt

    from ssl_selmix import cli

    steps = int(os.environ.get("STEPS", 400))
    assert steps < 100 or cli.main(["check", __file__]) == 0
    figure, axis = plt.subplots(figsize=(4.4, 2.6), layout="constrained")
    for name, algo, style in (("own_method", __file__, "k-"), ("supervised",) * 2 + ("k:",)):
        own = [f"{name}.{word}" for word in (f"steps={steps}", "batch=32", "ema=0.99")]
        every = f"{name}.evaluate_every={max(1, steps // 10)}"
        words = ["--algo", algo, "--out", f"runs/{name}", *own, every, "model.name=cnn-16"]
        assert cli.main(["train", *words, "pictures=false"]) == 0
        lines = Path(f"runs/{name}/1-{name}/metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "validation"]
        recalls = [100 * row["mean_recall"] for row in rows]
        axis.plot([row["step"] for row in rows], recalls, style, label=name)
        print(f"{name}: mean recall on validation {recalls[-1]:.1f} %")
    axis.set(xlabel="step", ylabel="validation: mean recall, percent", ylim=(0, 100))
    axis.legend()
    figure.savefig("own_method.png", dpi=110)


if __name__ == "__main__":
    main()
