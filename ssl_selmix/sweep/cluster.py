"""A sweep on many machines: its chains as tasks of Ray, or as a job array of SLURM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ssl_selmix.sweep.processes import (
    FAILED,
    GRACE,
    Children,
    Job,
    Outcome,
    Tell,
    ended_like_interrupted,
    work,
)
from ssl_selmix.sweep.runs import Sweep


def by_ray(jobs: Sequence[Job], threads: int, on_gpu: bool, tell: Tell) -> list[Outcome]:
    """Work on the chains as tasks of Ray, on its cluster or else on this machine.

    Raises:
        ValueError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = import_module("ray")
        start = ray.init  # a mere folder of that name imports too
    except (ImportError, AttributeError) as error:
        raise ValueError("--engine ray needs Ray; pip install 'ssl_selmix[ray]'") from error
    start(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    gpus = 1 if on_gpu and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=threads or 1, num_gpus=gpus)(_ray_task)
    waiting = {task.remote(job, os.getcwd()): job for job in jobs}
    outcomes: list[Outcome] = []
    try:
        with ended_like_interrupted():  # after `init`, which has signal handlers of its own
            while waiting:
                # A limit, for a wait without one looks for signals every ten seconds only.
                for ended in ray.wait(list(waiting), timeout=1)[0]:
                    found = _result(ray, ended, waiting.pop(ended))
                    for outcome in found:
                        tell(outcome)
                    outcomes += found
    finally:
        for left in waiting:
            ray.cancel(left)  # raises KeyboardInterrupt in it, which ends its process
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE)
        ray.shutdown()
    return outcomes


def _result(ray: Any, ended: Any, job: Job) -> list[Outcome]:
    try:
        return list(ray.get(ended))
    except ray.exceptions.RayError as error:
        said = f"Ray: {' '.join(str(error).split())[-200:]}"
        return [Outcome(run, FAILED, said) for run in job.runs]


def _ray_task(job: Job, folder: str) -> list[Outcome]:
    os.chdir(folder)  # paths are relative to where the sweep was started
    # Ray cancels by SIGINT, which a sweep that was started in the background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work(job, Children(), dict(os.environ), lambda outcome: None)


def slurm_script(
    sweep: Sweep, again: Sequence[str], indices: Sequence[int], threads: int, limit: int | None
) -> str:
    """A job array with a task per chain, so that a second stage finds what it starts from."""
    out = sweep.spec.out.resolve()
    options = {
        "job-name": re.sub(r"\W+", "-", Path(sweep.spec.origin).stem),
        "cpus-per-task": str(threads or 1),
        **{key: shlex.quote(value) for key, value in sweep.spec.slurm.items()},
        "array": ranges(indices) + (f"%{limit}" if limit else ""),
        "output": shlex.quote(str(out / "slurm-%A_%a.txt")),
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items()]
    # By name: while a job waits, the file may get chains that move the numbers of others.
    chains = [f"  [{i}]={shlex.quote(sweep.names[i])}" for i in indices]
    command = shlex.join([sys.executable, "-m", "ssl_selmix.cli", "sweep", *again])
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "# Written by ssl-selmix sweep. A task works on one chain: a run and what starts from",
            "# it. What is finished is skipped, so that the array may be submitted again.",
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            "chains=(",
            *chains,
            ")",
            f'exec {command} --only "${{chains[$SLURM_ARRAY_TASK_ID]}}"',
            "",
        ]
    )


def ranges(indices: Sequence[int]) -> str:
    """Rising numbers as SLURM writes them.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][-1] == index - 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
