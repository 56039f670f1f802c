"""How costs grow with batch, image size, classes, pool and processes, and what a large pool takes.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --parts memory

The last column of a table is the exponent e of cost = c * size^e, by least squares on logarithms:
1 is proportional, 0 does not depend on it. A step is a joint step of FixMatch. `re-estimation` is
what SelMix does with the predictions of a pass over validation images and pool: pseudo-labels,
gains, P; `pass` is that pass, with a network that costs next to nothing; `pairs` is sorting the
pool by class and drawing the first 64 pairs. Sizes of a table take turns within a round.

Processes are those of a sweep, jobs of one thread each that know nothing of each other, and those
of torchrun, which share every batch of one job. Memory is that of a fresh process (Linux): how much
more than the pool of 3.07 GB it held in every part of a run.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from benchmarks import memory
from benchmarks.synthetic import (
    FEATURES,
    Sizes,
    Steps,
    cheap_net,
    large_source,
    large_split,
    make_data,
    network,
    steps_of,
    tiled_pool,
)
from benchmarks.timing import (
    Times,
    about,
    alternate,
    as_time,
    digits,
    exponent,
    parser_of,
    positive,
    set_threads,
    spread,
    table,
    threads_argument,
)
from ssl_selmix import models
from ssl_selmix.algorithm import Context, Evaluation, Task, load
from ssl_selmix.data import Data, assemble
from ssl_selmix.models.execution import Execution
from ssl_selmix.selmix.pairs import ClassPairSampler
from ssl_selmix.training import engine

Calls = Mapping[str, Callable[[], object]]


def print_growth(title: str, sizes: Sequence[int], times: Mapping[str, Times]) -> None:
    """A row per quantity with its time at every size, and the exponent.

    Args:
        title: what the sizes are.
        sizes: of the columns.
        times: per quantity; arms are the sizes as text.
    """
    rows = []
    for what, found in times.items():
        own = [size for size in sizes if str(size) in found.seconds]
        cells = [
            f"{as_time(found.median(str(s)))} ({spread(found.seconds[str(s)], as_time)})"
            if s in own
            else ""
            for s in sizes
        ]
        medians = [found.median(str(s)) for s in own]
        slope = f"{exponent(own, medians):.2f}" if len(own) > 1 else ""
        rows.append([what, *cells, slope])
    print(f"\n{title}\n")
    print(table(["cost", *(f"{size:,}" for size in sizes), "exponent"], rows))


def fixmatch(data: Data, args: argparse.Namespace, batch: int) -> Steps:
    """Joint steps in the precision that was asked for."""
    settings = {"batch": batch, "mu": 2}
    how = Execution(args.precision)
    return steps_of("fixmatch", data, network(args.network, data), settings, how)


def by_batch(args: argparse.Namespace) -> None:
    """Labeled images a step, with two unlabeled ones for each."""
    data = make_data()
    arms = {str(b): fixmatch(data, args, b) for b in args.batches}
    print_growth("B, labeled images a step", args.batches, {"step": alternate(arms, args.rounds)})


def by_size(args: argparse.Namespace) -> None:
    """Pixels of a side: four times the work for twice the side."""
    arms = {
        str(s): fixmatch(make_data(Sizes(size=s, labeled=30, unlabeled=60)), args, 8)
        for s in args.sizes
    }
    title = "pixels of a side, B = 8"
    print_growth(title, args.sizes, {"step": alternate(arms, args.rounds)})


def by_classes(args: argparse.Namespace) -> None:
    """Classes: the step's last layer, and the matrices of a re-estimation."""
    steps, estimations = {}, {}
    for k in args.classes:
        sizes = Sizes(num_classes=k, size=8, labeled=4, unlabeled=4, rho=1, validation=2, test=1)
        steps[str(k)] = fixmatch(make_data(sizes), args, 16)
        estimations[str(k)] = estimation(k, args.pool_of_classes)
    found = {
        "step": alternate(steps, args.rounds),
        f"re-estimation, pool of {args.pool_of_classes:,}": alternate(estimations, args.rounds),
    }
    print_growth("classes, images of 8 px", args.classes, found)


def estimation(num_classes: int, pool: int, device: str = "cpu") -> Callable[[], object]:
    """What SelMix does with predictions, without the pass that makes them."""
    names = tuple(str(k) for k in range(num_classes))
    counts = torch.full((num_classes,), 10.0, dtype=torch.float64)
    held = 5 * num_classes
    task = Task(names, counts, num_unlabeled=pool, num_validation=held)
    kind = load("selmix")[1]
    net = models.Classifier(nn.Identity(), nn.Linear(FEATURES, num_classes))
    algorithm = kind(net, task, kind.Config()).to(device)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(held, FEATURES, generator=generator).to(device)
    with torch.no_grad():
        logits = net.classifier(features)
    labels = torch.arange(num_classes, device=device).repeat(5)
    pool_logits = torch.randn(pool, num_classes, generator=generator).to(device)
    evaluation = Evaluation(features, logits, labels, pool_logits)
    return lambda: algorithm.on_validation(evaluation, Context(0, 500, algorithm, 3e-4))


def by_pool(args: argparse.Namespace) -> None:
    """Images of the unlabeled pool."""
    source = large_source(tiled_pool(max(args.pools), 32))
    split = large_split(max(args.pools)).draw(source.train_labels, 10, seed=0)
    data = assemble(source, split, 0, torch.device("cpu"))[0].at_stage("1-benchmark")
    net = cheap_net(3, 32, 10)
    arms: dict[str, dict[str, Callable[[], object]]] = {
        what: {} for what in ("step", "re-estimation", "pass", "pairs", "images' SHA-256")
    }
    for count in args.pools:
        part, name = replace(data, unlabeled=data.unlabeled[: count - 600]), str(count)
        arms["step"][name] = fixmatch(part, args, 16)
        arms["re-estimation"][name] = estimation(10, len(part.unlabeled))
        arms["pass"][name] = pass_over(part, net)
        arms["pairs"][name] = pairs_of(part)
        arms["images' SHA-256"][name] = replace(source, train=source.train[:count]).sha256
    long = ("pass", "images' SHA-256")  # which need no warming up
    found = {
        what: alternate(calls, args.rounds, warm=int(what not in long))
        for what, calls in arms.items()
    }
    print_growth("images of the pool, 32 px, 10 classes", args.pools, found)


def pass_over(data: Data, net: models.Classifier) -> Callable[[], object]:
    """Predictions for validation images and pool."""
    kind = load("selmix")[1]
    algorithm = kind(net, data.task, kind.Config())
    return lambda: engine.evaluate(algorithm, data, pool=True)


def pairs_of(data: Data) -> Callable[[], object]:
    """The pair sampler built anew, and its first draw."""
    pseudo_labels = torch.arange(len(data.unlabeled)) % 10
    pairs = torch.rand(10, 10, dtype=torch.float64)

    def build() -> None:
        sampler = ClassPairSampler(data.labels, pseudo_labels, 10)
        sampler.refresh(pairs)
        sampler.draw(64, torch.Generator().manual_seed(0))

    return build


_job: dict[str, Steps] = {}  # of a worker process


def _begin(args: argparse.Namespace, rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    if size > 1:  # as torchrun does it
        place = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()})
        torch.distributed.init_process_group("gloo")
    _job["steps"] = fixmatch(make_data(), args, 16)


def _turn(threads: int, steps: int) -> None:
    torch.set_num_threads(threads)
    for _ in range(steps):
        _job["steps"]()


def workers(args: argparse.Namespace, number: int, *, sharing: bool) -> list[ProcessPoolExecutor]:
    """Processes with a job of their own each, or one that they share."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    size = number if sharing else 1
    context = get_context("spawn")
    return [
        ProcessPoolExecutor(1, context, _begin, (args, rank, size, port)) for rank in range(number)
    ]


def by_processes(args: argparse.Namespace) -> None:
    """Jobs beside each other, as a sweep runs them, and processes that share every batch."""
    most = max(args.processes)
    alone = workers(args, most, sharing=False)
    together = workers(args, most, sharing=True) if most > 1 else []

    def arm(members: Sequence[ProcessPoolExecutor], threads: int) -> Callable[[], object]:
        def run() -> None:
            for one in [member.submit(_turn, threads, args.steps) for member in members]:
                one.result()

        return run

    arms = {f"{n} × 1 thread": arm(alone[:n], 1) for n in args.processes}
    jobs = {f"{n} × 1 thread": n for n in args.processes}
    if most > 1:
        arms[f"1 × {most} threads"] = arm(alone[:1], most)
        arms[f"{most} × 1 thread, one job (torchrun)"] = arm(together, 1)
    times = alternate(arms, args.rounds)
    for worker in (*alone, *together):
        worker.shutdown()
    rows = []
    for name in arms:
        rates = sorted(jobs.get(name, 1) * args.steps / s for s in times.seconds[name])
        gains = [jobs.get(name, 1) / ratio for ratio in times.ratios(name, next(iter(arms)))]
        gain = f"{statistics.median(gains):.2f} ({spread(gains)})"
        rows.append([name, digits(statistics.median(rates)), spread(rates), gain])
    print("\nprocesses that take FixMatch steps, B = 16\n")
    print(table(["processes", "steps/s of all", "range", "first = 1"], rows))


WORK: dict[str, Callable[[argparse.Namespace], None]] = {
    "batch": by_batch,
    "size": by_size,
    "classes": by_classes,
    "pool": by_pool,
    "processes": by_processes,
    "memory": lambda args: memory.show(args.largest_pool),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print a table for each part."""
    parser = parser_of(__doc__)
    threads_argument(parser)
    several: dict[str, Any] = {"type": positive, "nargs": "+"}
    add = parser.add_argument
    add("--parts", nargs="+", default=list(WORK), choices=list(WORK))
    add("--network", default="wrn-10-2")
    add("--precision", default="fp32")
    add("--batches", default=[16, 32, 64, 128], **several)
    add("--sizes", default=[16, 32, 64, 128], **several)
    add("--classes", default=[10, 100, 1000], **several)
    add("--pool-of-classes", type=positive, default=10_000, help="images, for --classes")
    add("--pools", default=[10_000, 100_000, 1_000_000], help="images", **several)
    add("--processes", default=[1, 2], help="jobs at the same time", **several)
    add("--steps", type=positive, default=4, help="of a job in a round")
    add("--largest-pool", type=positive, default=1_000_000, help="images, for memory")
    args = parser.parse_args(argv)
    set_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.network}, {args.precision}")
    print(about(rounds=args.rounds, threads=torch.get_num_threads()))
    for part in args.parts:
        WORK[part](args)


if __name__ == "__main__":
    main()
