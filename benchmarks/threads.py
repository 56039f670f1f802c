"""One thread against all of the machine, for steps with more and more work.

    python -m benchmarks.threads

A step of FixMatch (mu = 2, fp32) on small and large networks, images and batches. `work` is what
`machine.flops_per_step` counts, by which threads are chosen unless `threads=` says so.
"""

from __future__ import annotations

import torch

from benchmarks.synthetic import Sizes, Steps, make_data
from benchmarks.timing import about, alternate, parser_of, table
from ssl_selmix import algorithm, models
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import machine

SIZES = [
    ("cnn-16", 8, 16),
    ("cnn-16", 8, 64),
    ("cnn-32", 8, 64),
    ("cnn-32", 16, 64),
    ("wrn-10-1", 16, 16),
    ("wrn-10-1", 32, 16),
    ("wrn-10-1", 32, 64),
    ("wrn-10-2", 32, 64),
]


class Threaded:
    """A step with so many threads."""

    def __init__(self, steps: Steps, threads: int) -> None:
        self._steps, self._threads = steps, threads

    def __call__(self) -> None:
        """Take it."""
        torch.set_num_threads(self._threads)
        self._steps()


def main() -> None:
    """Print the table as Markdown."""
    parser = parser_of(__doc__, rounds=7)
    args = parser.parse_args()
    every = machine.machine_threads()
    rows = []
    for name, size, batch in SIZES:
        data = make_data(Sizes(size=size))
        torch.manual_seed(0)
        net = models.build(models.Config(name), 10, 3)
        kind = algorithm.load("fixmatch")[1]
        steps = Steps(kind, {"batch": batch, "mu": 2}, data, net, Execution())
        images = steps.algorithm.images_per_step
        flops = machine.flops_per_step(net, (3, size, size), images)
        arms = {str(n): Threaded(steps, n) for n in (1, every)}
        times = alternate(arms, args.rounds, calls=3)
        one, all_ = (times.median(arm) for arm in arms)
        gain = times.ratio("1", str(every))
        chosen = machine.threads_for(flops)
        cells = [name, f"{size}", f"{batch}", f"{flops / 1e9:.2f}"]
        rows.append([*cells, f"{1e3 * one:.1f}", f"{1e3 * all_:.1f}", f"{gain:.2f}", str(chosen)])
    print(about(rounds=args.rounds), end="\n\n")
    head = ["network", "pixels", "B", "GFLOP a step", "ms, 1 thread"]
    print(table([*head, f"ms, {every} threads", "gain", "chosen"], rows))


if __name__ == "__main__":
    main()
