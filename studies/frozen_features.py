"""SelMix and offsets on features of a frozen network: what each adds to three kinds of classifiers.

    python -m studies.frozen_features FEATURES.npz --seeds 0 1 2 3 4

The file has `train` and `test` (images × features), `train_y` and `test_y`. Splits are those of the
SelMix paper for 10 classes: 1,500 labeled and 3,000 unlabeled images of the largest class, rho 100
in both, 500 validation images a class. Starts: a linear classifier by cross-entropy, with logit
adjustment and without, and a Gaussian discriminant. Figures are test figures in percent, mean ± sd
over seeds; differences are paired by seed, with 95 % t intervals.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student  # type: ignore[import-untyped]
from torch import Tensor, nn

import ssl_selmix
from benchmarks.timing import table
from ssl_selmix.compare.tables import spread
from ssl_selmix.metrics import evaluate

K, LABELED, POOL, RHO, VALIDATION = 10, 1500, 3000, 100.0, 500
ARMS: dict[str, dict[str, Any]] = {
    "SelMix, absolute rate, 500 steps": {"rate": "absolute", "steps": 500},
    "SelMix, 500 steps": {"steps": 500},
    "SelMix, 1,000 steps": {"steps": 1000},
    "SelMix from offsets, 1,000 steps": {"steps": 1000, "offsets": "fitted"},
}
HEAD = ["", "mean recall", "worst class", "H-mean", "H-mean less that of offsets", "overfit"]


def split(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Labeled, pool, validation and test features, standardised by the labeled ones."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"labeled": [], "pool": [], "validation": []}
    for k in range(K):
        rows = torch.nonzero(data["train_y"] == k)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        sizes = [int(n * RHO ** (-k / (K - 1))) for n in (LABELED, POOL)]
        for name, part in zip(
            ("labeled", "validation", "pool"),
            rows.split([sizes[0], VALIDATION, sizes[1], len(rows) - sum(sizes) - VALIDATION]),
            strict=False,
        ):
            parts[name].append(part)
    found = {"test": data["test"], "test_y": data["test_y"]}
    for name, rows_of in parts.items():
        index = torch.cat(rows_of)
        found |= {name: data["train"][index], f"{name}_y": data["train_y"][index]}
    mean, sd = found["labeled"].mean(0), found["labeled"].std(0).clamp_min(1e-6)
    return {n: v if n.endswith("_y") else (v - mean) / sd for n, v in found.items()}


def linear(data: dict[str, Tensor], adjusted: bool, steps: int = 1500) -> nn.Linear:
    """A linear classifier by SGD on the labeled features, with logit adjustment or without."""
    torch.manual_seed(0)
    x, y = data["labeled"], data["labeled_y"]
    head = nn.Linear(x.shape[1], K)
    shift = (torch.bincount(y, minlength=K) / len(y)).log() * adjusted
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(len(y), (256,), generator=generator)
        loss = F.cross_entropy(head(x[rows]) + shift, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head


def discriminant(data: dict[str, Tensor], shrinkage: float = 0.1) -> nn.Linear:
    """Gaussian classes with one covariance, shrunk towards a multiple of the identity."""
    x, y = data["labeled"].double(), data["labeled_y"]
    means = torch.stack([x[y == k].mean(0) for k in range(K)])
    rest = x - means[y]
    covariance = rest.T @ rest / len(x)
    even = covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=torch.float64)
    weight = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * even, means.T).T
    head = nn.Linear(x.shape[1], K)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(-0.5 * (weight * means).sum(1))
    return head


STARTS = {
    "logit adjustment": lambda data: linear(data, adjusted=True),
    "cross-entropy": lambda data: linear(data, adjusted=False),
    "Gaussian discriminant": discriminant,
}


def job(data: dict[str, Tensor], head: nn.Linear, objective: str) -> dict[str, dict[str, float]]:
    """Test figures of every row of the table, with the objective on validation."""
    net = nn.Sequential(nn.Identity(), head)
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, model: nn.Module, offsets: bool) -> None:
        with torch.no_grad():
            logits = {part: model(data[part]) for part in ("validation", "test")}
        if offsets:
            rule = ssl_selmix.posthoc(
                logits["validation"], data["validation_y"], objective=objective
            )
            logits = {part: rule.adjust(value) for part, value in logits.items()}
        figures = {n: evaluate(v, data[f"{n}_y"], K) for n, v in logits.items()}
        told = {n: float(figures["test"][n]) for n in ("mean_recall", "min_recall", "h_mean")}  # type: ignore[arg-type]
        fitted = float(figures["validation"][objective])  # type: ignore[arg-type]
        found[name] = told | {"overfit": fitted - told[objective]}

    measure("start", net, offsets=False)
    measure("offsets", net, offsets=True)
    for name, settings in ARMS.items():
        result = ssl_selmix.finetune(
            net,
            labeled=(data["labeled"], data["labeled_y"]),
            validation=(data["validation"], data["validation_y"]),
            unlabeled=data["pool"],
            objective=objective,
            progress=False,
            **settings,
        )
        measure(name, result.model.eval(), offsets=False)
        measure(f"{name}, then offsets", result.model, offsets=True)
    return found


def row(name: str, runs: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Figures of one way over the seeds."""
    own = [run[name] for run in runs]
    cells = [spread([r[key] for r in own]) for key in ("mean_recall", "min_recall", "h_mean")]
    less = [run[name]["h_mean"] - run["offsets"]["h_mean"] for run in runs]
    return [name, *cells, interval(less), interval([r["overfit"] for r in own])]


def interval(values: Sequence[float]) -> str:
    """The mean in percent with half of its 95 % t interval."""
    points, n = 100 * np.array(values), len(values)
    if n < 2:
        return f"{points.mean():+.1f}"
    half = student.ppf(0.975, n - 1) * points.std(ddof=1) / math.sqrt(n)
    return f"{points.mean():+.1f} ± {half:.1f}"


def main() -> None:
    """Print a table for each start as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("features", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--objective", default="h_mean", choices=["h_mean", "mean_recall"])
    args = parser.parse_args()
    with np.load(args.features) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    data |= {name: data[name].long() for name in ("train_y", "test_y")}
    for name, make in STARTS.items():
        splits = (split(data, seed) for seed in args.seeds)
        runs = [job(parts, make(parts), args.objective) for parts in splits]
        print(f"\n{name}\n\n{table(HEAD, [row(way, runs) for way in runs[0]])}", flush=True)
    print(f"\nn = {len(args.seeds)} seeds; overfit: the objective on validation less that on test")


if __name__ == "__main__":
    main()
