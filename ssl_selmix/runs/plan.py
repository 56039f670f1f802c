"""A request with its plug-ins found and its configuration checked."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.algorithm import load as load_algorithm
from ssl_selmix.common import config, plugins, processes
from ssl_selmix.common.console import tell
from ssl_selmix.common.names import short_name
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import manifest
from ssl_selmix.models import execution
from ssl_selmix.runs.folder import CONFIG, RunFolder, named
from ssl_selmix.runs.load import read as read_weights
from ssl_selmix.training import checkpoint, machine

NO_PRESET = "none"
# Sections by the name that version 0.1 gave them. Settings may use it, and what a run records (its
# config.yaml, and the fingerprints in its checkpoints) does, so that older runs can be resumed.
RECORDED = {"views": "step"}
PLACES = ("init.path", "data.manifest.path")
# What another machine may have otherwise than that of the run.
MAY_CHANGE = (
    # Commands that neither draw nor save checkpoints.
    *(key for key in config.MACHINE_KEYS if key not in ("pictures", "checkpoint_minutes")),
    *("precision", "data.root", "data.download"),
)
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
    deadline: float | None = None  # by time.monotonic(): when to save and end

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
        if not request.algorithms and not request.recorded:
            raise ValueError("no algorithm; name one with --algo, such as --algo fixmatch")
        init, out = (expanded(p) if p is not None else None for p in (request.init, request.out))
        self.request = request = replace(request, init=init, out=out)
        self.algorithms = [load_algorithm(name) for name in request.algorithms]
        _check_names(self.algorithms)
        self.dataset = plugins.dataset(request.dataset)
        sections: dict[str, type[Any]] = {"data": self.dataset.Config, "model": models.Config}
        sections |= {"views": execution.ViewsConfig}
        sections |= {name: kind.Config for name, kind in self.algorithms}
        self.layers = config.read(sections, self._layers(sections))
        self.manifest_sha256 = self._take_manifest()
        self.config, self.plain = config.compose(sections, self.layers)
        self.run: config.Run = self.config[""]
        self.device = machine.find_device(self.run.device)
        # What `auto` chose decides the results, so that it is what the run records.
        self.run.precision = execution.precision_of(self.run.precision, self.device)
        self.plain["precision"] = self.run.precision

    @cached_property
    def init(self) -> dict[str, Tensor]:
        """The weights of --init, read when first asked for."""
        return read_weights(self.request.init) if self.request.init else {}

    @cached_property
    def init_sha256(self) -> str:
        """Their digest; "" without --init."""
        return checkpoint.digest(self.init) if self.request.init else ""

    def _layers(self, sections: Mapping[str, type[Any]]) -> list[config.Layer]:
        name = self.request.preset
        if name is None:
            name = self.request.dataset if self.request.dataset in plugins.presets() else NO_PRESET
        layers: list[config.Layer] = []
        if self.request.recorded:
            layers.append(("the run", config.without_retired(self.request.recorded, sections)))
        elif name != NO_PRESET:
            origin = f"preset {name}"
            settings = config.parse_yaml(plugins.preset_text(name), origin)
            # A preset serves many algorithms; its lines about others do not concern this run.
            known = plugins.available("algorithm")
            others = {a for a in known if a not in sections}
            kept = {k: v for k, v in settings.items() if k.partition(".")[0] not in others}
            layers.append((origin, kept))
        layers.append(("command line", config.parse_overrides(self.request.settings)))
        return [(origin, _by_own_names(settings)) for origin, settings in layers]

    def _take_manifest(self) -> str:
        """Let `data.manifest` say what the split is; returns the SHA-256 of its indices."""
        path = ChainMap(*(dict(found) for _, found in reversed(self.layers))).get("data.manifest")
        if not path:
            return ""
        try:
            written, split = manifest.read(path), manifest.load(path)
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
        return str(written["indices_sha256"])

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
        plain = self._recorded()
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

    def _recorded(self) -> dict[str, Any]:
        """All settings that decide the results, in the sections that runs record."""
        return {RECORDED.get(key, key): v for key, v in config.deciding(self.plain).items()}

    def _processes(self) -> dict[str, int]:
        """How many, if several: sums over them are rounded in another order."""
        world = processes.world()
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
        plain = self._recorded()
        common = ("seed", "precision", "compile", "sync_batch_norm", "step", "data", "model")
        parts = {k: plain[k] for k in common}
        parts |= {k: config.RETIRED | plain[k] for k in used}  # as in checkpoints of older versions
        if self.manifest_sha256:
            parts["data"] = {**parts["data"], "manifest": self.manifest_sha256}
        origin = (images, self.init_sha256, self._code(), self._processes())
        return config.fingerprint(parts, self.stages[: stage + 1], *origin)


def _by_own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the sections' names of today."""
    names = {old: new for new, old in RECORDED.items()}
    parted = ((*key.partition("."), value) for key, value in settings.items())
    return {f"{names.get(section, section)}{dot}{rest}": v for section, dot, rest, v in parted}


def reopen(folder: Path, settings: Sequence[str] = (), trust: Sequence[str] = ()) -> Plan:
    """The plan of a run that exists, for commands that look at it again.

    No code that the run names is executed but a data set's that the caller names as well; its
    algorithms and objectives of its own are left out, for nothing is trained.

    Args:
        folder: of the run.
        settings: key=value, of the machine.
        trust: files or modules that may be executed.

    Raises:
        ValueError: the folder is no run, what it needs is gone or not trusted, or a setting is not
            of the machine.
    """
    for key in config.parse_overrides(settings):
        if key not in MAY_CHANGE:
            raise ValueError(
                f"{key} cannot be set here: what {folder} was trained with stays; what may be "
                f"another on this machine: {', '.join(MAY_CHANGE)}"
            )
    run = RunFolder(folder)
    if run.of_finetune:
        raise ValueError(
            f"{folder} was written by finetune, whose images were given in Python and are not known"
        )
    run.check()
    written = dict(run.config)
    with named(folder / CONFIG):
        names, dataset = list(map(str, written.pop("algorithms"))), str(written.pop("dataset"))
        shipped = plugins.available("algorithm")
        others = {short_name(name) for name in names if name not in shipped}
        left_out = {*NOT_SETTINGS, *others} - {"data", "model", *RECORDED.values(), *shipped}
        tree = {key: value for key, value in written.items() if key not in left_out}
        if tree["data"].get("manifest"):  # the run's own one holds the same split
            tree["data"]["manifest"] = str(folder / "manifest.json")
        code = dict(written.get("code") or {})
    _check_trust(folder, dataset, code.get(dataset), trust)
    # A run never recorded what is the machine's, such as a folder to write the cache to.
    recorded = {k: v for k, v in config.flatten(tree).items() if k not in config.MACHINE_KEYS}
    names = [name for name in names if name in shipped]
    return Plan(Request(names, dataset, out=folder, settings=settings, recorded=recorded))


def _check_trust(folder: Path, dataset: str, recorded: str | None, trust: Sequence[str]) -> None:
    """Refuse a data set of the user's own that the caller did not name, or that was changed.

    Raises:
        ValueError: says what to add, with the digests of the file and of the run.
    """
    if dataset in plugins.available("dataset"):
        return
    file = Path(os.path.expanduser(dataset))
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    if found and recorded not in (None, found):
        raise ValueError(
            f"{dataset} is not the file that {folder} was trained with: its SHA-256 is {found}, "
            f"and the run recorded {recorded}; give the file as it was"
        )
    digest = f"SHA-256 {found}" if found else "no file here"
    told = f"{digest}, {'as the run recorded' if recorded else 'the run recorded none'}"
    if not any(_same_place(dataset, name) for name in trust):
        raise ValueError(
            f"the images of {folder} come from {dataset} ({told}), code that is executed only if "
            f"you name it; look at it, then add --trust {shlex.quote(dataset)}"
        )
    tell(f"executing {dataset} ({told})")


def _same_place(one: str, other: str) -> bool:
    paths = (Path(os.path.expanduser(name)).resolve() for name in (one, other))
    return one == other or len(set(paths)) == 1


def _check_names(algorithms: Sequence[tuple[str, type[Algorithm]]]) -> None:
    """Each name is a section of the configuration and may mean one thing only."""
    taken: dict[str, Any] = dict.fromkeys(
        ("data", "model", *RECORDED, *RECORDED.values(), "dataset", "algorithms")
    )
    taken |= dict.fromkeys(config.Run.__annotations__)
    for name, kind in algorithms:
        if taken.setdefault(name, kind) is not kind:
            raise ValueError(f"the name {name!r} of an algorithm is taken; rename its file")
