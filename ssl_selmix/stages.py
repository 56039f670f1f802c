"""Runs `--algo A --then B --then C`: one directory, one split, each stage starts from the last."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from ssl_selmix import (
    checkpoint,
    config,
    data,
    distributed,
    engine,
    environment,
    forward,
    machine,
    models,
    origin,
    plugins,
    report,
    weights,
)
from ssl_selmix.algorithm import Algorithm, Task
from ssl_selmix.checkpoint import write_atomically
from ssl_selmix.data import Data, Diagnostics, seed_of
from ssl_selmix.distributed import World
from ssl_selmix.log import SilentLog, StageLog, console
from ssl_selmix.splits import Split, read_manifest

NO_PRESET = "none"
PLACES = ("init.path", "data.manifest.path")
# What another machine may have otherwise than that of the run.
MAY_CHANGE = (*config.MACHINE_KEYS, "precision", "data.root", "data.download")
NOT_SETTINGS = ("init", "code", "processes")  # what config.yaml records beside settings


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    algorithms: Sequence[str]
    dataset: str = "digits"
    preset: str | None = None  # None: the one named like the dataset, if there is one
    init: Path | None = None  # weights to start from: a run's folder or a file
    out: Path | None = None  # None: runs/<dataset>-<algorithms>-seed<seed>
    resume: bool = False
    settings: Sequence[str] = field(default_factory=tuple)  # key=value
    recorded: Mapping[str, Any] = field(default_factory=dict)  # all settings of a run, by key

    @property
    def command(self) -> str:
        """The command line that asks for the same, without folders and settings of the machine."""
        words = ["ssl-selmix", "train", "--algo", *self.algorithms[:1]]
        words += [word for name in self.algorithms[1:] for word in ("--then", name)]
        words += ["--dataset", self.dataset]
        words += ["--preset", self.preset] if self.preset else []
        # A manifest can be published: it says nothing about the folders of a machine.
        own = (*config.MACHINE_KEYS, "data.root", "data.manifest")
        return shlex.join([*words, *(s for s in self.settings if s.partition("=")[0] not in own)])


class Plan:
    """A request with its plug-ins found and its configuration checked; reads no image."""

    def __init__(self, request: Request) -> None:
        if not request.algorithms:
            raise ValueError("no algorithm; name one with --algo, such as --algo fixmatch")
        self.request = request
        self.algorithms = [plugins.algorithm(name) for name in request.algorithms]
        _check_names(self.algorithms)
        self.dataset = plugins.dataset(request.dataset)
        sections: dict[str, type[Any]] = {"data": self.dataset.Config, "model": models.Config}
        sections |= {"step": forward.Config}
        sections |= {name: kind.Config for name, kind in self.algorithms}
        self.layers = self._layers(set(sections))
        self.manifest_sha256 = self._take_manifest()
        self.config, self.plain = config.compose(sections, self.layers)
        self.run: config.Run = self.config[""]
        self.device = machine.set_up_device(self.run.device)
        # What `auto` chose decides the results, so that it is what the run records.
        self.run.precision = machine.precision_of(self.run.precision, self.device)
        self.plain["precision"] = self.run.precision
        self.init = weights.read(request.init) if request.init else {}
        self.init_sha256 = checkpoint.digest(self.init) if request.init else ""

    def _layers(self, sections: set[str]) -> list[tuple[str, dict[str, Any]]]:
        name = self.request.preset
        if name is None:
            name = self.request.dataset if self.request.dataset in plugins.presets() else NO_PRESET
        layers = []
        if self.request.recorded:
            layers.append(("the run", dict(self.request.recorded)))
        elif name != NO_PRESET:
            origin = f"preset {name}"
            settings = config.parse_yaml(plugins.preset_text(name), origin)
            # A preset serves many algorithms; its lines about others do not concern this run.
            known = plugins.available("algorithm")
            others = {a for a in known if a not in sections}
            kept = {k: v for k, v in settings.items() if k.partition(".")[0] not in others}
            layers.append((origin, kept))
        layers.append(("command line", config.parse_overrides(self.request.settings)))
        return layers

    def _take_manifest(self) -> str:
        """Let `data.manifest` say what the split is; returns the SHA-256 of its indices."""
        path = ChainMap(*(settings for _, settings in reversed(self.layers))).get("data.manifest")
        if not path:
            return ""
        try:
            manifest, split = read_manifest(path), Split.load(path)
        except OSError as error:
            raise ValueError(
                f"data.manifest={path} cannot be read ({error.strerror}); give the manifest.json "
                "of a run, or a published one"
            ) from error
        rule = config.flatten({"data": split.rule.settings()})
        origin, words = self.layers[-1]
        if clash := [key for key in rule if key in words and words[key] != rule[key]]:
            raise ValueError(
                f"data.manifest={path} is a split with {clash[0]}={rule[clash[0]]}, so "
                f"{clash[0]}={words[clash[0]]} has no meaning; leave out one of them ({origin})"
            )
        self.layers.insert(-1, (f"manifest {path}", rule))
        return str(manifest["indices_sha256"])

    @property
    def out(self) -> Path:
        """The run's directory."""
        if self.request.out is not None:
            return self.request.out
        names = "-".join(name for name, _ in self.algorithms)
        return Path("runs") / f"{Path(self.request.dataset).stem}-{names}-seed{self.run.seed}"

    @property
    def stages(self) -> list[str]:
        """Directory names of the stages: 1-fixmatch, 2-selmix."""
        return [f"{i}-{name}" for i, (name, _) in enumerate(self.algorithms, 1)]

    def identity(self) -> dict[str, Any]:
        """All that decides the results: resuming with another identity is refused."""
        plain = config.deciding(self.plain)
        if self.init_sha256:
            plain["init"] = {"path": str(self.request.init), "sha256": self.init_sha256}
        if self.manifest_sha256:
            used = {"path": plain["data"]["manifest"], "indices_sha256": self.manifest_sha256}
            plain["data"] = {**plain["data"], "manifest": used}
        return {
            "algorithms": list(self.request.algorithms),
            "dataset": self.request.dataset,
            **plain,
            **({"code": code} if (code := self._code()) else {}),
            **self._processes(),
        }

    def _processes(self) -> dict[str, int]:
        """How many, if several: sums over them are rounded in another order."""
        world = distributed.world()
        return {"processes": world.size} if world else {}

    def _code(self) -> dict[str, str]:
        """SHA-256 of the user's own files that take part: plug-ins, objectives, constraints."""
        words: list[Any] = [*self.request.algorithms, self.request.dataset]
        for value in config.flatten(self.plain).values():
            words += value if isinstance(value, list) else [value]
        files = {str(word).rpartition(":")[0] or str(word) for word in words if ".py" in str(word)}
        found = {f: Path(os.path.expanduser(f)) for f in sorted(files)}
        return {
            f: hashlib.sha256(path.read_bytes()).hexdigest()
            for f, path in found.items()
            if path.is_file()
        }

    def fingerprint(self, stage: int, images: str) -> str:
        """Identity of a stage: the configuration up to it and the images it sees."""
        used = [name for name, _ in self.algorithms[: stage + 1]]
        plain = config.deciding(self.plain)
        common = ("seed", "precision", "compile", "sync_batch_norm", "step", "data", "model")
        parts = {k: plain[k] for k in (*common, *used)}
        if self.manifest_sha256:
            parts["data"] = {**parts["data"], "manifest": self.manifest_sha256}
        origin = (images, self.init_sha256, self._code(), self._processes())
        return config.fingerprint(parts, self.stages[: stage + 1], *origin)


def reopen(folder: Path, settings: Sequence[str] = ()) -> Plan:
    """The plan of a run that exists, for commands that look at it again.

    Raises:
        ValueError: the folder is no run, what it needs is gone, or a setting is not of the machine.
    """
    for key in config.parse_overrides(settings):
        if key not in MAY_CHANGE:
            raise ValueError(
                f"{key} cannot be set here: what {folder} was trained with stays; what may be "
                f"another on this machine: {', '.join(MAY_CHANGE)}"
            )
    path = folder / "config.yaml"
    try:
        written = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(written, dict)
        names, dataset = list(written.pop("algorithms")), str(written.pop("dataset"))
        tree = {str(k): v for k, v in written.items() if k not in NOT_SETTINGS}
        if tree["data"].get("manifest"):  # the run's own one holds the same split
            tree["data"]["manifest"] = str(folder / "manifest.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} is no run of ssl_selmix; it has no config.yaml") from error
    except (YAMLError, OmegaConfBaseException, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; restore it") from error
    except AssertionError as error:
        raise ValueError(f"{path} is damaged; restore it") from error
    recorded = config.flatten(tree)
    return Plan(Request(names, dataset, out=folder, settings=settings, recorded=recorded))


def reload(plan: Plan) -> Inputs:
    """The images and the split of a run that exists.

    Raises:
        ValueError: they are not those that the run saw.
    """
    torch.set_num_threads(plan.run.threads or machine.MACHINE_THREADS)
    inputs = load_data(plan)
    _check_images(plan, inputs.sha256, "give the folder that has the run's images (data.root)")
    return inputs


def run(request: Request) -> dict[str, Any]:
    """Train all stages and return what results.json holds.

    Raises:
        ValueError: a mistake in the request, its data or its directory.
        OSError: a file could not be written.
        engine.NonFiniteLoss: training diverged.
    """
    plan = Plan(request)
    with distributed.joined(plan.device) as world:
        return _run(plan, world)


def _run(plan: Plan, world: World | None) -> dict[str, Any]:
    request, out, writes = plan.request, console(), world is None or world.rank == 0
    previous = distributed.from_first(lambda: _open_directory(plan), world)
    _announce(plan, out)
    inputs = load_data(plan)
    loaded = inputs.data
    alike = plan.fingerprint(len(plan.stages) - 1, inputs.sha256)
    if not distributed.same_everywhere(alike, world):
        raise ValueError(
            "the processes see different images, splits, settings or code; give all of them the "
            "same files and the same command, and set precision if their machines differ"
        )
    for note in origin.check(
        plan.request.init,
        plan.config["model"].name,
        plan.run.precision,
        inputs.split,
        inputs.images_sha256,
    ):
        out.print(f"  --init: {note}", highlight=False, markup=False)
    # A mistake in the last stage must not cost the stages before it.
    parts = range(len(plan.stages))
    planned = [build(plan, i, loaded.task, loaded.images.shape[1], None) for i in parts]
    _check_batches(planned)
    _set_threads(plan, planned, loaded, out)
    if previous is not None:
        distributed.from_first(lambda: _check_resumed(plan, inputs.sha256, out), world)
    else:
        distributed.from_first(lambda: _write_setup(plan, inputs), world)
    results = distributed.from_first(lambda: _results_so_far(plan, inputs), world)
    net = _start(plan, inputs, results, out) if plan.request.init else None
    for index, stage in enumerate(plan.stages):
        algorithm = build(plan, index, loaded.task, loaded.images.shape[1], net)
        algorithm.to(device=plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        stage_data = loaded.at_stage(stage)
        images = algorithm.images_per_step
        logs = StageLog if writes else SilentLog
        fitted = engine.fit(
            algorithm,
            stage_data,
            plan.out / stage,
            logs(plan.out / stage, stage, loaded.class_names, out, images),
            plan.fingerprint(index, inputs.sha256),
            resume=request.resume,
            diagnostics=inputs.diagnostics,
            compiled=plan.run.compile,
            world=world,
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
                weights.save(net, plan.out / stage, plan.fingerprint(index, inputs.sha256))
                _write_json(plan.out / "results.json", results)
    report.show(results, loaded.class_names, out)
    memory = machine.peak_memory(plan.device)
    held = ", ".join(f"{size / 2**30:.2f} GiB ({what})" for what, size in memory.items())
    out.print(f"peak memory: {held or 'unknown'}", highlight=False, markup=False)
    out.print(f"results: {plan.out / 'results.json'}", highlight=False, markup=False)
    return results


def _check_batches(algorithms: Sequence[Algorithm]) -> None:
    """Every process must pass as many images, or their gradients would count differently."""
    world = distributed.world()
    for algorithm in algorithms if world else ():
        assert world is not None
        if algorithm.config.batch % world.size:
            raise ValueError(
                f"batch={algorithm.config.batch} cannot be shared by {world.size} processes; make "
                "it a multiple of their number"
            )


def _set_threads(plan: Plan, algorithms: Sequence[Algorithm], loaded: Data, out: Console) -> None:
    """The threads that were asked for, or as many as the largest step can use; says which."""
    world = distributed.world()
    images = max(algorithm.images_per_step for algorithm in algorithms)
    images //= world.size if world else 1
    shape = tuple(loaded.images.shape[1:])
    try:
        flops = machine.flops_per_step(algorithms[0].net, shape, images)
    except Exception as error:  # whatever the network says of images that it was not made for
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise ValueError(
            f"model.name={plan.config['model'].name} cannot take images of "
            f"{'×'.join(map(str, shape))} ({reason}); choose another network, or data.size where "
            "the data set has it"
        ) from error
    threads = plan.run.threads or machine.threads_for(flops)
    torch.set_num_threads(threads)
    why = "as asked" if plan.run.threads else f"for {flops / 1e9:.3g} GFLOP a step"
    plural = "s" if threads > 1 else ""
    text = f"  machine: {plan.device}, {threads} thread{plural} ({why}), {plan.run.precision}"
    out.print(text, highlight=False, markup=False)
    for (name, _), algorithm in zip(plan.algorithms, algorithms, strict=True):
        how = plan.config["step"].name
        if how not in algorithm.forwards:
            split = "split" in algorithm.forwards
            then = (
                "needs all strong views: step.lazy means step.split"
                if split
                else (f"has no views to treat otherwise: step.{how} changes nothing in it")
            )
            out.print(f"  {name} {then}", highlight=False, markup=False)
    if plan.run.sync_batch_norm and world is None:
        out.print("  sync_batch_norm has no effect in one process", highlight=False, markup=False)


@dataclass(frozen=True)
class Inputs:
    """The data of a run: what training sees, what only reports see, what the manifest says."""

    data: Data
    diagnostics: Diagnostics
    split: Split
    images_sha256: str
    extra: dict[str, Any]

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images of each class that figures are measured on."""
        parts = {"validation": self.data.validation_labels, "test": self.data.test_labels}
        num = len(self.data.class_names)
        return {part: torch.bincount(y, minlength=num).tolist() for part, y in parts.items()}

    @property
    def sha256(self) -> str:
        """Identity of images, split and labels."""
        return config.fingerprint(self.split.manifest(self.images_sha256, **self.extra))


def load_data(plan: Plan) -> Inputs:
    """Decode the images, draw the split, put the pool on the device."""
    settings, seed = plan.config["data"], plan.run.seed
    source: data.ImageSet = plan.dataset.load(settings)
    names = list(source.class_names)
    if source.test is None and not settings.test:
        raise ValueError("this data set has no test images of its own; set data.test=50, say")
    if not settings.validation:
        raise ValueError("every class needs validation images; set data.validation=20, say")
    if settings.unlabeled.shape == "unknown" and source.extra_unlabeled is None:
        raise ValueError(
            "data.unlabeled.shape=unknown is for a data set with unlabeled images of its own, and "
            f"{plan.request.dataset} has none; draw them with another shape, such as long_tail"
        )
    sha256 = source.sha256()
    split = _split(plan, source, sha256)
    loaded, diagnostics = data.assemble(source, split, seed, plan.device)
    extra: dict[str, Any] = {
        "dataset": plan.request.dataset,
        "class_names": names,
        "image_shape": list(source.train.shape[1:]),
        "mean": list(source.mean),
        "std": list(source.std),
    }
    if source.extra_unlabeled is not None:
        extra["extra_unlabeled"] = len(source.extra_unlabeled)
    if source.apart:
        extra["apart"] = source.apart
    return Inputs(loaded, diagnostics, split, sha256, extra)


def _split(plan: Plan, source: data.ImageSet, sha256: str) -> Split:
    """The split that `data.manifest` names, on these images, or else a new one."""
    settings, names = plan.config["data"], list(source.class_names)
    if not plan.manifest_sha256:
        drawn: Split = settings.draw(
            source.train_labels, len(names), plan.run.seed, class_names=names, apart=source.apart
        )
        return drawn
    split = Split.load(settings.manifest, sha256)
    if read_manifest(settings.manifest)["images_sha256"] is None:
        raise ValueError(
            f"{settings.manifest} records no SHA-256 of its images, so that these may be others; "
            f'add "images_sha256": "{sha256}" if you know that they are not'
        )
    try:
        split.verify(source.train_labels, len(names))
    except ValueError as error:
        raise ValueError(f"{settings.manifest}: {error}") from error
    return split


def build(
    plan: Plan, stage: int, task: Task, channels: int, net: models.Classifier | None
) -> Algorithm:
    """The algorithm of a stage, on the given network or on a new one."""
    name, kind = plan.algorithms[stage]
    torch.manual_seed(seed_of(plan.run.seed, plan.stages[stage], "init"))
    if net is None:
        net = models.build(plan.config["model"], task.num_classes, channels)
    net.autocast = machine.DTYPES[plan.run.precision]
    net.step = plan.config["step"].name
    if plan.run.sync_batch_norm and distributed.world():
        distributed.share_batch_norms(net, plan.device)
    return kind(net, task, plan.config[name])


def _open_directory(plan: Plan) -> dict[str, Any] | None:
    """The configuration that the directory was made with, if this resumes it."""
    folder, written = plan.out, plan.out / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    if not plan.request.resume:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} exists and is not overwritten; add --resume to continue it, or --out DIR"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return None
    if not written.exists():  # killed before its set-up was written, or never started
        folder.mkdir(parents=True, exist_ok=True)
        return None
    try:
        before = OmegaConf.to_container(OmegaConf.load(written))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{written} is damaged; restore it, or use another --out") from error
    assert isinstance(before, dict)
    changed = config.differences({str(k): v for k, v in before.items()}, plan.identity())
    # Files that moved are the same files as long as their digests are.
    if changed := [line for line in changed if line.partition(":")[0] not in PLACES]:
        raise ValueError(
            f"--resume needs the configuration that {folder} was started with; it differs in "
            f"{'; '.join(changed)}; use another --out for a new run"
        )
    return {str(k): v for k, v in before.items()}


def _check_images(plan: Plan, sha256: str, remedy: str) -> None:
    path = plan.out / "manifest.json"
    written = read_manifest(path)
    written.pop("command", None)  # how the split was asked for first; it may be asked otherwise
    if config.fingerprint(written) != sha256:
        raise ValueError(
            f"{path} describes other images or another split than this run sees; {remedy}"
        )


def _check_names(algorithms: Sequence[tuple[str, type[Algorithm]]]) -> None:
    """Each name is a section of the configuration and may mean one thing only."""
    taken: dict[str, Any] = dict.fromkeys(("data", "model", "step", "dataset", "algorithms"))
    taken |= dict.fromkeys(config.Run.__annotations__)
    for name, kind in algorithms:
        if taken.setdefault(name, kind) is not kind:
            raise ValueError(f"the name {name!r} of an algorithm is taken; rename its file")


def _announce(plan: Plan, out: Console) -> None:
    out.print(f"run {plan.out}", highlight=False, markup=False)
    for source, settings in plan.layers:
        if settings:
            text = " ".join(f"{key}={value}" for key, value in settings.items())
            out.print(f"  {source}: {text}", highlight=False, markup=False)


def _write_setup(plan: Plan, inputs: Inputs) -> None:
    said = {**inputs.extra, "command": plan.request.command}
    inputs.split.save(plan.out / "manifest.json", inputs.images_sha256, **said)
    _write_json(plan.out / "environment.json", environment.describe(plan.device))
    # Last: a directory with config.yaml is complete enough to be resumed.
    text = OmegaConf.to_yaml(OmegaConf.create(plan.identity()))
    write_atomically(plan.out / "config.yaml", text.encode())


def _check_resumed(plan: Plan, images: str, out: Console) -> None:
    remedy = "--resume needs the same images, use another --out for these"
    _check_images(plan, images, remedy)
    _compare_code(plan, out)


def _compare_code(plan: Plan, out: Console) -> None:
    """Say so if the run was started with other code: its end may then differ."""
    try:
        before = json.loads((plan.out / "environment.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return
    if before != (now := environment.commit()):
        out.print(f"warning: started at commit {before}, resumed at {now}", style="yellow")


def _results_so_far(plan: Plan, inputs: Inputs) -> dict[str, Any]:
    manifest_sha = inputs.sha256
    path = plan.out / "results.json"
    if plan.request.resume and path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged; restore it, or use another --out") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} is damaged; restore it, or use another --out")
        if found.get("manifest_sha256") != manifest_sha:
            raise ValueError(
                f"{path} was measured on other images or another split; --resume needs the same "
                "images, use another --out for these"
            )
        return dict(found)
    return {
        "dataset": plan.request.dataset,
        "seed": plan.run.seed,
        "manifest_sha256": manifest_sha,
        "images_sha256": inputs.images_sha256,
        **({"init_sha256": plan.init_sha256} if plan.init else {}),
        "counts": inputs.counts,
        "protocol": {},
        "stages": [],
    }


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
    task, channels = inputs.data.task, inputs.data.images.shape[1]
    torch.manual_seed(seed_of(plan.run.seed, "init"))
    net = models.build(plan.config["model"], task.num_classes, channels)
    for note in weights.load_into(net, plan.init):
        out.print(f"  --init: {note}", highlight=False, markup=False)
    # As the stages compute: in another number format or layout the same weights have other figures.
    net.autocast = machine.DTYPES[plan.run.precision]
    given = Algorithm(net, task, Algorithm.Config())
    given.to(device=inputs.data.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    results["start"] = _measure("start", engine.Fitted(given, 0, 0, 0.0), inputs.data)
    return net


def _protocol(plan: Plan, inputs: Inputs, net: models.Classifier) -> dict[str, Any]:
    """What must agree before two results may be compared."""
    held = "the data set's validation images" if "apart" in inputs.extra else "the training images"
    keep = {name: plan.config[name].keep for name, _ in plan.algorithms}
    return {
        "network": plan.config["model"].name,
        "parameters": models.num_parameters(net),
        "split": config.deciding(plan.plain)["data"],
        "largest": "N1 and M1 count the images of the largest class",
        "checkpoint_rule": keep,
        "validation": f"held out of {held}, labeled",
        "steps": [plan.config[name].steps for name, _ in plan.algorithms],
        "precision": plan.run.precision,
        "step": plan.config["step"].name,
        **_shared(plan),
    }


def _shared(plan: Plan) -> dict[str, Any]:
    """How several processes shared the batches."""
    world, synced = distributed.world(), plan.run.sync_batch_norm
    return {"processes": world.size, "sync_batch_norm": synced} if world else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
