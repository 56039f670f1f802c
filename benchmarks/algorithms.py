"""Cost of a training step of every algorithm, relative to FixMatch.

    python -m benchmarks.algorithms --threads 2

All algorithms take turns on the same images; a round times a few steps of each, and the table
has the median over rounds of the ratio to FixMatch in the same round. Steps are taken at 60 % of
the training, when every warm-up is over. Images are random bytes: their content costs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.arms import table
from ssl_selmix import engine, models, plugins
from ssl_selmix.data import Data, ImageSet, assemble
from ssl_selmix.log import StageLog
from ssl_selmix.splits import Counts, LongTailSplit

STEPS, AT = 10_000, 6_000
# What a method would otherwise estimate from a trained model, which there is none of here.
SETTINGS: dict[str, dict[str, Any]] = {
    "darp": {"prior": "labeled"},
    "remixmatch_darp": {"prior": "labeled"},
}


def make_data(num_classes: int, size: int) -> Data:
    """Random images: 4,000 labeled and unlabeled ones with a tail, 20 held out per class."""
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(num_classes).repeat(1000)
    shape = (len(labels), 3, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    names = tuple(str(k) for k in range(num_classes))
    half = (127.5,) * 3
    source = ImageSet(images, labels, names, mean=half, std=half)
    rule = LongTailSplit(Counts(300, rho=10.0), Counts(600, rho=10.0), validation=20, test=10)
    split = rule.draw(labels, num_classes, seed=0)
    return assemble(source, split, seed=0, device=torch.device("cpu"))[0].at_stage("1-benchmark")


@dataclass
class Timed:
    """One algorithm in the middle of its training."""

    name: str
    trainer: engine.Trainer
    batches: Iterator[Any]

    def seconds(self, steps: int) -> float:
        """Seconds per step."""
        start = time.perf_counter()
        for _ in range(steps):
            self.trainer._train_step(next(self.batches))
        return (time.perf_counter() - start) / steps


def prepare(name: str, data: Data, network: str, folder: Path, batch: int, mu: int) -> Timed:
    """The algorithm after a validation, at 60 % of its training."""
    kind = plugins.algorithm(name)[1]
    torch.manual_seed(0)
    net = models.build(models.Config(network), data.task.num_classes, 3)
    common = {"steps": STEPS, "evaluate_every": STEPS, "batch": batch, "mu": mu, "lr": 1e-3}
    config = kind.Config(**(common | SETTINGS.get(name, {})))
    algorithm = kind(net, data.task, config)
    algorithm.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    log = StageLog(folder, name, data.class_names, Console(quiet=True), 1)
    trainer = engine.Trainer(algorithm.train(), data, folder, log, "f")
    trainer.step = AT
    pool = algorithm.needs_pool(AT)
    evaluation = engine.evaluate(trainer.teacher, data, pool=pool)
    algorithm.on_validation(evaluation, trainer.context())
    return Timed(name, trainer, algorithm.batches(data, AT))


def main() -> None:
    """Time all algorithms in turn and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--network", default="wrn-10-2")
    parser.add_argument("--batch", type=int, default=32, help="B, labeled images a step")
    parser.add_argument("--mu", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps of each algorithm a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("names", nargs="*", default=[], help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.names or list(plugins.available("algorithm"))
    data = make_data(10, args.size)
    with TemporaryDirectory() as folder:
        timed = [
            prepare(n, data, args.network, Path(folder), args.batch, args.mu)
            for n in ["fixmatch", *(n for n in names if n != "fixmatch")]
        ]
        for one in timed:
            one.seconds(2)  # the first steps allocate
        rounds = [[one.seconds(args.steps) for one in timed] for _ in range(args.rounds)]
    rows = []
    for i, one in enumerate(timed):
        ratios = sorted(r[i] / r[0] for r in rounds)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        images = one.trainer.algorithm.images_per_step
        seconds = statistics.median(r[i] for r in rounds)
        middle = f"{statistics.median(ratios):.2f}"
        rows.append([one.name, middle, spread, f"{1000 * seconds:.0f}", str(images)])
    print(
        f"{args.network}, {args.size} px, B = {args.batch}, mu = {args.mu}, "
        f"{args.threads} thread(s), {args.rounds} rounds of {args.steps} steps\n"
    )
    print(table(["algorithm", "FixMatch = 1", "range", "ms a step", "images a step"], rows))


if __name__ == "__main__":
    main()
