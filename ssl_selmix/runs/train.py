"""Runs `--algo A --then B --then C`: one directory, one split, each stage starts from the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm, Task
from ssl_selmix.common import config, processes
from ssl_selmix.common.console import console
from ssl_selmix.common.processes import World
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data import Data
from ssl_selmix.models import batch_norm, classifier, execution, weights
from ssl_selmix.models.execution import Execution
from ssl_selmix.runs import load, summary
from ssl_selmix.runs.folder import (
    check_resumed,
    open_directory,
    results_so_far,
    write_json,
    write_setup,
)
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import engine, machine
from ssl_selmix.training.log import SilentLog, StageLog


def run(request: Request) -> dict[str, Any]:
    """Train all stages and return what results.json holds.

    Raises:
        ValueError: a mistake in the request, its data or its directory.
        OSError: a file could not be written.
        engine.NonFiniteLoss: training diverged.
    """
    plan = Plan(request)
    with processes.joined(plan.device) as world:
        return _run(plan, world)


def _run(plan: Plan, world: World | None) -> dict[str, Any]:
    request, out, writes = plan.request, console(), world is None or world.rank == 0
    previous = processes.from_first(lambda: open_directory(plan), world)
    _announce(plan, out)
    inputs = load_data(plan)
    loaded = inputs.data
    alike = plan.fingerprint(len(plan.stages) - 1, inputs.sha256)
    if not processes.same_everywhere(alike, world):
        raise ValueError(
            "the processes see different images, splits, settings or code; give all of them the "
            "same files and the same command, and set precision if their machines differ"
        )
    for note in load.check_origin(
        plan.request.init,
        plan.config["model"].name,
        plan.run.precision,
        inputs.split,
        inputs.images_sha256,
    ):
        out.print(f"  --init: {note}", highlight=False, markup=False)
    # A mistake in the last stage must not cost the stages before it.
    parts = range(len(plan.stages))
    planned = [build(plan, i, loaded.task, loaded.image_shape[0], None) for i in parts]
    _check_batches(planned)
    _set_threads(plan, planned, loaded, out)
    if previous is not None:
        processes.from_first(lambda: check_resumed(plan, inputs.sha256, out), world)
    else:
        processes.from_first(lambda: write_setup(plan, inputs), world)
    results = processes.from_first(lambda: results_so_far(plan, inputs), world)
    net = _start(plan, inputs, results, out) if plan.request.init else None
    for index, stage in enumerate(plan.stages):
        algorithm = build(plan, index, loaded.task, loaded.image_shape[0], net)
        execution.placed(algorithm, plan.device)
        stage_data = loaded.at_stage(stage)
        images = algorithm.images_per_step
        folder, names, drawn = plan.out / stage, loaded.class_names, plan.run.pictures
        log = StageLog(folder, stage, names, out, images, pictures=drawn) if writes else SilentLog()
        fitted = engine.fit(
            algorithm,
            stage_data,
            plan.out / stage,
            log,
            plan.fingerprint(index, inputs.sha256),
            resume=request.resume,
            diagnostics=inputs.diagnostics,
            measure_last=index >= len(results["stages"]),
        )
        net = fitted.algorithm.export().requires_grad_(True)
        if index >= len(results["stages"]):
            name = plan.algorithms[index][0]
            measured = _measure(name, fitted, stage_data)
            # By the section's own keys, so that results say what ran without config.yaml.
            results["stages"].append(measured | {"settings": plan.plain[name]})
            results["protocol"] = _protocol(plan, inputs, fitted.algorithm.net)
            if writes:
                load.save(net, plan.out / stage, plan.fingerprint(index, inputs.sha256))
                write_json(plan.out / "results.json", results)
    summary.show(results, loaded.class_names, out)
    memory = machine.peak_memory(plan.device)
    held = ", ".join(f"{size / 2**30:.2f} GiB ({what})" for what, size in memory.items())
    out.print(f"peak memory: {held or 'unknown'}", highlight=False, markup=False)
    out.print(f"results: {plan.out / 'results.json'}", highlight=False, markup=False)
    return results


def _check_batches(algorithms: Sequence[Algorithm]) -> None:
    """Every process must pass as many images, or their gradients would count differently."""
    world = processes.world()
    for algorithm in algorithms if world else ():
        assert world is not None
        if algorithm.config.batch % world.size:
            raise ValueError(
                f"batch={algorithm.config.batch} cannot be shared by {world.size} processes; make "
                "it a multiple of their number"
            )


def _set_threads(plan: Plan, algorithms: Sequence[Algorithm], loaded: Data, out: Console) -> None:
    """The threads that were asked for, or as many as the largest step can use; says which."""
    world = processes.world()
    images = max(algorithm.images_per_step for algorithm in algorithms)
    images //= world.size if world else 1
    shape = loaded.image_shape
    try:
        flops = machine.flops_per_step(algorithms[0].net, shape, images)
    except Exception as error:  # whatever the network says of images that it was not made for
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise ValueError(
            f"model.name={plan.config['model'].name} cannot take images of "
            f"{'×'.join(map(str, shape))} ({reason}); choose another network, or data.size where "
            "the data set has it"
        ) from error
    threads = machine.use_threads(plan.run.threads or machine.threads_for(flops))
    why = "as asked" if plan.run.threads else f"for {flops / 1e9:.3g} GFLOP a step"
    plural = "s" if threads > 1 else ""
    text = f"  machine: {plan.device}, {threads} thread{plural} ({why}), {plan.run.precision}"
    out.print(text, highlight=False, markup=False)
    for (name, _), algorithm in zip(plan.algorithms, algorithms, strict=True):
        how = plan.config["views"].name
        if how not in algorithm.forwards:
            split = "split" in algorithm.forwards
            then = (
                "needs all strong views: views.lazy means views.split"
                if split
                else (f"has no views to treat otherwise: views.{how} changes nothing in it")
            )
            out.print(f"  {name} {then}", highlight=False, markup=False)
    if plan.run.sync_batch_norm and world is None:
        out.print("  sync_batch_norm has no effect in one process", highlight=False, markup=False)


def build(
    plan: Plan, stage: int, task: Task, channels: int, net: models.Classifier | None
) -> Algorithm:
    """The algorithm of a stage, on the given network or on a new one."""
    name, kind = plan.algorithms[stage]
    torch.manual_seed(seed_of(plan.run.seed, plan.stages[stage], "init"))
    if net is None:
        net = models.build(plan.config["model"], task.num_classes, channels)
    how, run = plan.config["views"].name, plan.run
    net.prepared(Execution(run.precision, how, processes.world(), run.compile))
    if plan.run.sync_batch_norm and processes.world():
        batch_norm.share_batch_norms(net, plan.device)
    return kind(net, task, plan.config[name])


def _announce(plan: Plan, out: Console) -> None:
    out.print(f"run {plan.out}", highlight=False, markup=False)
    for source, settings in plan.layers:
        if settings:
            text = " ".join(f"{key}={value}" for key, value in settings.items())
            out.print(f"  {source}: {text}", highlight=False, markup=False)


def _measure(name: str, fitted: engine.Fitted, loaded: Data) -> dict[str, Any]:
    algorithm = fitted.algorithm
    found = {
        "algorithm": name,
        "steps": fitted.last_step,
        "kept_step": fitted.step,
        "seconds": round(fitted.seconds, 2),
        "head": algorithm.head_name,
        **engine.measure_all(algorithm, loaded),
    }
    return found | ({"last": fitted.last} if fitted.last else {})


def _start(plan: Plan, inputs: Inputs, results: dict[str, Any], out: Console) -> models.Classifier:
    """The network with the weights of --init, which the results begin with."""
    task, channels = inputs.data.task, inputs.data.image_shape[0]
    torch.manual_seed(seed_of(plan.run.seed, "init"))
    net = models.build(plan.config["model"], task.num_classes, channels)
    for note in weights.load_into(net, plan.init):
        out.print(f"  --init: {note}", highlight=False, markup=False)
    # As the stages compute: in another number format or layout the same weights have other figures.
    net.prepared(Execution(plan.run.precision), inputs.data.device)
    given = Algorithm(net, task, Algorithm.Config())
    results["start"] = _measure("start", engine.Fitted(given, 0, 0, 0.0), inputs.data)
    return net


def _protocol(plan: Plan, inputs: Inputs, net: models.Classifier) -> dict[str, Any]:
    """What must agree before two results may be compared."""
    held = "the data set's validation images" if "apart" in inputs.extra else "the training images"
    keep = {name: plan.config[name].keep for name, _ in plan.algorithms}
    return {
        "network": plan.config["model"].name,
        "parameters": classifier.num_parameters(net),
        "split": config.deciding(plan.plain)["data"],
        "largest": "N1 and M1 count the images of the largest class",
        "checkpoint_rule": keep,
        "validation": f"held out of {held}, labeled",
        "steps": [plan.config[name].steps for name, _ in plan.algorithms],
        "precision": plan.run.precision,
        "step": plan.config["views"].name,
        **_shared(plan),
    }


def _shared(plan: Plan) -> dict[str, Any]:
    """How several processes shared the batches."""
    world, synced = processes.world(), plan.run.sync_batch_norm
    return {"processes": world.size, "sync_batch_norm": synced} if world else {}
