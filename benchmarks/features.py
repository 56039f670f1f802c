"""What runs on features cost: the extraction, whole runs, a SelMix step, memory with many classes.

    OMP_NUM_THREADS=2 python -m benchmarks.features
    OMP_NUM_THREADS=2 python -m benchmarks.features --large

Extraction is compared with the network alone, which passes ready-made inputs of the same images and
views; both take turns. Runs are whole commands on 50,000 × 768 features of 10 Gaussian classes,
start-up included, their processor time beside the wall clock. The second command adds 1,000 classes
and 200,000 images; its memory is what the process holds beside mapped files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.synthetic import Sizes, make_data, source, steps_of
from benchmarks.timing import (
    Target,
    Times,
    about,
    alternate,
    as_time,
    parser_of,
    positive,
    spread,
    table,
    targets_table,
    times_row,
)
from ssl_selmix import models
from ssl_selmix.common.console import tell
from ssl_selmix.data import extraction
from ssl_selmix.data.extraction import Features
from ssl_selmix.models.classifier import Classifier

VIEWS = {"weak": 2, "strong": 4}
CPU = torch.device("cpu")
SMALL = [*("--dataset", "features", "pictures=false", "precision=fp32")]


def extraction_times(args: argparse.Namespace, place: Path) -> Times:
    """The body on ready inputs, and the features of the same images and views into a folder."""
    torch.manual_seed(0)
    config = models.Config(args.network, tune="head", size=args.size)
    net = models.build(config, 10, 3).prepared(models.Classifier(None, None).execution)  # type: ignore[arg-type]
    net.eval().requires_grad_(False)
    images = source(np.arange(args.images) % 10, 10, 32)
    at_once = extraction.AT_ONCE[0]
    parts = extraction.parts_of(images, CPU, VIEWS)
    inputs: list[Tensor] = list(parts[0].pool.plain(parts[0].index[:at_once], at_once))
    passes = (1 + sum(VIEWS.values())) * args.images // len(inputs[0])

    def alone() -> None:
        with torch.inference_mode():
            for _ in range(passes):
                net.embed(inputs[0])

    count = [0]

    def extracted() -> None:
        count[0] += 1
        how: dict[str, Any] = {"dtype": "float16"}
        features = Features(place / str(count[0]), extraction.parts_of(images, CPU, VIEWS), how)
        features.make(net.embed, at_once=at_once)

    return alternate({"network alone": alone, "extraction": extracted}, args.rounds)


def step_times(args: argparse.Namespace) -> Times:
    """Steps of SelMix on features, and through the network."""
    data = make_data(Sizes())
    torch.manual_seed(0)
    net = models.build(models.Config(args.network, size=args.size), 10, 3)
    through = steps_of("selmix", data, net, {})
    top = Classifier(torch.nn.Identity(), torch.nn.Linear(args.dimension, 10))
    features = gaussian_data(args.dimension)
    on_features = steps_of("selmix", features, top, {})
    many = 20  # of which the mean counts: one alone is as short as the clock's unrest

    def steps() -> None:
        for _ in range(many):
            on_features()

    found = alternate({"step through the network": through, "steps": steps}, args.rounds)
    seconds = {name: list(values) for name, values in found.seconds.items()}
    seconds["step on features"] = [value / many for value in seconds.pop("steps")]
    return Times(seconds)


def gaussian_data(dimension: int) -> Any:
    """A long-tailed problem of features in memory, as algorithms see it."""
    from ssl_selmix.data import assemble
    from ssl_selmix.data.features import FeatureSet, Rows
    from ssl_selmix.splits import Counts, LongTailSplit

    labels = np.arange(10).repeat(1200)
    rows = torch.from_numpy(points(labels, dimension, seed=0))
    found = FeatureSet(Rows(rows), labels, tuple(map(str, range(10))))
    rule = LongTailSplit(Counts(300, rho=10), Counts(600, rho=10), validation=20, test=10)
    return assemble(found, rule.draw(labels, 10, 0), 0, CPU)[0].at_stage("1-benchmark")


def points(labels: np.ndarray, dimension: int, seed: int) -> np.ndarray:
    """A Gaussian around the mean of each class, N×D float16."""
    means = np.random.default_rng(0).normal(size=(labels.max() + 1, dimension), scale=0.15)
    noise = np.random.default_rng(seed).standard_normal((len(labels), dimension), np.float32)
    found: np.ndarray = (noise + means[labels]).astype(np.float16)
    return found


def write(place: Path, num: int, classes: int, dimension: int) -> Path:
    """A folder of features with their views, as `ssl-selmix features` makes one."""
    place.mkdir()
    for part, images, views in (("train", num, VIEWS), ("test", num // 5, {})):
        labels = np.arange(images) % classes
        np.save(place / f"{part}_labels.npy", labels)
        np.save(place / f"{part}.npy", points(labels, dimension, seed=1))
        for name, count in views.items():
            shape = (images, count, dimension)
            drawn = np.lib.format.open_memmap(place / f"{part}_{name}.npy", "w+", "float16", shape)
            for view in range(count):
                drawn[:, view] = points(labels, dimension, seed=2 + view)
    return place


def run(*words: str) -> tuple[float, int]:
    """Seconds of a command, and the most bytes that it held beside files."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "ssl_selmix", "train", *words]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        own = 0
        while process.poll() is None:
            own = max(own, _own_memory(process.pid))
            time.sleep(0.05)
        wall = time.perf_counter() - start
        if process.returncode:
            out.seek(0)
            raise SystemExit(out.read().decode()[-2000:])
    return wall, own


def _own_memory(pid: int) -> int:
    """Bytes that no file stands behind (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(v.split()[1]) * 1024 for v in lines if v.startswith(("RssAnon", "RssShmem")))


SPLIT = ["data.labeled.largest=1500", "data.labeled.rho=100", "data.unlabeled.largest=3000"]
RUNS = {
    "supervised 2,000 steps, posthoc, selmix 500 steps": [
        *("--algo", "supervised", "--then", "posthoc", "--then", "selmix"),
        *("supervised.steps={steps}", "selmix.steps={fewer}", *SPLIT, "data.validation=500"),
    ],
    "fixmatch 2,000 steps of 64 × (1 + 2 mu)": [
        *("--algo", "fixmatch", "fixmatch.steps={steps}", "fixmatch.batch=64", *SPLIT),
        "data.validation=500",
    ],
}
LARGE = [
    *("--algo", "supervised", "--then", "posthoc", "--then", "selmix", "supervised.steps=2000"),
    *("selmix.steps=500", "data.labeled.largest=100", "data.labeled.rho=10"),
    *("data.unlabeled.largest=80", "data.unlabeled.rho=10", "data.validation=10"),
]


def run_rows(args: argparse.Namespace, place: Path) -> list[list[str]]:
    """Whole runs: median and range by the wall clock, processor time, bound."""
    folder = write(place / "small", args.features, 10, args.dimension)
    rows: list[list[str]] = []
    for name, command in RUNS.items():
        words = [w.format(steps=args.steps, fewer=args.steps // 4) for w in command]
        walls, works, owns = [], [], []
        for index in range(args.rounds):
            before = os.times()
            out = place / f"{len(rows)}-{index}"
            wall, own = run(*words, *SMALL, f"data.root={folder}", "--out", str(out), *args.more)
            after = os.times()
            walls.append(wall)
            works.append(sum(after[2:4]) - sum(before[2:4]))  # of children
            owns.append(own)
            tell(f"{name}: {wall:.1f} s")
        median = statistics.median(walls)
        rows.append(
            [
                *(name, as_time(median), spread(walls, as_time)),
                *(as_time(statistics.median(works)), "60 s", "yes" if median < 60 else "no"),
                f"{max(owns) / 1e9:.2f} GB",
            ]
        )
    return rows


def large_row(args: argparse.Namespace, place: Path) -> list[str]:
    """One run with many classes."""
    folder = write(place / "large", args.large, args.classes, args.dimension)
    wall, own = run(*LARGE, *SMALL, f"data.root={folder}", "--out", str(place / "l"), *args.more)
    name = f"{args.large} images, {args.classes} classes: supervised, posthoc, selmix"
    return [
        name,
        as_time(wall),
        "",
        "",
        "2 GB",
        "yes" if own < 2e9 else "no",
        f"{own / 1e9:.2f} GB",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the tables as Markdown."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--network", default="timm:tf_efficientnet_lite0", help="that is extracted with")
    add("--size", type=positive, default=96, help="pixels that it takes (96)")
    add("--images", type=positive, default=256, help="of an extraction (256)")
    add("--features", type=positive, default=50_000, help="images of a run (50,000)")
    add("--dimension", type=positive, default=768, help="of the features (768)")
    add(
        "--large", type=positive, nargs="?", const=200_000, help="images of 1,000 classes (200,000)"
    )
    add("--steps", type=positive, default=2000, help="of first stages; four times SelMix's (2,000)")
    add("--classes", type=positive, default=1000, help="of the large run (1,000)")
    add("more", nargs="*", metavar="key=value", help="settings of the runs")
    args = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        times = extraction_times(args, place)
        steps = step_times(args)
        rows = run_rows(args, place)
        rows += [large_row(args, place)] if args.large else []
    both = Times({**times.seconds, **steps.seconds})
    head = ["arm", "median", "range", "of the baseline"]
    print(
        table(
            head,
            [
                *(times_row(times, arm, "network alone") for arm in times.seconds),
                *(times_row(steps, arm, "step through the network") for arm in steps.seconds),
            ],
        )
    )
    print()
    print(
        targets_table(
            both,
            [
                Target(
                    *("network alone / extraction", "network alone", "extraction", 0.9),
                    at_least=True,
                ),
                Target(
                    "step through the network / on features",
                    *("step through the network", "step on features", 100.0),
                    at_least=True,
                ),
            ],
        )
    )
    print()
    print(table(["run", "wall", "range", "processor", "bound", "met", "own memory at most"], rows))
    print(f"\n{about(rounds=args.rounds)}")


if __name__ == "__main__":
    main()
