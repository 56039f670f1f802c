"""What a run holds in memory beside its pool, part by part; called by benchmarks/scaling.py."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.synthetic import Steps, cheap_net, large_source, large_split, tiled_pool
from benchmarks.timing import apart, forget_peak, peak, resident, table
from ssl_selmix import algorithm
from ssl_selmix.common import config
from ssl_selmix.data import assemble, manifest
from ssl_selmix.models.execution import Execution

TARGET = 0.2  # of the pool


def memory_of_run(count: int, size: int) -> list[tuple[str, int, int]]:
    """Bytes above the pool at the end of each part of a run, and at most within it.

    Runs in a process of its own; what is imported counts as there before.
    """
    torch.set_num_threads(1)
    found: list[tuple[str, int, int]] = []
    images = tiled_pool(count, size)
    gc.collect()
    before = resident()

    def note(what: str) -> None:
        found.append((what, resident() - before, max(0, peak() - before)))
        forget_peak()

    forget_peak()
    source = large_source(images)
    digest = source.sha256()
    note("SHA-256 of the images")
    split = large_split(count).draw(source.train_labels, 10, seed=0)
    with TemporaryDirectory() as folder:
        config.fingerprint(manifest.content(split, digest))
        manifest.save(split, Path(folder) / "manifest.json", digest)
    note("split and manifest")
    data = assemble(source, split, 0, torch.device("cpu"))[0].at_stage("1-benchmark")
    note("pool assembled")
    net = cheap_net(3, size, 10)
    steps = Steps(algorithm.load("fixmatch")[1], {"batch": 64, "mu": 7}, data, net, Execution())
    for _ in range(3):
        steps()
    note("steps, B = 64, mu = 7, but for a network's activations")
    stage = Steps(algorithm.load("selmix")[1], {"batch": 64}, data, net, Execution())
    stage.validate()
    note("re-estimation with a pass over the pool")
    stage()
    note("a SelMix step")
    return found


def show(count: int, size: int = 32) -> None:
    """Measure in a fresh process and print the table and the verdict."""
    pool = count * 3 * size * size
    found = apart(memory_of_run, count, size)
    rows = [
        [what, *(f"{value / 1e6:,.0f} MB ({value / pool:.1%})" for value in (held, most))]
        for what, held, most in found
    ]
    print(f"\nmemory beside a pool of {count:,} images of {size} px, {pool / 1e9:.2f} GB\n")
    print(table(["part of a run", "held after it", "most within it"], rows))
    worst = max(most for _, _, most in found) / pool
    verdict = "met" if worst <= TARGET else "missed"
    print(f"\npeak: {1 + worst:.2f} times the pool; at most {1 + TARGET:.2f} is the aim: {verdict}")
