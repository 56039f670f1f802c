"""Runs of a study that no sweep describes: in processes of their own, or from given weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def train(out: Path, algorithms: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Run `ssl-selmix train` in a process of its own; finished runs are only read."""
    # The run that stops after the first stage has no settings of the second.
    settings = [s for s in settings if "selmix" in algorithms or not s.startswith("selmix.")]
    if not (out / "done").exists():
        stages = ["--algo", algorithms[0]]
        for name in algorithms[1:]:
            stages += ["--then", name]
        command = [sys.executable, "-m", "ssl_selmix.cli", *stages, "--out", str(out), "--resume"]
        done = subprocess.run([*command, *settings], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        (out / "done").touch()
    return dict(json.loads((out / "results.json").read_text()))


def second_stage(
    start: Path, out: Path, algorithms: Sequence[str], settings: Sequence[str]
) -> list[dict[str, Any]]:
    """The stages of a run whose first stage is taken over from the run `start`."""
    first = f"1-{algorithms[0]}"
    if not (out / first).exists():
        # A stage with the same configuration and images is restored, not trained again.
        shutil.copytree(start / first, out / first)
    return list(train(out, algorithms, settings)["stages"])


def parallel(work: Callable[[T], R], items: Iterable[T], jobs: int) -> list[R]:
    """Results in order; the work runs in processes of its own."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, items))
