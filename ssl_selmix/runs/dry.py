"""`train --dry-run`: what a run would be, and about how long it would take; writes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from ssl_selmix.algorithm import Algorithm, Context
from ssl_selmix.common.console import console
from ssl_selmix.data import Data
from ssl_selmix.models import execution
from ssl_selmix.runs import refused, train
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import engine, machine
from ssl_selmix.training.log import SilentLog

STEPS = 6  # that are taken to measure; the first one does not count
SHOWN = 12  # classes whose counts are printed


def run(request: Request) -> None:
    """Print the plan, images, steps, and estimates of time and memory; train six steps a stage.

    Raises:
        ValueError: a mistake in the request or its data.
    """
    plan, out = Plan(request), console()
    if plan.cached:
        raise ValueError(
            "--dry-run writes nothing, and features=cached would write features first; add "
            "features=none to look at the run on images"
        )
    refused.without_weights(plan)
    machine.use_repeatable_kernels()
    train.announce(plan, out)
    inputs = load_data(plan)
    planned = train.planned(plan, inputs, out)
    _show_images(inputs, out)
    whole = 0.0
    for index, algorithm in enumerate(planned):
        stage = inputs.data.at_stage(plan.stages[index])
        whole += _show_stage(plan.stages[index], plan, algorithm, stage, out)
    memory = machine.peak_memory(plan.device)
    held = ", ".join(f"{size / 2**30:.2f} GiB ({what})" for what, size in memory.items())
    _say(out, f"together about {_time(whole)}; memory so far {held or 'unknown'}")
    taken = plan.out.exists() and any(plan.out.iterdir())
    why = "which exists: add --resume to continue it, or --out DIR" if taken else "which is free"
    _say(out, f"nothing was written; the run's folder would be {plan.out}, {why}")


def _show_images(inputs: Inputs, out: Console) -> None:
    data = inputs.data
    shape = "×".join(map(str, data.image_shape))
    _say(out, f"images {shape}, {len(data.class_names)} classes")
    counts = {part: inputs.split.counts[part] for part in ("labeled", "unlabeled")} | inputs.counts
    totals = {"unlabeled": len(data.unlabeled)}
    for part, found in counts.items():
        more = " ..." if len(found) > SHOWN else ""
        of_class = " ".join(map(str, found[:SHOWN])) + more
        known = f" ({of_class})" if any(found) else " of unknown classes"
        _say(out, f"  {part:10}  {totals.get(part, sum(found)):7}{known}")


def _show_stage(name: str, plan: Plan, algorithm: Algorithm, data: Data, out: Console) -> float:
    """Tell of a stage; about how many seconds it takes."""
    config = algorithm.config
    if not algorithm.trains:
        _say(out, f"{name}: no step")
        return 0.0
    execution.placed(algorithm, plan.device)
    step, validation = _measured(algorithm, data)
    validations = 1 + -(-config.steps // config.evaluate_every)
    seconds = config.steps * step + validations * validation
    _say(
        out,
        f"{name}: {config.steps} steps of {algorithm.images_per_step} images, {step:.3g} s each; "
        f"a validation every {config.evaluate_every} steps, {validation:.3g} s each: "
        f"about {_time(seconds)}",
    )
    return seconds


def _measured(algorithm: Algorithm, data: Data) -> tuple[float, float]:
    """Seconds of a step and of a validation."""
    since = time.perf_counter()
    engine.evaluate(algorithm, data, pool=algorithm.needs_pool(0))
    validation = time.perf_counter() - since
    # The same steps as those of the run, but for their number.
    algorithm.config = dataclasses.replace(
        algorithm.config, steps=STEPS, evaluate_every=STEPS, keep="last"
    )
    after_step, ends = algorithm.after_step, list[float]()

    def note(ctx: Context) -> None:
        after_step(ctx)
        ends.append(time.perf_counter())

    algorithm.after_step = note  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        engine.fit(algorithm, data, Path(folder), SilentLog(), "dry")
    gaps = [late - early for early, late in itertools.pairwise(ends)]
    return statistics.median(gaps), validation


def _time(seconds: float) -> str:
    """Seconds as 3h50m, 45m or 90s.

    >>> [_time(s) for s in (3.2, 200, 13800, 200000)]
    ['3s', '3m', '3h50m', '55h33m']
    """
    if seconds < 120:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m"


def _say(out: Console, text: str) -> None:
    out.print(text, highlight=False, markup=False)
