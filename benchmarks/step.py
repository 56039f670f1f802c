"""What a training step costs: ours, the network alone, and a step as the field writes it.

    python -m benchmarks.step --mu 2
    python -m benchmarks.step --mu 7
    python -m benchmarks.step --rates

`network` is forward and backward of as many images as the step has views (B labeled ones, a weak
and a strong view of mu B unlabeled ones), which are there already, normalised and channels last.
`joint`, `split` and `lazy` are whole steps of `--algo fixmatch`: batches, views, losses, optimizer
and averaged model. For `lazy` the benchmark decides which share of the pseudo-labels counts.
`reference` is benchmarks/reference.py: float32, contiguous, PIL transforms in two processes.

Arms take turns within a round; ratios are medians of the ratios of a round. With --rates the table
has the time per step against the share of the pseudo-labels that count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import ReferenceStep
from benchmarks.synthetic import Sizes, Steps, make_data, network
from benchmarks.timing import (
    Target,
    Times,
    about,
    alternate,
    parser_of,
    set_threads,
    spread,
    table,
    targets_table,
    threads_argument,
    times_row,
)
from ssl_selmix import algorithm
from ssl_selmix.data import Data
from ssl_selmix.methods.pseudo_labels import Confidence
from ssl_selmix.models import execution
from ssl_selmix.models.execution import Execution

HALF, THIRD = "lazy, 50 % count", "lazy, 30 % count"
SHARES = {HALF: 0.5, THIRD: 0.3}


class FixedShare(Confidence):
    """Lets a fixed share of the pseudo-labels count, whatever the network says."""

    share = 1.0

    def forward(self, p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels, and 1 for the first rows; which rows they are costs the same."""
        rows = torch.arange(len(p), device=p.device)
        return p.argmax(1), (rows < round(self.share * len(p))).to(p.dtype)


class Ours(Steps):
    """FixMatch steps in which a given share of the pseudo-labels counts."""

    def __init__(self, data: Data, args: argparse.Namespace, how: Execution) -> None:
        settings = {"batch": args.batch, "mu": args.mu}
        net = network(args.network, data)
        super().__init__(algorithm.load("fixmatch")[1], settings, data, net, how)
        fixed = FixedShare(data.task, self.algorithm.config)  # type: ignore[arg-type]
        self.rule = self.algorithm.confidence = fixed

    def at(self, share: float) -> Callable[[], None]:
        """A step in which this share counts."""

        def step() -> None:
            self.rule.share = share
            self()

        return step


class Network:
    """Forward and backward of random network inputs."""

    def __init__(self, data: Data, args: argparse.Namespace, how: Execution) -> None:
        images = args.batch * (1 + 2 * args.mu)
        size, num_classes = data.image_shape[1], data.task.num_classes
        self.net = network(args.network, data).prepared(how).train()
        x = torch.randn(images, 3, size, size)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(num_classes, (images,))

    def __call__(self) -> None:
        """Gradients of one batch."""
        self.net.zero_grad(set_to_none=True)
        F.cross_entropy(self.net(self.x), self.y).backward()


def arms_of(data: Data, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name."""
    arms: dict[str, Callable[[], object]] = {}
    for precision in args.precisions:
        arms[f"network, {precision}"] = Network(data, args, Execution(precision))
        for compile in (False, True) if args.compile else (False,):
            end = f", {precision}" + (", compiled" if compile else "")
            arms |= {
                name + end: step for name, step in steps_of(data, args, precision, compile).items()
            }
    plain = network(args.network, data)
    arms["reference, fp32"] = ReferenceStep(plain, data, args.batch, args.mu, args.workers)
    return arms


def steps_of(
    data: Data, args: argparse.Namespace, precision: str, compile: bool
) -> dict[str, Callable[[], object]]:
    """Our three ways of computing a step."""
    made = {
        forward: Ours(data, args, Execution(precision, forward, compiled=compile))
        for forward in ("joint", "split", "lazy")
    }
    # One share is enough where there is no target.
    shares = SHARES if precision == args.precisions[0] else {HALF: SHARES[HALF]}
    lazy = {name: made["lazy"].at(share) for name, share in shares.items()}
    return {"joint": made["joint"].at(0.5), "split": made["split"].at(0.5), **lazy}


def targets(precision: str, *, aims: bool) -> list[Target]:
    """Ratios of interest of one precision; aims are what the default precision was built for."""

    def ours(name: str) -> str:
        return f"{name}, {precision}"

    own = [("joint", 1.10), (HALF, 0.6)]
    found = [
        Target(f"{ours(n)} / network, {precision}", ours(n), ours("network"), bound)
        for n, bound in own
    ]
    goals = [("joint", 2.7), ("split", 4.0), (HALF, 5.0), (THIRD, 6.0)]
    found += [
        Target(f"reference / {ours(n)}", "reference, fp32", ours(n), bound, at_least=True)
        for n, bound in goals
    ]
    return found if aims else [replace(target, bound=None) for target in found]


def report(times: Times, args: argparse.Namespace) -> None:
    """Print the times, then measured against target."""
    images = args.batch * (1 + 2 * args.mu)
    rows = []
    for arm in times.seconds:
        row = times_row(times, arm, f"network, {_precision(arm, args.precisions)}")
        rows.append([*row, f"{images / times.median(arm):.0f}"])
    first = "network of the precision = 1"
    print(table(["arm", "a step", "range", first, "images/s"], rows))
    print()
    found = [t for p in args.precisions for t in targets(p, aims=p == args.precisions[0])]
    print(targets_table(times, found))
    print(f"\nimages/s counts all {images} views of a step, also those that are skipped.")


def _precision(arm: str, precisions: Sequence[str]) -> str:
    return next((p for p in precisions if f", {p}" in arm), precisions[0])


def rates(data: Data, args: argparse.Namespace) -> None:
    """Print the time per step against the share of pseudo-labels that count."""
    ways = {
        forward: Ours(data, args, Execution(args.precisions[0], forward))
        for forward in ("lazy", "joint")
    }
    shares = [i / 10 for i in range(11)]
    arms = {f"{name} {share}": step.at(share) for share in shares for name, step in ways.items()}
    times = alternate(arms, args.rounds)
    rows = []
    for share in shares:
        lazy, joint = f"lazy {share}", f"joint {share}"
        ratio = f"{times.ratio(lazy, joint):.2f} ({spread(times.ratios(lazy, joint))})"
        cells = [f"{1000 * times.median(arm):.0f}" for arm in (lazy, joint)]
        rows.append([f"{share:.1f}", *cells, ratio])
    print(table(["share that counts", "lazy, ms", "joint, ms", "lazy / joint"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, time, print the tables."""
    parser = parser_of(__doc__)
    threads_argument(parser)
    own = execution.precision_of("auto", torch.device("cpu"))
    parser.add_argument("--network", default="wrn-28-2")
    parser.add_argument("--batch", type=int, default=64, help="B, labeled images a step")
    parser.add_argument("--mu", type=int, default=2, help="unlabeled images per labeled image")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes of the reference")
    parser.add_argument("--rates", action="store_true", help="time per step against the mask rate")
    parser.add_argument("--compile", action="store_true", help="our steps compiled as well")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=list(dict.fromkeys([own, "fp32"])),
        choices=list(execution.DTYPES),
        help=f"the first is what the targets are for ({own} on this machine), then fp32",
    )
    args = parser.parse_args(argv)
    set_threads(args.threads)
    torch.manual_seed(0)
    data = make_data(Sizes(size=args.size))
    print(f"{args.network}, {args.size} px, B = {args.batch}, mu = {args.mu}")
    print(about(rounds=args.rounds, threads=torch.get_num_threads()) + "\n")
    if args.rates:
        rates(data, args)
    else:
        report(alternate(arms_of(data, args), args.rounds), args)


if __name__ == "__main__":
    main()
