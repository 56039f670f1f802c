"""How long `ssl_selmix.posthoc` takes, what it gains on new images, and its memory.

    OMP_NUM_THREADS=2 python -m benchmarks.posthoc
    OMP_NUM_THREADS=2 python -m benchmarks.posthoc --large

Gaussian classes, scores of a long-tailed training set (rho 100), balanced held-out images, five
folds. The second command adds 1,000 classes with 50,000 images, in a process of its own whose
memory is measured. Processor time is shown beside the wall clock: on a machine that others use, it
says what the work itself costs.
"""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import about, apart, as_time, parser_of, spread, table

OBJECTIVES = ("h_mean", "mean_recall", "min_recall", "mean_recall_min_coverage")
RHO = 100.0  # of the training set that the scores follow
NEW = 20_000  # images that judge a rule, on which no part of it was chosen


@dataclass(frozen=True)
class Size:
    """A problem, and the seconds that its fit with cross-fitting may take on two cores."""

    num_classes: int
    images: int
    spread: float  # of the class means, in standard deviations of an image
    bound: float


SIZES = (Size(10, 5_000, 0.7, 0.3), Size(100, 5_000, 0.45, 3.0))
LARGE = Size(1_000, 50_000, 0.45, 60.0)


def draw(size: Size, images: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores (N, K) in single precision, as networks give them, and labels (N,)."""
    means = np.random.default_rng(0).normal(
        size=(size.num_classes, 64 if size.num_classes > 64 else 10)
    )
    means = (means * size.spread).astype(np.float32)
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % size.num_classes
    points = means[labels] + generator.standard_normal((images, means.shape[1]), np.float32)
    prior = RHO ** -np.linspace(0, 1, size.num_classes)
    bias = np.log(prior / prior.sum()) - (means**2).sum(1) / 2
    return (points @ means.T + bias).astype(np.float32), labels


@dataclass(frozen=True)
class Measured:
    """Seconds of each round by both clocks, bytes at the peak, and the figures in fractions."""

    wall: list[float]
    processor: list[float]
    peak: int
    figures: list[float]  # before, fitted, cross-fitted, new images before and after


def measure(size: Size, objective: str, rounds: int, new: int) -> Measured:
    """Fit a rule `rounds` times; a first one that is not measured loads what Python loads late."""
    from ssl_selmix import objectives, posthoc

    scores, labels = draw(size, size.images, seed=1)
    wall, processor = [], []
    for index in range(-1 if size.num_classes < LARGE.num_classes else 0, rounds):
        start = time.perf_counter(), time.process_time()
        rule = posthoc(scores, labels, objective=objective)
        if index >= 0:
            wall.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = [part["objective"] for part in (rule.before, rule.after, rule.cross_fitted)]
    import torch

    value, k = objectives.get(objective, size.num_classes), size.num_classes
    unseen, truth = draw(size, max(new, 20 * k), seed=2)
    for predicted in (unseen.argmax(1), rule.predict(unseen)):
        counts = np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)
        figures.append(value.metric(torch.from_numpy(counts)))
    return Measured(wall, processor, peak, figures)


def main(argv: list[str] | None = None) -> None:
    """Measure and print both tables as Markdown."""
    parser = parser_of(__doc__)
    parser.add_argument("--large", action="store_true", help="also 1,000 classes, 50,000 images")
    parser.add_argument("--images", type=int, default=0, help="held-out images; 0: as documented")
    parser.add_argument("--new", type=int, default=NEW, help=f"images that judge rules ({NEW})")
    args = parser.parse_args(argv)
    times, gains = [], []
    for size in (*SIZES, *([LARGE] if args.large else [])):
        size = Size(size.num_classes, args.images or size.images, size.spread, size.bound)
        names = OBJECTIVES if size.num_classes < LARGE.num_classes else OBJECTIVES[:1]
        for name in names:
            found = apart(measure, size, name, args.rounds, args.new)
            assert isinstance(found, Measured)
            median = statistics.median(found.wall)
            problem = [f"{size.num_classes}", f"{size.images}", name]
            clocks = [as_time(median), spread(found.wall, as_time)]
            work = as_time(statistics.median(found.processor))
            verdict = [f"{size.bound:g} s", "yes" if median < size.bound else "no"]
            times.append([*problem, *clocks, work, *verdict, f"{found.peak / 1e9:.2f} GB"])
            gains.append([*problem, *(f"{100 * figure:.1f}" for figure in found.figures)])
    head = ["classes", "images", "objective"]
    print(table([*head, "median", "range", "processor", "bound", "met", "peak memory"], times))
    print()
    print(table([*head, "before", "fitted", "cross-fitted", "new, before", "new, after"], gains))
    print(f"\n{about(rounds=args.rounds)}")


if __name__ == "__main__":
    main()
