"""Cost of a training step of every algorithm, relative to FixMatch.

    python -m benchmarks.algorithms --threads 2

All algorithms take turns on the same images; a round times a few steps of each, and the table
has the median over rounds of the ratio to FixMatch in the same round. Steps are taken at 60 % of
the training, when every warm-up is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.synthetic import Sizes, make_data, network, steps_of
from benchmarks.timing import about, alternate, parser_of, positive, set_threads, spread, table
from ssl_selmix import algorithm
from ssl_selmix.common import plugins


def settings(name: str, batch: int, mu: int) -> dict[str, int]:
    """The sizes of a step, as far as the algorithm can be told."""
    draws_pool = issubclass(algorithm.load(name)[1].Config, algorithm.Algorithm.PoolConfig)
    return {"batch": batch, **({"mu": mu} if draws_pool else {})}


def main(argv: Sequence[str] | None = None) -> None:
    """Time all algorithms in turn and print the table as Markdown."""
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--network", default="wrn-10-2")
    parser.add_argument("--batch", type=positive, default=32, help="B, labeled images a step")
    parser.add_argument("--mu", type=positive, default=2)
    parser.add_argument("--size", type=positive, default=32, help="pixels")
    parser.add_argument("--steps", type=positive, default=4, help="steps of each in a round")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("names", nargs="*", default=[], help="default: all")
    args = parser.parse_args(argv)
    set_threads(args.threads)
    names = args.names or list(plugins.available("algorithm"))
    data = make_data(Sizes(size=args.size))
    arms = {
        name: steps_of(name, data, network(args.network, data), settings(name, args.batch, args.mu))
        for name in ["fixmatch", *(n for n in names if n != "fixmatch")]
    }
    times = alternate(arms, args.rounds, calls=args.steps)
    rows = []
    for name, steps in arms.items():
        middle = f"{times.ratio(name, 'fixmatch'):.2f}"
        shown = spread(times.ratios(name, "fixmatch"), "{:.2f}".format)
        images = str(steps.algorithm.images_per_step)
        rows.append([name, middle, shown, f"{1000 * times.median(name):.0f}", images])
    print(
        f"{args.network}, {args.size} px, B = {args.batch}, mu = {args.mu}, "
        f"rounds of {args.steps} steps"
    )
    print(about(rounds=args.rounds, threads=torch.get_num_threads()) + "\n")
    print(table(["algorithm", "FixMatch = 1", "range", "ms a step", "images a step"], rows))


if __name__ == "__main__":
    main()
