"""A run's folder, opened: its files are read once, and what is wrong with one is told by its name.

Resuming, loading, predicting, exporting, `--init`, sweeps and comparisons all look at a run through
`RunFolder`. Importing it does not load torch, so that comparing stays quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_selmix.common.config import compose, fingerprint, flatten
from ssl_selmix.common.names import short_name
from ssl_selmix.common.paths import expanded
from ssl_selmix.common.text import value
from ssl_selmix.runs import released
from ssl_selmix.runs.results import Classes, Manifest, Results, Stage, checked

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_selmix.runs.weights import Predictor

Source = str | os.PathLike[str]
CONFIG, MANIFEST, RESULTS = "config.yaml", "manifest.json", "results.json"
ENVIRONMENT = "environment.json"
FINETUNE = "given to finetune"  # the data set of a folder that `finetune` wrote
SCORES = "validation.npz"  # in such a folder: what its model says of the validation images
BOUND = (CONFIG, MANIFEST, ENVIRONMENT)  # of whose content results.json has the digests
# What manifest.json says beside images, split and labels. The command: how the split was asked for
# first; it may be asked otherwise.
BESIDE = ("schema", "run_id", "preprocessing", "command", "copies")
RUN_FILES = (*BOUND, RESULTS, "log.txt")
STAGE_FILES = (
    *("model.pt", "last.pt", "between.pt", "best.pt", "previous.pt"),
    "metrics.jsonl",
)


class RunError(ValueError):
    """A folder that holds no run, or a file of a run that cannot be so."""


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Whatever is wrong with what a file says is told with its name.

    Raises:
        RunError: in place of the error.
    """
    try:
        yield
    except RunError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise RunError(f"{file} is damaged ({why[:200]}); restore it") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error


def _yaml(text: str) -> Any:
    from yaml import YAMLError

    try:
        return value(text)
    except YAMLError as error:
        raise ValueError(f"it is no YAML: {error}") from error
    except OSError as error:  # OmegaConf's answer to a lone number
        raise ValueError("it has no sections") from error


def seal_of(results: Mapping[str, Any]) -> str:
    """The digest by which a change of results.json is noticed: of all that it says beside."""
    return fingerprint({key: value for key, value in results.items() if key != "sha256"})


def split_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of images, split and labels: `manifest_sha256` is its digest."""
    return {key: value for key, value in manifest.items() if key not in BESIDE}


def images_of(manifest: Mapping[str, Any]) -> str:
    """The digest of what `finetune` knows of a caller's images: `manifest_sha256` of its results.

    They have no names and may be decoded anew: labels and sizes tell them.
    """
    shape = tuple(manifest["image_shape"])
    return fingerprint(manifest["labels"], manifest["unlabeled"], shape)


def sha256_of_file(file: Path) -> str:
    """The digest of its bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class RunFolder:
    """What a run left in its folder.

    Raises:
        RunError: at the first look at a file that is missing or damaged; names it.
    """

    def __init__(self, path: Source) -> None:
        self.path = expanded(path)

    def text(self, name: str) -> str | None:
        """Content of a file of the run; None if it is not there."""
        file = self.file(name)
        try:
            return file.read_bytes().decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunError(f"{file} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise RunError(f"{file} is damaged ({error}); restore it") from error

    def bytes(self, name: str) -> bytes:
        """Content of a log."""
        return self.file(name).read_bytes()

    def lines(self, name: str) -> list[str]:
        """Lines of a log; a killed run may have cut the last one, even within a character."""
        return self.bytes(name).decode("utf-8", "replace").splitlines()

    def has(self, name: str) -> bool:
        """Whether the run has this file."""
        return self.file(name).is_file()

    def file(self, name: str) -> Path:
        """Where a file of the run lies, or would."""
        return self.path / name

    def content(self, name: str) -> Any:
        """What a file of the run holds, JSON or YAML; unchecked."""
        if (text := self.text(name)) is None:
            raise RunError(f"{self.path} is no run of ssl_selmix; it has no {name}")
        with named(self.file(name)):
            return _yaml(text) if name.endswith("yaml") else _json(text)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What ran: the sections of config.yaml."""
        found = self.content(CONFIG)
        with named(self.file(CONFIG)):
            if not isinstance(found, dict):
                raise ValueError("it has no sections")
        self._check_bound(CONFIG, found)
        return {str(key): value for key, value in found.items()}

    def _check_bound(self, name: str, found: Any) -> None:
        """Refuse a file that is not the one of which results.json has the digest.

        Raises:
            RunError: it was changed, or is of another run.
        """
        try:
            told = self.content(RESULTS)["files"][name] if self.has(RESULTS) else None
        except (RunError, LookupError, TypeError):  # damaged, which `results` tells, or of old runs
            return
        if told in (None, fingerprint(found)):
            return
        self._check_ids()
        raise RunError(
            f"{self.file(name)} is damaged (its content is not what {RESULTS} has the digest of: "
            "it was changed, or is of another run); restore it"
        )

    def _check_ids(self) -> None:
        """Refuse a manifest and results that say themselves that they are of two runs.

        Raises:
            RunError: they are.
        """
        if self.has(MANIFEST) and self.has(RESULTS):
            found, content = self.results, self.content(MANIFEST)
            if isinstance(content, dict) and content.get("run_id") not in (None, found.run_id):
                raise RunError(
                    f"{self.file(RESULTS)} is of another run than {MANIFEST}; restore it"
                )

    def digests(self) -> dict[str, str]:
        """Digests of the content of the files that results.json is bound to."""
        return {name: fingerprint(self.content(name)) for name in BOUND if self.has(name)}

    def leftovers(self) -> str:
        """A file that only a run that began to train has; "" if there is none."""
        names = [RESULTS] if self.has(RESULTS) else []
        if not names and self.path.is_dir():
            names = [f"{file.parent.name}/{file.name}" for file in self.path.glob("[0-9]*-*/*.pt")]
        return min(names, default="")

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted key."""
        return flatten(self.config)

    @property
    def network(self) -> str:
        """The name of the network."""
        with named(self.file(CONFIG)):
            return str(self.settings["model.name"])

    @property
    def precision(self) -> str:
        """In what the body of the network computed when the run was measured."""
        return str(self.config.get("precision", "fp32"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, whose images have a shape, a normalisation and a preprocessing."""
        content = self.content(MANIFEST)
        with named(self.file(MANIFEST)):
            checked(Manifest, content)
            self._check_bound(MANIFEST, content)
            # Version 0.1 recorded none.
            return content if "preprocessing" in content else released.completed(content)

    @cached_property
    def results(self) -> Results:
        """results.json; what version 0.1 did not write into it is taken from the other files."""
        return self.results_of(self.content(RESULTS))

    def results_of(self, content: Any) -> Results:
        """The results that the content of results.json says."""
        with named(self.file(RESULTS)):
            found = checked(Results, released.numbered(content))
            if content.get("sha256") not in (None, seal_of(content)):
                raise ValueError("its content is not what its SHA-256 tells; it was changed")
        if "schema" not in content:
            self._complete(found)
        return found

    def _complete(self, results: Results) -> None:
        if self.has(MANIFEST):
            content = self.content(MANIFEST)
            with named(self.file(MANIFEST)):
                released.add_classes(results, checked(Classes, content))
        with named(self.file(CONFIG)):
            released.add_settings(results, self.config if self.has(CONFIG) else {})
        released.add_tail(results)

    @property
    def stages(self) -> list[Stage]:
        """The finished stages; none if results.json is not there yet."""
        return self.results.stages if self.has(RESULTS) else []

    @property
    def run_id(self) -> str:
        """Identity of the run; that of version 0.1 is a digest of its results."""
        written = self.manifest.get("run_id") if self.has(MANIFEST) else None
        return str(written or self.results.run_id)

    @property
    def of_finetune(self) -> bool:
        """Whether `finetune` wrote the folder."""
        return self.has(RESULTS) and self.results.dataset == FINETUNE

    def scores(self) -> Path:
        """The file of what a model of `finetune` says of the validation images.

        Raises:
            RunError: it is missing, or is not the one that results.json tells of.
        """
        file = self.file(SCORES)
        if not file.is_file():
            raise RunError(f"{self.path} has no {SCORES}; repeat finetune with another out=")
        if sha256_of_file(file) != (self.results.files or {}).get(SCORES):
            raise RunError(f"{file} is not the file that {RESULTS} tells of; restore it")
        return file

    @property
    def planned(self) -> int:
        """How many stages the run is to have."""
        return len(self.config.get("algorithms") or self.stages)

    @property
    def stage(self) -> str:
        """Which stage kept the model, in words."""
        done, missing = self.stages, " (unfinished: --resume continues the run)"
        told = f"stage {len(done)} of {self.planned}, {done[-1].algorithm}"
        return told + (missing if len(done) < self.planned else "")

    def place(self, index: int) -> Path:
        """Folder of a stage, counted from 0."""
        return self.path / f"{index + 1}-{self.stages[index].algorithm}"

    def check(self) -> None:
        """Refuse files that do not belong together; those that are missing are not looked at.

        Raises:
            RunError: names the file that was changed or is of another run.
        """
        if not self.has(RESULTS):
            return
        results = self.results
        self._check_ids()
        if self.has(MANIFEST):
            _ = self.manifest
            content = self.content(MANIFEST)
            digest = images_of if self.of_finetune else lambda found: fingerprint(split_of(found))
            if digest(content) != results.manifest_sha256:
                raise RunError(
                    f"{self.file(MANIFEST)} describes other images or another split than "
                    f"{RESULTS} was measured on: one of them was changed, or is of another run; "
                    "restore it"
                )
        if self.has(CONFIG):
            self._check_settings(results)
        if self.has(ENVIRONMENT):
            self._check_bound(ENVIRONMENT, self.content(ENVIRONMENT))

    def _check_settings(self, results: Results) -> None:
        """Refuse results of stages that the configuration does not plan."""
        config = self.config
        with named(self.file(CONFIG)):
            names = [short_name(str(name)) for name in config["algorithms"]]
            told = {"dataset": results.dataset, "seed": results.seed}
            found = {key: config[key] for key in told}
            found |= {f"stage {i}": name for i, name in enumerate(names, 1)}
        for i, stage in enumerate(results.stages, 1):
            told[f"stage {i}"] = stage.algorithm
            section = config.get(stage.algorithm)
            for key, given in (stage.settings or {}).items():
                if isinstance(section, dict) and key in section:
                    told[f"{stage.algorithm}.{key}"] = given
                    found[f"{stage.algorithm}.{key}"] = section[key]
        for key, given in told.items():
            if given != found.get(key):
                raise RunError(
                    f"{self.file(RESULTS)} is of another run than {CONFIG}: {key} is {given} in "
                    f"the first and {found.get(key)} in the second; restore it"
                )

    def weights(self) -> dict[str, Tensor]:
        """The network that the last finished stage handed on, by the names of its tensors.

        Raises:
            RunError: no stage is finished, its weights are missing, damaged or others, or another
                file of the run is not its own.
        """
        from ssl_selmix.runs import weights
        from ssl_selmix.training import checkpoint

        self.check()
        if not self.stages:
            raise RunError(
                f"{self.path} has no finished stage yet: give the folder of a run that came to an "
                "end, or --resume it first"
            )
        stage, place = self.stages[-1], self.place(len(self.stages) - 1)
        keep = self.settings.get(f"{stage.algorithm}.keep", "best")
        file = next(
            (f for f in (place / weights.HANDED_ON, place / f"{keep}.pt") if f.exists()), None
        )
        if file is None:
            raise RunError(
                f"{place} has no {weights.HANDED_ON}, the weights of the run; restore it"
            )
        found = weights.of_checkpoint(file)
        if stage.handed_on_sha256 not in (None, checkpoint.digest(found)):
            raise RunError(
                f"{file} has not the weights that {self.path / RESULTS} tells of; restore it, or "
                "--resume the run, which makes it from the other checkpoints"
            )
        if stage.handed_on_sha256 is None:  # of version 0.1
            weights.check_alike(file, [place / name for name in ("best.pt", "last.pt")])
        return found

    def last_model(self) -> Predictor:
        """The model that the last finished stage kept, in fp32 on the CPU, ready to predict."""
        from ssl_selmix import models
        from ssl_selmix.runs import weights

        state = self.weights()
        with named(self.file(CONFIG)):
            known = {f"model.{f.name}" for f in dataclasses.fields(models.Config)}
            told = {key: value for key, value in self.settings.items() if key in known}
            model = compose({"model": models.Config}, [(CONFIG, told)])[0]["model"]
        with named(self.place(len(self.stages) - 1) / weights.HANDED_ON):
            return weights.predictor(model, self.manifest, state)

    def owns(self, path: Path) -> bool:
        """Whether a file is one of those that a run consists of."""
        place, run = path.resolve(), self.path.resolve()
        return (place.parent == run and place.name in RUN_FILES) or (
            place.parent.parent == run and place.name in STAGE_FILES
        )


def open_run(run: Source) -> RunFolder:
    """A run that has finished a stage, its files looked at.

    Raises:
        RunError: the folder is no finished run, or its files are damaged.
    """
    opened = RunFolder(run)
    for name in (CONFIG, MANIFEST):
        if not opened.has(name) and opened.of_finetune:
            raise RunError(
                f"{opened.path} was written by finetune, and its network has no name by which it "
                f"could be built: build it and load_state_dict(torch.load("
                f"{str(opened.path / 'model.pt')!r})), or train a run from it with --init "
                f"{opened.path / 'model.pt'}; result.export(...) writes .onnx and .pt2 files"
            )
        if not opened.has(name):
            raise RunError(f"{opened.path} is no run of ssl_selmix; it has no {name}")
    assert opened.network and opened.manifest
    if not opened.has(RESULTS):
        raise RunError(f"{opened.path} has no finished stage yet; --resume the run first")
    if not opened.stages:
        raise RunError(f"{opened.path / RESULTS} is damaged (it has no finished stage); restore it")
    opened.check()
    return opened


def run_around(path: Path) -> RunFolder | None:
    """The run that a path leads into: its folder, a stage's, or a file in one; None if no run."""
    found = (RunFolder(folder) for folder in (path, *path.parents[:2]))
    return next((run for run in found if run.has(CONFIG) and run.has(MANIFEST)), None)


def check_free(path: Path, force: bool) -> None:
    """Refuse to write over what is there without --force, and over some things in any case.

    Raises:
        ValueError: a folder, a device or pipe, what a run consists of, or a file without `force`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    place = path.resolve()  # a link to a file is that file
    for run in map(RunFolder, (place.parent, place.parent.parent)):
        if place.exists() and run.has(CONFIG) and run.owns(place):
            raise ValueError(f"{place} belongs to the run {run.path}; write to another file")
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} is no regular file; write to one")
    if place.exists() and not force:
        raise ValueError(f"{path} exists and is not overwritten; add --force")
