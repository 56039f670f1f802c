"""Runs `--algo A --then B --then C`: one directory, one split, each stage starts from the last."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from rich.console import Console

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm, Task
from ssl_selmix.common import advice, config, processes
from ssl_selmix.common.console import console
from ssl_selmix.common.processes import World
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.common.stopping import Stop
from ssl_selmix.data import Data
from ssl_selmix.data.workers import WorkerDied
from ssl_selmix.models import batch_norm, classifier, execution, heads
from ssl_selmix.models.backbones import without_body
from ssl_selmix.models.execution import Execution
from ssl_selmix.models.weights import load_into
from ssl_selmix.runs import load, refused, summary, suspects, weights
from ssl_selmix.runs.folder import RESULTS, RunError
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.runs.record import Record
from ssl_selmix.runs.results import Protocol, Stage, StartedFrom, checked
from ssl_selmix.training import checkpoint, engine, machine


def run(request: Request) -> dict[str, Any]:
    """Train all stages and return what results.json holds.

    Raises:
        ValueError: a mistake in the request, its data or its directory.
        Stopped: a signal ended it, or the end of its time; what is done is saved.
        OSError: a file could not be written.
        engine.NonFiniteLoss: training diverged.
    """
    stop = Stop(request.deadline)
    with stop.listening():
        plan = Plan(request)
        # What is refused now leaves no folder behind; asking for their digests reads the weights.
        refused.without_weights(plan)
        _ = plan.init_sha256, plan.begun, plan.pretrained and plan.pretrained.sha256
        with processes.joined(plan.device) as world, ExitStack() as held:
            record = Record(plan, world, held)
            with _told_how_to_go_on(record):
                training = Training(plan, world, record, stop)
                training.check()
                nets = [training.begun(), training.start()]  # what stages began with, oldest first
                for index in range(len(plan.stages)):
                    nets = training.train(index, *nets)
                return training.finish()


@contextmanager
def _told_how_to_go_on(record: Record) -> Iterator[None]:
    """Add to what ends a run and is no mistake whether there is something to go on from."""
    try:
        yield
    except (KeyboardInterrupt, OSError, WorkerDied) as error:
        advice.add(error, record.how_to_go_on)
        raise


class Training:
    """A run: its folder is opened first, then its images are read."""

    def __init__(self, plan: Plan, world: World | None, record: Record, stop: Stop) -> None:
        machine.use_repeatable_kernels()
        self.plan, self.world, self.out = plan, world, console()
        self.record, self.pauses = record, engine.Pauses(stop, plan.run.checkpoint_minutes)
        announce(plan, self.out)
        if plan.request.resume and not record.resumes:
            told = "  --resume: there is no run in this folder yet, a new one begins"
            self.out.print(told, highlight=False, markup=False)
        if plan.pretrained is not None:
            line = summary.weights(plan.pretrained.plain())
            self.out.print(f"  {line}", highlight=False, markup=False)
        self.inputs = load_data(plan)

    def check(self) -> None:
        """Refuse before any training what would end a later stage, and write what the run is."""
        plan, inputs, loaded = self.plan, self.inputs, self.inputs.data
        alike = plan.fingerprint(len(plan.stages) - 1, inputs.sha256)
        if not processes.same_everywhere(alike, self.world):
            raise ValueError(
                "the processes see different images, splits, settings or code; give all of them "
                "the same files and the same command, and set precision if their machines differ"
            )
        self._check_origin()
        planned(plan, inputs, self.out)
        summary.tell_small_classes(inputs.counts["validation"], loaded.class_names, self.out)
        self.results = self.record.begin(inputs, self.out)

    def _check_origin(self) -> None:
        plan, inputs = self.plan, self.inputs
        model, precision = plan.plain["model"], plan.run.precision
        images = inputs.images_sha256
        for note in load.check_origin(plan.request.init, model, precision, inputs.split, images):
            self.out.print(f"  --init: {note}", highlight=False, markup=False)

    def start(self) -> models.Classifier | None:
        """The network that --init gives, measured; None: the first stage makes one."""
        if not self.plan.request.init:
            return None
        net, measured = _start(self.plan, self.inputs, self.out)
        self.results.start = checked(Stage, measured)
        return net

    def begun(self) -> models.Classifier | None:
        """What the stage that made the weights of --init began with; None: no stage asks for it."""
        if not self.plan.begun:
            return None
        net = _built(self.plan, self.inputs)
        for note in load_into(net, self.plan.begun):
            self.out.print(f"  what --init began with: {note}", highlight=False, markup=False)
        net = self.inputs.of_inputs(net)
        return net.prepared(Execution(self.plan.run.precision), self.inputs.data.device)

    def train(
        self, index: int, origin: models.Classifier | None, net: models.Classifier | None
    ) -> list[models.Classifier | None]:
        """Train a stage, or read it if it is finished; what it began with, and what it hands on.

        Args:
            index: of the stage.
            origin: what the stage before began with.
            net: what it handed on; the stage changes it.
        """
        plan, loaded = self.plan, self.inputs.data
        began = None
        if net is not None and any(kind.needs_origin for _, kind in plan.algorithms[index + 1 :]):
            began = copy.deepcopy(net)
        sha256 = plan.fingerprint(index, self.inputs.sha256)
        # What resumes has its weights, and may have lost the file that they began with.
        trained = net is None and not self._has_checkpoint(index, sha256)
        channels = loaded.image_shape[0]
        of_features = self.inputs.body is not None
        algorithm = build(
            *(plan, index, loaded.task, channels, net), trained=trained, of_features=of_features
        )
        execution.placed(algorithm, plan.device)
        new = index >= len(self.results.stages)
        fitted = engine.fit(
            algorithm,
            loaded.at_stage(plan.stages[index]),
            plan.out / plan.stages[index],
            self.record.log(index, self.inputs, algorithm.images_per_step, self.out),
            sha256,
            resume=plan.request.resume,
            diagnostics=self.inputs.diagnostics,
            measure_last=new,
            pauses=self.pauses,
            origin=origin,
        )
        handed_on = heads.ended(fitted.algorithm.export()).requires_grad_(True)
        if new:
            self._add(index, fitted, handed_on, sha256)
        else:
            self._check_handed_on(index, handed_on, sha256)
        return [began, handed_on]

    def _has_checkpoint(self, index: int, sha256: str) -> bool:
        """Whether a stage on pre-trained weights can go on from what it saved."""
        if self.plan.pretrained is None or not self.plan.request.resume:
            return False
        place = self.plan.out / self.plan.stages[index]
        found = processes.from_first(lambda: checkpoint.newest(place, sha256), self.world)
        return found.state is not None

    def _check_handed_on(self, index: int, net: models.Classifier, sha256: str) -> None:
        """Let a finished stage hand on what results.json tells, whichever of its files is damaged.

        Raises:
            RunError: no intact file of the stage has those weights.
        """
        recorded = self.results.stages[index].handed_on_sha256
        if recorded is None:  # version 0.1
            return
        kept, net = self.record.handed_on(index, recorded, sha256), self.inputs.whole(net)
        same, place = weights.sha256_of(net) == recorded, self.plan.out / self.plan.stages[index]
        if same and kept is None:
            self.record.repair(index, net, sha256)
            told = f"{place / weights.HANDED_ON} was missing or damaged and is restored"
            self.out.print(told, style="yellow", highlight=False, markup=False)
        elif not same and kept is not None:
            net.load_state_dict(kept)
        elif not same:
            raise RunError(
                f"{place / weights.HANDED_ON} is missing or damaged, and so are the checkpoints "
                f"beside it: none has the weights that {self.plan.out / RESULTS} tells of; restore "
                "one of them, or use another --out"
            )

    def _add(
        self, index: int, fitted: engine.Fitted, handed_on: models.Classifier, sha256: str
    ) -> None:
        plan, inputs = self.plan, self.inputs
        name = plan.algorithms[index][0]
        stage = _measure(name, fitted, inputs.data.at_stage(plan.stages[index]))
        self._tell_suspects(index, fitted.algorithm)
        # Repeat the stage's settings, so that results.json can be read without config.yaml.
        stage |= {"settings": config.deciding(plan.plain[name], f"{name}.")}
        whole = inputs.whole(handed_on)
        stage |= {"handed_on_sha256": weights.sha256_of(whole)}
        if (origin := self._origin(index)) is not None:
            stage |= {"started_from": origin.plain()}
        told = _protocol(plan, inputs, inputs.whole(fitted.algorithm.net))
        self.results.protocol = checked(Protocol, told)
        self.record.add(self.results, stage, whole, sha256)

    def _tell_suspects(self, index: int, algorithm: Algorithm) -> None:
        folder, inputs = self.plan.out / self.plan.stages[index], self.inputs
        first = self.world is None or self.world.rank == 0
        if told := suspects.write(folder, algorithm, inputs.data, inputs.names, first=first):
            self.out.print(f"  {told}", highlight=False, markup=False)

    def _origin(self, index: int) -> StartedFrom | None:
        """What a stage began with: weights of another run, or what the stage before handed on."""
        if index:
            before = self.results.stages[index - 1].handed_on_sha256 or ""
            return StartedFrom(sha256=before, run_id=self.results.run_id, stages=index)
        if not self.plan.request.init:
            return None
        return load.origin_of(self.plan.request.init, self.plan.init_sha256)

    def finish(self) -> dict[str, Any]:
        """Print the tables; what results.json holds."""
        found = self.results.plain()
        summary.show(found, self.inputs.data.class_names, self.out)
        memory = machine.peak_memory(self.plan.device)
        held = ", ".join(f"{size / 2**30:.2f} GiB ({what})" for what, size in memory.items())
        self.out.print(f"peak memory: {held or 'unknown'}", highlight=False, markup=False)
        place = self.plan.out / RESULTS
        self.out.print(f"results: {place}", highlight=False, markup=False)
        return found


def planned(plan: Plan, inputs: Inputs, out: Console) -> list[Algorithm]:
    """The algorithms of all stages on new networks; refuses what would end one of them.

    Raises:
        ValueError: a stage cannot be trained on these images, or not after the one before it.
    """
    loaded, of_features = inputs.data, inputs.body is not None
    refused.for_images(plan, loaded)
    channels = loaded.image_shape[0]
    found = [
        build(plan, i, loaded.task, channels, None, of_features=of_features)
        for i in range(len(plan.stages))
    ]
    refused.for_stages(plan, found, loaded)
    _set_threads(plan, found, loaded, out)
    return found


def _set_threads(plan: Plan, algorithms: Sequence[Algorithm], loaded: Data, out: Console) -> None:
    """The threads that were asked for, or as many as the largest step can use; says which."""
    world = processes.world()
    images = max(algorithm.images_per_step for algorithm in algorithms)
    images = max(1, images // (world.size if world else 1))
    shape = loaded.image_shape
    try:
        flops = machine.flops_per_step(algorithms[0].net, shape, images)
    except Exception as error:  # whatever the network says of images that it was not made for
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        side = plan.config["model"].size
        size, setting = (
            (f"{side}×{side} pixels", "model.size")
            if side
            else ("×".join(map(str, shape)), "data.size where the data set has it")
        )
        raise ValueError(
            f"model.name={plan.config['model'].name} cannot take images of {size} ({reason}); "
            f"choose another network, or {setting}"
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
    plan: Plan,
    stage: int,
    task: Task,
    channels: int,
    net: models.Classifier | None,
    *,
    trained: bool = False,
    of_features: bool = False,
) -> Algorithm:
    """The algorithm of a stage, on the given network or on a new one, perhaps a pre-trained one.

    With `of_features` a new network has no body, and `channels` is the number of features.
    """
    name, kind = plan.algorithms[stage]
    torch.manual_seed(seed_of(plan.run.seed, plan.stages[stage], "init"))
    if net is None:
        if of_features:
            net = without_body(plan.config["model"], channels, task.num_classes)
        else:
            net = _network(plan, task.num_classes, channels, trained)
        heads.begin(net, plan.config["model"].head)
    elif kind.trains:  # others look at the network as it was handed on
        models.tune(net, plan.config["model"])
    views, run = plan.config["views"], plan.run
    how = (run.precision, views.name, processes.world(), run.compile)
    net.prepared(Execution(*how, with_labeled=views.with_labeled))
    if plan.run.sync_batch_norm and processes.world():
        batch_norm.share_batch_norms(net, plan.device)
    return kind(net, task, plan.config[name])


def _network(plan: Plan, num_classes: int, channels: int, trained: bool) -> models.Classifier:
    """A new network, of which is trained what the configuration says."""
    model, weights_of_body = plan.config["model"], plan.pretrained
    net = models.build(model, num_classes, channels)
    if trained and weights_of_body is not None:
        weights_of_body.into(net)
    models.tune(net, model)
    if weights_of_body is not None or model.tune != "full":
        # A function is not copied with the network, as the weights that it holds would be.
        whole = model.tune == "full"  # else its body stays as it is when it begins anew
        net.rebuild = lambda: _network(plan, num_classes, channels, whole)
    return net


def announce(plan: Plan, out: Console) -> None:
    """Print where the run lies and which settings it was given."""
    out.print(f"run {plan.out}", highlight=False, markup=False)
    for source, settings in plan.layers:
        if settings:
            text = " ".join(f"{key}={value}" for key, value in settings.items())
            out.print(f"  {source}: {text}", highlight=False, markup=False)
    for note in plan.notes:
        out.print(f"  {note}", highlight=False, markup=False)


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


def _built(plan: Plan, inputs: Inputs) -> models.Classifier:
    """A network for weights that are given."""
    torch.manual_seed(seed_of(plan.run.seed, "init"))
    channels = inputs.extra["image_shape"][0]
    return models.build(plan.config["model"], inputs.data.task.num_classes, channels)


def _start(plan: Plan, inputs: Inputs, out: Console) -> tuple[models.Classifier, dict[str, Any]]:
    """The network with the weights of --init, and their figures."""
    task, net = inputs.data.task, _built(plan, inputs)
    for note in load_into(net, plan.init):
        out.print(f"  --init: {note}", highlight=False, markup=False)
    net = inputs.of_inputs(net)
    # As the stages compute: in another number format or layout the same weights have other figures.
    net.prepared(Execution(plan.run.precision), inputs.data.device)
    given = Algorithm(net, task, Algorithm.Config())
    return net, _measure("start", engine.Fitted(given, 0, 0, 0.0), inputs.data)


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
