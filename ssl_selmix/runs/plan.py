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
from ssl_selmix.common import config, fields, plugins, processes
from ssl_selmix.common.console import tell
from ssl_selmix.common.names import short_name
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import extraction, manifest
from ssl_selmix.models import execution, pretrained
from ssl_selmix.models.backbones import FEATURES
from ssl_selmix.runs import settings as files_of
from ssl_selmix.runs import views
from ssl_selmix.runs.folder import CONFIG, RunError, RunFolder, named
from ssl_selmix.runs.load import begin_of
from ssl_selmix.runs.load import read as read_weights
from ssl_selmix.runs.pretrained import Pretrained
from ssl_selmix.training import checkpoint, machine

NO_PRESET = "none"
# Sections by the name that version 0.1 gave them. Settings may use it, and what a run records (its
# config.yaml, and the fingerprints in its checkpoints) does, so that older runs can be resumed.
RECORDED = {"views": "step"}
PLACES = ("init.path", "data.manifest.path", "model.pretrained")
# What another machine may have otherwise than that of the run.
MAY_CHANGE = (
    # Commands that neither draw nor save checkpoints.
    *(key for key in config.MACHINE_KEYS if key not in ("pictures", "checkpoint_minutes")),
    *("precision", *config.PLACES_OF_DATA, "data.download"),
)
NOT_SETTINGS = (
    "init",
    "code",
    "processes",
    "pretrained",
)  # what config.yaml records beside settings


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    algorithms: Sequence[str]
    dataset: str = ""  # empty: that of the preset or the configuration, or digits
    preset: str | None = None  # None: the one named like the dataset, if there is one
    init: Path | None = None  # weights to start from: a run's folder or a file
    out: Path | None = None  # None: runs/<dataset>-<algorithms>-seed<seed>
    resume: bool = False
    settings: Sequence[str] = field(default_factory=tuple)  # key=value
    recorded: Mapping[str, Any] = field(default_factory=dict)  # all settings of a run, by key
    deadline: float | None = None  # by time.monotonic(): when to save and end
    config: Path | None = None  # a YAML file of settings, such as that of a run to repeat
    trust: Sequence[str] = field(default_factory=tuple)  # its code that may be executed

    @property
    def command(self) -> str:
        """The command line that asks for the same, without folders and settings of the machine."""
        words = ["ssl-selmix", "train", "--algo", *self.algorithms[:1]]
        words += [word for name in self.algorithms[1:] for word in ("--then", name)]
        words += ["--dataset", self.dataset]
        words += ["--preset", self.preset] if self.preset else []
        # A manifest can be published: it says nothing about the folders of a machine.
        own = (*config.MACHINE_KEYS, *config.PLACES_OF_DATA, "data.manifest")
        return shlex.join([*words, *(s for s in self.settings if s.partition("=")[0] not in own)])


class Plan:
    """A request with its plug-ins found and its configuration checked; reads no image."""

    def __init__(self, request: Request) -> None:
        init, out = (expanded(p) if p is not None else None for p in (request.init, request.out))
        dataset, own = plugins.parted(request.dataset)
        words = [*own, *request.settings]
        asked = replace(request, init=init, out=out, dataset=dataset, settings=words)
        request, self.files = _completed(asked)
        self.request = request
        self.notes: list[str] = []  # what the user should know of them
        clash = _clash(asked, self.files)
        if clash and not request.resume:
            raise ValueError(clash)
        self._check_code(asked)
        names = enumerate(request.algorithms)
        self.algorithms = [load_algorithm(name, first=not i) for i, name in names]
        _check_names(self.algorithms)
        self.dataset = plugins.dataset(request.dataset)
        sections: dict[str, type[Any]] = {"data": self.dataset.Config, "model": models.Config}
        sections |= {"views": views.Config, "features": extraction.Config}
        sections |= {name: kind.Config for name, kind in self.algorithms}
        self.layers = config.read(sections, self._layers(sections))
        self.manifest_sha256 = self._take_manifest()
        self.config, self.plain = config.compose(sections, self.layers)
        self.run: config.Run = self.config[""]
        if request.resume and (begun := config.as_began(self._written(), sections)):
            self.layers[:0] = config.read(sections, [("the run", begun)])
            self.config, self.plain = config.compose(sections, self.layers)
        self.device = machine.find_device(self.run.device)
        # What `auto` chose decides the results, so that it is what the run records.
        self.run.precision = execution.precision_of(self.run.precision, self.device)
        self.plain["precision"] = self.run.precision
        if clash and self._recorded_dataset() != request.dataset:
            raise ValueError(clash)
        self._check_views()
        self._take_input()
        self.cached = self._takes_features()

    @cached_property
    def init(self) -> dict[str, Tensor]:
        """The weights of --init, read when first asked for."""
        return read_weights(self.request.init) if self.request.init else {}

    @cached_property
    def init_sha256(self) -> str:
        """Their digest; "" without --init.

        Raises:
            ValueError: a configuration names other weights of that place.
        """
        found = checkpoint.digest(self.init) if self.request.init else ""
        for file in self.files:
            told = file.init.get("sha256", found)
            if file.init.get("path") == str(self.request.init) and told != found:
                raise ValueError(
                    f"{self.request.init} has not the weights that {file.origin} was trained from; "
                    "restore it, or name others with --init"
                )
        return found

    @cached_property
    def begun(self) -> dict[str, Tensor]:
        """What the stage that made the weights of --init began with; {} if no stage asks for it."""
        if not self.request.init or not self.algorithms[0][1].needs_origin:
            return {}
        return begin_of(self.request.init, self.init_sha256)

    def _check_views(self) -> None:
        """Refuse statistics of the labeled images for pseudo-labels that take no batch's.

        Raises:
            ValueError: names both settings.
        """
        for name, _ in self.algorithms if self.config["views"].with_labeled else ():
            if getattr(self.config[name], "pseudo_labels", "") == "teacher":
                raise ValueError(
                    "views.with_labeled=true is for pseudo-labels with the statistics of a batch, "
                    f"and {name}.pseudo_labels=teacher takes none; leave one of them out"
                )

    def _take_input(self) -> None:
        """Let a pre-trained network say what its images are, unless the run has recorded it."""
        if self.config["model"].starts_trained and not self.request.recorded:
            self.config["model"] = model = pretrained.resolved(self.config["model"])
            self.plain["model"] |= {name: getattr(model, name) for name in pretrained.RESOLVED}

    def _takes_features(self) -> bool:
        """Whether the run trains on features that its body makes once; records which it is.

        Raises:
            ValueError: it is to, and the body changes, or is no body.
        """
        model, features = self.config["model"], self.config["features"]
        pixels = {n: why for n, kind in self.algorithms if (why := self._needs_pixels(n, kind))}
        starts = model.starts_trained or self.request.init is not None
        if features.mode == "cached":
            self._check_cached(pixels, starts)
        elif features.mode == "auto":
            ready = model.tune == "head" and starts and not pixels
            features.mode = "cached" if ready else "none"
        self.plain["features"]["mode"] = features.mode
        return bool(features.mode == "cached")

    def _needs_pixels(self, name: str, kind: type[Algorithm]) -> str:
        return kind.needs_pixels(self.config[name])

    def _check_cached(self, pixels: Mapping[str, str], starts: bool) -> None:
        model = self.config["model"]
        if model.name == FEATURES:
            raise ValueError("features=cached is for images, and these are features; leave it out")
        if model.tune != "head":
            raise ValueError(
                f"features=cached needs a body that stays as it is, and model.tune={model.tune} "
                "changes it; set model.tune=head"
            )
        if not starts and not self.request.recorded:
            raise ValueError(
                "features=cached needs a body that was trained before; set model.pretrained, or "
                "start from a run with --init"
            )
        for name, why in pixels.items():
            raise ValueError(
                f"{name} cannot work on features: {why}; choose another method, or features=none"
            )

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that the body starts from; None: random ones, or those of --init."""
        model = self.config["model"]
        if not model.starts_trained or self.request.init:
            return None
        run, recorded = RunFolder(self.out), ""
        if (self.request.resume or self.request.recorded) and run.has(CONFIG):
            recorded = str((run.config.get("pretrained") or {}).get("sha256", ""))
        return Pretrained(model, recorded)

    def _layers(self, sections: Mapping[str, type[Any]]) -> list[config.Layer]:
        layers: list[config.Layer] = []
        if self.request.recorded:
            layers.append(("the run", config.without_retired(self.request.recorded, sections)))
        # A preset serves many algorithms; its lines about others do not concern this run.
        layers += [(file.origin, self._meant(file.of(sections), file)) for file in self.files]
        layers.append(("command line", config.parse_overrides(self.request.settings)))
        return [(origin, _by_own_names(found)) for origin, found in layers]

    def _meant(self, found: dict[str, Any], file: files_of.SettingsFile) -> dict[str, Any]:
        """Without what a preset says of a method of which the run has `Algorithm.after`."""
        if file.algorithms:
            return found
        shipped = plugins.available("algorithm")
        others = {
            name
            for name, kind in self.algorithms
            if name in shipped and kind.__module__.rpartition(".")[2] != name
        }
        return {key: v for key, v in found.items() if key.partition(".")[0] not in others}

    def _written(self) -> dict[str, Any]:
        """The flat settings in the folder to resume; none if they cannot be read, as is told."""
        try:
            return config.flatten(RunFolder(self.out).config)
        except (RunError, OSError):
            return {}

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
        found = str(written["indices_sha256"])
        for file in self.files:
            if file.manifest_sha256 not in ("", found) and file.settings["data.manifest"] == path:
                raise ValueError(
                    f"data.manifest={path} is not the split that {file.origin} was trained on; "
                    "restore it, or name another with data.manifest"
                )
        return found

    def _check_code(self, asked: Request) -> None:
        """Refuse code that a configuration names and the caller does not.

        Raises:
            ValueError: says what to add.
        """
        if not asked.config:
            return  # A preset names no code but objectives, and is named by the caller.
        file, dataset = self.files[-1], self.request.dataset
        typed = {key.partition("=")[0] for key in asked.settings}
        kept = {key: value for key, value in file.settings.items() if key not in typed}
        own = [*files_of.code_in(kept), *([] if asked.dataset else [dataset])]
        own += [] if asked.algorithms else [name.partition(":")[0] for name in file.algorithms]
        shipped = {*plugins.available("algorithm"), *plugins.available("dataset")}
        for name in dict.fromkeys(own):
            if name not in shipped:
                _check_trust(f"{file.origin} names", name, file.code.get(name), asked.trust)
        world = processes.world()
        if file.processes != (count := world.size if world else 1):
            told = f"is of {file.processes} processes: sums over {count} are rounded otherwise"
            self.notes.append(f"{file.origin} {told}")

    def _recorded_dataset(self) -> str:
        """The data set of the run that is to be resumed; "" if there is none."""
        run = RunFolder(self.out)
        try:
            return str(run.config["dataset"]) if run.has(CONFIG) else ""
        except (RunError, LookupError):
            return ""

    @property
    def command(self) -> str:
        """The command line that asks for the same, without folders and settings of the machine."""
        told = [
            f"{key}={fields.typed(value)}"
            for origin, found in self.layers
            if origin.startswith("config ")
            for key, value in found.items()
        ]
        return replace(self.request, settings=[*told, *self.request.settings]).command

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
        if self.pretrained is not None:
            plain["pretrained"] = {"sha256": self.pretrained.sha256}
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
        plain = config.deciding(self.plain)
        # Before there were features, no run had a body that stays as it is.
        if not self.cached:
            features = {"features": {"mode": "none"}} if self.config["model"].tune == "head" else {}
            plain = {key: value for key, value in plain.items() if key != "features"} | features
        return {RECORDED.get(key, key): value for key, value in plain.items()}

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
        parts |= {"features": plain["features"]} if "features" in plain else {}
        parts |= {
            k: config.as_released(plain[k]) for k in used
        }  # as in checkpoints of older versions
        if self.pretrained is not None:  # wherever they come from
            parts["model"] = {**parts["model"], "pretrained": self.pretrained.sha256}
        if self.manifest_sha256:
            parts["data"] = {**parts["data"], "manifest": self.manifest_sha256}
        origin = [images, self.init_sha256, self._code(), self._processes()]
        origin += [checkpoint.digest(self.begun)] if self.begun else []
        return config.fingerprint(parts, self.stages[: stage + 1], *origin)


def _completed(request: Request) -> tuple[Request, list[files_of.SettingsFile]]:
    """The request with the stages, data set and weights that its files name; and those files."""
    dataset, name, files = request.dataset, request.preset, []
    if name not in (None, NO_PRESET) and not request.recorded:
        files.append(files_of.preset(str(name)))
    if request.config:
        files.append(files_of.configuration(request.config))
    dataset = next((found for found in (dataset, *(f.dataset for f in files)) if found), "digits")
    if name is None and not (request.config or request.recorded) and dataset in plugins.presets():
        files.append(files_of.preset(dataset))
    algorithms, init = request.algorithms, request.init
    if not algorithms and files:
        algorithms = files[-1].algorithms
    if not algorithms and not request.recorded:
        own = [file for file in files if name is not None or request.config]
        has = "".join(f"; {file.origin} has settings of {', '.join(file.methods)}" for file in own)
        raise ValueError(f"no algorithm; name one with --algo, such as --algo fixmatch{has}")
    if init is None and files and not request.algorithms:
        init = Path(path) if (path := files[-1].init.get("path")) else None
    return replace(request, dataset=dataset, algorithms=algorithms, init=init), files


def _clash(asked: Request, files: Sequence[files_of.SettingsFile]) -> str:
    """What to say where a file of settings is for another data set; "" if none is."""
    named = [(f"--dataset {asked.dataset}", asked.dataset)] if asked.dataset else []
    named += [(file.origin, file.dataset) for file in files if file.dataset]
    for origin, dataset in named[1:]:
        if dataset != named[0][1]:
            return (
                f"{origin} is for --dataset {dataset}, which {named[0][0]} contradicts; leave one "
                "of them out, or save the file without its line dataset and give that"
            )
    return ""


def _by_own_names(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the sections' names of today."""
    names = {old: new for new, old in RECORDED.items()}
    found = {"features.mode" if _is_mode(k, v) else k: v for k, v in found.items()}
    parted = ((*key.partition("."), value) for key, value in found.items())
    return {f"{names.get(section, section)}{dot}{rest}": v for section, dot, rest, v in parted}


def _is_mode(key: str, value: Any) -> bool:
    """Whether a setting is `features=cached`, and no group of settings in braces."""
    return key == "features" and not str(value).strip().startswith("{")


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
        left_out = {*NOT_SETTINGS, *others} - {
            "data",
            "model",
            "features",
            *RECORDED.values(),
            *shipped,
        }
        tree = {key: value for key, value in written.items() if key not in left_out}
        if tree["data"].get("manifest"):  # the run's own one holds the same split
            tree["data"]["manifest"] = str(folder / "manifest.json")
        code = dict(written.get("code") or {})
    if dataset not in plugins.available("dataset"):
        _check_trust(f"the images of {folder} come from", dataset, code.get(dataset), trust)
    # A run never recorded what is the machine's, such as a folder to write the cache to.
    recorded = {k: v for k, v in config.flatten(tree).items() if k not in config.MACHINE_KEYS}
    names = [name for name in names if name in shipped]
    return Plan(Request(names, dataset, out=folder, settings=settings, recorded=recorded))


def _check_trust(why: str, name: str, recorded: str | None, trust: Sequence[str]) -> None:
    """Refuse code of the user's own that the caller did not name, or that was changed.

    Raises:
        ValueError: says what to add, with the digests of the file and of the run.
    """
    file = Path(os.path.expanduser(name))
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    if found and recorded not in (None, found):
        raise ValueError(
            f"{why} {name}, which is not the file that the run was trained with: its SHA-256 is "
            f"{found}, and the run recorded {recorded}; give the file as it was"
        )
    digest = f"SHA-256 {found}" if found else "no file here"
    told = f"{digest}, {'as the run recorded' if recorded else 'the run recorded none'}"
    if not any(_same_place(name, trusted) for trusted in trust):
        raise ValueError(
            f"{why} {name} ({told}), code that is executed only if "
            f"you name it; look at it, then add --trust {shlex.quote(name)}"
        )
    tell(f"executing {name} ({told})")


def _same_place(one: str, other: str) -> bool:
    paths = (Path(os.path.expanduser(name)).resolve() for name in (one, other))
    return one == other or len(set(paths)) == 1


def _check_names(algorithms: Sequence[tuple[str, type[Algorithm]]]) -> None:
    """Each name is a section of the configuration and may mean one thing only."""
    taken: dict[str, Any] = dict.fromkeys(
        (
            "data",
            "model",
            "pretrained",
            "features",
            *RECORDED,
            *RECORDED.values(),
            "dataset",
            "algorithms",
        )
    )
    taken |= dict.fromkeys(config.Run.__annotations__)
    for name, kind in algorithms:
        if taken.setdefault(name, kind) is not kind:
            raise ValueError(f"the name {name!r} of an algorithm is taken; rename its file")
