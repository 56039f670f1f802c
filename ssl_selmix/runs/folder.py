"""The folder of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ssl_selmix import models
from ssl_selmix.common import config, text
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.paths import expanded
from ssl_selmix.runs import environment, load
from ssl_selmix.runs.inputs import Inputs, check_images
from ssl_selmix.runs.plan import PLACES, Plan


def open_directory(plan: Plan) -> dict[str, Any] | None:
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
        before = text.load(written)
    except ValueError as error:
        raise ValueError(f"{written} is damaged; restore it, or use another --out") from error
    changed = config.differences(before, plan.identity())
    # Files that moved are the same files as long as their digests are.
    if changed := [line for line in changed if line.partition(":")[0] not in PLACES]:
        raise ValueError(
            f"--resume needs the configuration that {folder} was started with; it differs in "
            f"{'; '.join(changed)}; use another --out for a new run"
        )
    return before


def write_setup(plan: Plan, inputs: Inputs) -> None:
    """Write what a run is: manifest, environment, and last its configuration."""
    said = {**inputs.extra, "command": plan.request.command}
    inputs.split.save(plan.out / "manifest.json", inputs.images_sha256, **said)
    write_json(plan.out / "environment.json", environment.describe(plan.device))
    # Last: a directory with config.yaml is complete enough to be resumed.
    write_atomically(plan.out / "config.yaml", text.dump(plan.identity()).encode())


def check_resumed(plan: Plan, images: str, out: Console) -> None:
    """Refuse to resume on other images; tell if the code is another.

    Raises:
        ValueError: the folder was made with other images or another split.
    """
    remedy = "--resume needs the same images, use another --out for these"
    check_images(plan, images, remedy)
    _compare_code(plan, out)


def _compare_code(plan: Plan, out: Console) -> None:
    """Say so if the run was started with other code: its end may then differ."""
    try:
        before = json.loads((plan.out / "environment.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return
    if before != (now := environment.commit()):
        out.print(f"warning: started at commit {before}, resumed at {now}", style="yellow")


def results_so_far(plan: Plan, inputs: Inputs) -> dict[str, Any]:
    """What results.json holds already, or its beginning.

    Raises:
        ValueError: the file is damaged, or was measured on other images.
    """
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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that is whole or absent."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


DAMAGED = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Opened:
    """A finished run: its model in fp32 on the CPU, its settings by dotted key, its manifest."""

    model: load.Predictor
    settings: dict[str, Any]
    manifest: dict[str, Any]
    algorithm: str  # of the last finished stage, whose model it is
    finished: int  # stages
    planned: int

    @property
    def precision(self) -> str:
        """In what the body of the network computed when the run was measured."""
        return str(self.settings.get("precision", "fp32"))

    @property
    def stage(self) -> str:
        """Which stage kept the model, in words."""
        missing = (
            " (unfinished: --resume continues the run)" if self.finished < self.planned else ""
        )
        return f"stage {self.finished} of {self.planned}, {self.algorithm}{missing}"


def open_run(run: Source) -> Opened:
    """Read a run's last model and what it says about its images.

    Raises:
        ValueError: the folder is no finished run, or its files are damaged.
    """
    folder = expanded(run)
    for name in ("config.yaml", "manifest.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no run of ssl_selmix; it has no {name}")
    with _named(folder / "config.yaml"):
        settings = config.flatten(text.load(folder / "config.yaml"))
        models.Config(settings["model.name"], settings["model.bn_momentum"])
    with _named(folder / "manifest.json"):
        manifest = _checked(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    if not (folder / "results.json").is_file():
        raise ValueError(f"{folder} has no finished stage yet; --resume the run first")
    with _named(folder / "results.json"):
        stages = json.loads((folder / "results.json").read_text(encoding="utf-8"))["stages"]
        algorithm = str(stages[-1]["algorithm"])
    with torch.random.fork_rng([]):  # the network is first built with random weights
        model = load.load(folder)
    planned = len(settings.get("algorithms") or stages)
    return Opened(model, settings, manifest, algorithm, len(stages), planned)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Whatever is wrong with what a file says is told with its name.

    Raises:
        ValueError: in place of the error.
    """
    try:
        yield
    except DAMAGED as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{file} is damaged ({why[:120]}); restore it") from error


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that says what shape images have and how they are normalised.

    Raises:
        ValueError: names what cannot be so.
    """
    shape, names = manifest["image_shape"], manifest["class_names"]
    if not isinstance(names, list) or len(names) < 2 or not all(type(n) is str for n in names):
        raise ValueError(f"class_names must be a list of 2 names or more, not {names!r}")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
        raise ValueError(f"image_shape must be three integers, not {shape!r}")
    if min(shape) < 1:
        raise ValueError(f"image_shape must be at least 1, not {shape!r}")
    for key in ("mean", "std"):
        given = manifest[key]
        numbers = isinstance(given, list) and all(type(x) in (int, float) for x in given)
        if not numbers or len(given) != shape[0] or not all(map(math.isfinite, given)):
            raise ValueError(f"{key} must be {shape[0]} number(s), not {given!r}")
    if min(manifest["std"]) <= 0:
        raise ValueError(f"std must be > 0, not {manifest['std']!r}")
    return manifest


RUN_FILES = ("config.yaml", "manifest.json", "environment.json", "results.json", "log.txt")
STAGE_FILES = ("model.pt", "last.pt", "best.pt", "previous.pt", "metrics.jsonl")


def check_free(path: Path, force: bool) -> None:
    """Refuse to write over what is there without --force, and over some things in any case.

    Raises:
        ValueError: a folder, a device or pipe, what a run consists of, or a file without `force`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    place = path.resolve()  # a link to a file is that file
    for names, run in ((RUN_FILES, place.parent), (STAGE_FILES, place.parent.parent)):
        if place.name in names and place.exists() and (run / "config.yaml").is_file():
            raise ValueError(f"{place} belongs to the run {run}; write to another file")
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} is no regular file; write to one")
    if place.exists() and not force:
        raise ValueError(f"{path} exists and is not overwritten; add --force")
