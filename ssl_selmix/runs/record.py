"""What training writes into a run's folder: by the first process only, and read back by all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import Tensor

from ssl_selmix import models
from ssl_selmix.common import config, processes
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import warn
from ssl_selmix.common.locks import locked
from ssl_selmix.common.processes import World
from ssl_selmix.common.text import dump
from ssl_selmix.data import copies, manifest
from ssl_selmix.runs import environment, weights
from ssl_selmix.runs.folder import CONFIG, MANIFEST, RESULTS, RunError, RunFolder, seal_of
from ssl_selmix.runs.inputs import Inputs, check_images
from ssl_selmix.runs.plan import PLACES, Plan
from ssl_selmix.runs.results import SCHEMA, Manifest, Results, Stage, checked
from ssl_selmix.training.log import SilentLog, StageLog

T = TypeVar("T")
LOCK = ".train.lock"
BUSY = "wait for it, end it, or use another --out"
OTHER_OUT = "use another --out for a new run"
OTHER_IMAGES = "--resume needs the same images, use another --out for these"


class Record:
    """The folder of a run in training. Of several processes the first one reads and writes it."""

    def __init__(self, plan: Plan, world: World | None, held: ExitStack) -> None:
        """Open the folder and lock it for as long as `held` says."""
        self._plan, self._world, self._held = plan, world, held
        self._folder = RunFolder(plan.out)
        self.resumes = self._by_first(self._open)

    def _by_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; its mistakes too."""
        return processes.from_first(make, self._world)

    @property
    def _writes(self) -> bool:
        return self._world is None or self._world.rank == 0

    def _open(self) -> bool:
        """Whether this resumes a run, whose configuration must be this one.

        Raises:
            ValueError: the folder is taken, or the run in it has another configuration.
        """
        folder, plan = self._folder.path, self._plan
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; choose another --out")
        self._check_free()
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        self._held.callback(_remove_empty, made)  # after the lock in it, which is left first
        self._held.enter_context(locked(folder / LOCK, f"trains in {folder}", remedy=BUSY))
        self._check_free()  # What held the lock before may have trained here.
        if not (plan.request.resume and self._folder.has(CONFIG)):
            if left := self._folder.leftovers():
                raise ValueError(
                    f"{folder} has no {CONFIG}, by which its run could be resumed, and {left} of "
                    f"one; restore {folder / CONFIG}, or {OTHER_OUT}"
                )
            # Also a run that was killed before its set-up was written.
            folder.mkdir(parents=True, exist_ok=True)
            return False
        changed = config.differences(_or_another(lambda: self._folder.config), plan.identity())
        # Files that moved are the same files as long as their digests are.
        if changed := [line for line in changed if line.partition(":")[0] not in PLACES]:
            raise ValueError(
                f"--resume needs the configuration that {folder} was started with; it differs in "
                f"{'; '.join(changed)}; {OTHER_OUT}"
            )
        return True

    def _check_free(self) -> None:
        folder = self._folder.path
        taken = folder.exists() and any(path.name != LOCK for path in folder.iterdir())
        if taken and not self._plan.request.resume:
            raise ValueError(
                f"{folder} exists and is not overwritten; add --resume to continue it, or --out DIR"
            )

    @property
    def how_to_go_on(self) -> str:
        """What to do after the run was ended."""
        if self._folder.has(CONFIG):
            return "repeat the command with --resume to go on"
        return "nothing was saved yet; repeat the command"

    def begin(self, inputs: Inputs, out: Console) -> Results:
        """Write what the run is, or check that it is the one in the folder; its results so far.

        Raises:
            ValueError: the folder was made with other images or another split, or is damaged.
        """
        if self.resumes:
            self._by_first(lambda: self._check(inputs, out))
        else:
            self._by_first(lambda: self._set_up(inputs))
        return self._by_first(lambda: self._results(inputs))

    def _set_up(self, inputs: Inputs) -> None:
        """Write manifest, environment, and last the configuration."""
        folder, plan = self._folder.path, self._plan
        told = inputs.extra | {
            "schema": SCHEMA,
            "run_id": uuid.uuid4().hex,  # draws from the machine, not from the run's generators
            "preprocessing": inputs.preprocessing,
            "command": plan.command,
            "copies": inputs.copies,
        }
        if line := copies.told(inputs.copies):
            warn(line)
        checked(Manifest, told)
        manifest.save(inputs.split, folder / MANIFEST, inputs.images_sha256, **told)
        _write_json(folder / "environment.json", environment.describe(plan.device))
        # Last: a directory with config.yaml is complete enough to be resumed.
        write_atomically(folder / CONFIG, dump(plan.identity()).encode())

    def _check(self, inputs: Inputs, out: Console) -> None:
        """Refuse other images; say so if the code is another: the run's end may then differ."""
        _or_another(lambda: self._folder.manifest)
        _or_another(self._folder.check)
        check_images(self._plan, inputs.sha256, OTHER_IMAGES)
        try:
            before = json.loads(self._folder.text("environment.json") or "")["commit"]
        except (ValueError, KeyError, TypeError):
            return
        if before != (now := environment.commit()):
            out.print(f"warning: started at commit {before}, resumed at {now}", style="yellow")

    def _results(self, inputs: Inputs) -> Results:
        """What results.json holds already, or its beginning."""
        plan, file = self._plan, self._folder.path / RESULTS
        if plan.request.resume and file.exists():
            found = _or_another(lambda: self._folder.results)
            if found.manifest_sha256 != inputs.sha256:
                raise ValueError(
                    f"{file} was measured on other images or another split; {OTHER_IMAGES}"
                )
            return found
        beginning: dict[str, Any] = {
            "schema": SCHEMA,
            "run_id": RunFolder(plan.out).manifest.get("run_id") or inputs.sha256[:32],
            "dataset": plan.request.dataset,
            "seed": plan.run.seed,
            "manifest_sha256": inputs.sha256,
            "images_sha256": inputs.images_sha256,
            **({"init_sha256": plan.init_sha256} if plan.request.init else {}),
            "counts": inputs.counts,
            "class_names": list(inputs.data.class_names),
            "tail": inputs.data.task.tail,
            "model": config.deciding(plan.plain["model"], "model."),
            **({"pretrained": plan.pretrained.plain()} if plan.pretrained else {}),
            "protocol": {"split": {}, "checkpoint_rule": {}, "steps": []},
            "stages": [],
        }
        return checked(Results, beginning)

    def log(self, index: int, inputs: Inputs, images: int, out: Console) -> StageLog:
        """Where a stage writes how it goes; silent in all processes but the first."""
        stage = self._plan.stages[index]
        if not self._writes:
            return SilentLog()
        place, names = self._folder.path / stage, inputs.data.class_names
        return StageLog(place, stage, names, out, images, pictures=self._plan.run.pictures)

    def add(
        self, results: Results, stage: dict[str, Any], net: models.Classifier, sha: str
    ) -> None:
        """Write a finished stage: what it hands on, then its results.

        Args:
            results: of the run, to which the stage is added.
            stage: what results.json is to say of it.
            net: what it hands on.
            sha: fingerprint of the stage.
        """
        place = self._folder.path / self._plan.stages[len(results.stages)]
        results.stages.append(checked(Stage, stage))
        if self._writes:
            weights.save(net, place, sha)
            log = place / "metrics.jsonl"
            results.stages[-1].log_sha256 = sha256(log.read_bytes()).hexdigest()
            results.files = self._folder.digests()
            results.sha256 = seal_of(results.plain())
            _write_json(self._folder.path / RESULTS, results.plain())

    def handed_on(self, index: int, recorded: str, sha: str) -> dict[str, Tensor] | None:
        """What a finished stage handed on, from its file; None if that is missing or damaged.

        Args:
            index: of the stage, from 0.
            recorded: the digest of the weights in results.json.
            sha: fingerprint of the stage.
        """
        place = self._folder.path / self._plan.stages[index]
        return self._by_first(lambda: weights.handed_on_in(place, recorded, sha))

    def repair(self, index: int, net: models.Classifier, sha: str) -> None:
        """Write anew what a finished stage handed on."""
        if self._writes:
            weights.save(net, self._folder.path / self._plan.stages[index], sha)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for a run that began nothing, the innermost first."""
    with suppress(OSError):  # it is not empty: the run began
        for folder in folders:
            folder.rmdir()


def _or_another(read: Callable[[], T]) -> T:
    """What is read; a remedy more, if it is damaged."""
    try:
        return read()
    except RunError as error:
        raise RunError(f"{error}, or use another --out") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that is whole or absent."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
