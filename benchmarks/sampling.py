"""What drawing class pairs costs: refreshing P, and a batch of 64 pairs before augmentation.

    python benchmarks/sampling.py

The first sizes are those of CIFAR-10-LT in the SelMix paper: 3,720 labeled and 7,443 unlabeled
images. Medians over alternating repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ssl_selmix.selmix.pairs import ClassPairSampler
from ssl_selmix.splits import long_tail_counts


def labels(counts: list[int]) -> torch.Tensor:
    """Class labels with these counts."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def measure(
    first: torch.Tensor, second: torch.Tensor, num_classes: int, repeats: int
) -> tuple[float, float]:
    """Median milliseconds of a refresh (new pseudo-labels and P) and of drawing 64 pairs."""
    pairs = torch.rand(num_classes, num_classes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        start = time.perf_counter()
        sampler = ClassPairSampler(first, second, num_classes)
        sampler.refresh(pairs)
        middle = time.perf_counter()
        sampler.draw(64, generator)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return 1000 * statistics.median(times[0]), 1000 * statistics.median(times[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'K':>5} {'labeled':>8} {'pool':>8} {'refresh ms':>11} {'64 pairs ms':>12}")
    for num_classes, largest, rho in ((10, 1500, 100.0), (100, 150, 10.0), (1000, 15, 1.0)):
        first = labels(long_tail_counts(largest, rho, num_classes))
        second = labels(long_tail_counts(2 * largest, rho, num_classes))
        times = measure(first, second, num_classes, args.repeats)
        print(f"{num_classes:5} {len(first):8} {len(second):8} {times[0]:11.3f} {times[1]:12.3f}")


if __name__ == "__main__":
    main()
