"""Finds the results of runs, and joins those that `--init` started to what they came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssl_selmix.common.config import PLACES_OF_DATA, flatten
from ssl_selmix.runs import archive, released
from ssl_selmix.runs import results as schema
from ssl_selmix.runs.folder import CONFIG, RESULTS, RunError, RunFolder
from ssl_selmix.runs.results import PARTS, Results

BESIDE = ("manifest.json", "environment.json")  # JSON files of a run that hold no results
GIVEN = "given weights"  # what a stage starts from whose first stage nobody knows
PRIORS = ("estimated_prior", "estimated_prior_low", "estimated_prior_high", "true_prior")
SQUARES = ("gain_matrix", "pair_distribution")
# What runs did before they recorded it.
BEFORE = {"step": "joint", "processes": 1}
# Where images lie says nothing about which they are; their SHA-256 does.
PLACES = (*PLACES_OF_DATA, "data.manifest")
# Loaders of a user's own images all have one name.
DATA = "dataset_sha256"
RULE = "checkpoint_rule"
THEN = ", then "  # joins what stages differ in
CHANGED = "is not what the run wrote when it ended (its SHA-256 is another)"
Unit = tuple[int, str]  # seed and images: what pairs
Rows = list[dict[str, Any]]
Counts = Mapping[str, Sequence[int]]


def sha256(content: bytes) -> str:
    """The digest that results.json has of a log."""
    return hashlib.sha256(content).hexdigest()


class Log:
    """The validation rows of a stage's metrics.jsonl: those that can be used, and what cannot."""

    def __init__(
        self, run: RunFolder, name: str, num_classes: int, sha256: str | None = None
    ) -> None:
        self._run, self._name, self._k, self._sha256 = run, name, num_classes, sha256

    @property
    def note(self) -> list[str]:
        """What was left out, in a line."""
        if not (bad := self._read[1]):
            return []
        file = self._run.file(self._name)
        if bad == [CHANGED]:
            return [f"{file} {CHANGED}; its curves are left out"]
        return [f"{file}: left out {len(bad)} value(s) or row(s), such as {bad[0]}"]

    @property
    def rows(self) -> Rows:
        """The rows in order; half a row at the end is left out."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Rows, list[str]]:
        rows: Rows = []
        bad: list[str] = []
        if self._sha256 is not None and sha256(self._run.bytes(self._name)) != self._sha256:
            return [], [CHANGED]
        lines = self._run.lines(self._name)
        for i, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if i < len(lines) or "\ufffd" in line:  # the last one may be half written
                    bad.append(f"line {i}, which is no JSON")
                continue
            if isinstance(row, dict) and row.get("kind") == "validation":
                wrong = dict(self._wrong(row))
                bad += [f"line {i}, where {why}" for why in wrong.values()]
                if "step" not in wrong:
                    rows.append({key: value for key, value in row.items() if key not in wrong})
        return rows, bad

    def _wrong(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The keys whose values cannot be drawn or averaged, and why."""
        try:
            schema.Row.model_validate(row)
        except ValidationError as error:
            yield from ((str(one["loc"][0]), schema.told(one)) for one in error.errors())
        for key in row.keys() & {*PRIORS, *SQUARES}:
            sides = [row[key], *(row[key] if key in SQUARES and isinstance(row[key], list) else [])]
            if any(isinstance(side, list) and len(side) != self._k for side in sides):
                yield key, f"{key} is not of {self._k} classes"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its figures on validation and test, by its kept and its last weights."""

    algorithm: str
    steps: int | None  # None: unknown, for weights that --init gave
    kept_step: int
    seconds: float
    measured: Mapping[str, Mapping[str, Any]]  # by part
    last: Mapping[str, Mapping[str, Any]] | None  # None: not recorded
    settings: Mapping[str, Any] | None  # None: not recorded
    rule: str  # which weights are kept
    log: Log | None  # if it is there

    def same_figures(self, other: Stage) -> bool:
        """Whether both were measured alike, class by class, on both parts."""
        # Not the calibration error: its last bits depend on the machine.
        names = ("per_class_recall", "per_class_coverage")
        return all(self.measured[p][n] == other.measured[p][n] for p in PARTS for n in names)


@dataclass(frozen=True)
class Run:
    """One results.json, with the stages of the runs that it started from."""

    path: Path  # of the results
    file: Path  # that holds them: the same, or an archive
    recorded: Results
    protocol: Mapping[str, Any]
    stages: tuple[Stage, ...]
    start: Stage | None = None  # the weights that --init gave
    counts: Counts | None = None  # images of each class, by part
    class_names: tuple[str, ...] = ()
    model: Mapping[str, Any] | None = None  # settings of the network; None: not recorded

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.recorded.dataset

    @property
    def seed(self) -> int:
        """The seed."""
        return self.recorded.seed

    @property
    def images(self) -> str:
        """SHA-256 of the images and the split."""
        return self.recorded.manifest_sha256

    @property
    def data(self) -> str | None:
        """SHA-256 of all images of the data set; None: not recorded."""
        return self.recorded.images_sha256

    @property
    def unfinished(self) -> bool:
        """Whether stages are missing."""
        return len(self.recorded.protocol.steps) > len(self.recorded.stages)

    @cached_property
    def keys(self) -> dict[str, Any]:
        """All that makes the figures comparable, flat, by the names of configuration keys."""
        own = ("split", "steps", "checkpoint_rule")
        given = {k: v for k, v in self.protocol.items() if k not in own}
        split = flatten({"data": self.protocol["split"]})
        # A stage that takes no step has one network, and no rule chooses it.
        chosen = [s for s in self.stages if s.algorithm != GIVEN and s.steps != 0]
        rules = [stage.rule for stage in chosen]
        rule = THEN.join(rules if len(set(rules)) > 1 else rules[:1])
        return {
            "dataset": self.dataset,
            # Results that do not say so are not held to differ.
            **({DATA: self.data[:12]} if self.data else {}),
            "classes": len(self.class_names),
            **(BEFORE | flatten(given)),
            **({RULE: rule} if rules else {}),
            "steps": "unknown" if self.stages[0].steps is None else self.stages[0].steps,
            **{key: value for key, value in split.items() if key not in PLACES},
        }

    @property
    def chain(self) -> tuple[str, ...]:
        """Algorithms of the stages."""
        return tuple(stage.algorithm for stage in self.stages)

    @property
    def unit(self) -> Unit:
        """What pairs: the seed and the images."""
        return self.seed, self.images

    @property
    def name(self) -> str:
        """What the user calls it: the folder, or the file if it has another name."""
        path = self.path.parent if self.path.name == RESULTS else self.path
        return os.fsencode(path).decode("utf-8", "backslashreplace")


def validations(stage: Stage) -> Rows:
    """The validation rows of a stage's log."""
    return stage.log.rows if stage.log else []


def read(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs in files, folders and archives, in the order of their paths, and notes.

    Raises:
        ValueError: a path does not exist, a named file holds no results, or there is no run.
    """
    paths = list(paths)
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            notes += _below(path, runs)
        elif path.name.endswith(archive.SUFFIX) and path.is_file():
            _add(((path, run) for run in archive.read(path)), runs)
        elif path.exists():
            runs.setdefault(path.resolve(), _of_file(path))
        elif not _add(archive.below(path), runs):
            raise ValueError(f"{path} does not exist; give run folders or {RESULTS} files")
    if not runs:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}{why}")
    return list(runs.values()), notes


def _add(found: Iterable[tuple[Path, archive.ArchivedRun]], runs: dict[Path, Run]) -> bool:
    """Add the runs of archives; whether there was one."""
    made = [_run(run.file(RESULTS), file, run, run.content(RESULTS)) for file, run in found]
    for run in made:
        runs.setdefault(run.path.resolve(), run)
    return bool(made)


def _below(folder: Path, runs: dict[Path, Run]) -> list[str]:
    """Add the runs of a folder; notes on what else is there."""
    notes: list[str] = []
    foreign = 0
    entries = _entries(folder)
    for file in (path for path in entries if path.name.endswith((".json", archive.SUFFIX))):
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "is a link to nothing or no regular file"
            notes.append(f"left out: {file} {what}")
            continue
        try:
            if file.suffix == ".json":
                runs.setdefault(file.resolve(), _of_file(file))
            else:
                _add(((file, run) for run in archive.read(file)), runs)
        except NoResults:
            foreign += file.name not in BESIDE
        except ValueError as error:
            notes.append(f"left out: {error}")
    if foreign:
        notes.append(f"{folder}: left out {foreign} JSON file(s) that hold no results of a run")
    folders = [path.parent for path in entries if path.name == CONFIG]
    missing = [place for place in folders if not (place / RESULTS).exists()]
    return notes + [f"{place} has no finished stage yet and is left out" for place in missing]


def _entries(folder: Path) -> list[Path]:
    """All below a folder, also behind links to folders, each folder once."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(here, name) for name in (*folders, *files)]
    return sorted(found)


class NoResults(ValueError):
    """A JSON file that is something else."""


class _Alone(RunFolder):
    """A results file under another name, without the other files of its run."""

    def file(self, name: str) -> Path:
        """The file itself, or what does not exist."""
        return self.path if name == RESULTS else self.path / name


def _of_file(file: Path) -> Run:
    run = RunFolder(file.parent) if file.name == RESULTS else _Alone(file)
    try:
        content = run.content(RESULTS)
    except RunError as error:
        if file.suffix != ".json":
            raise NoResults(
                f"{file} is no {RESULTS}; give a run's folder or its {RESULTS}"
            ) from error
        raise RunError(f"{error} or leave it out") from error
    if not isinstance(content, dict) or not {"stages", "protocol"} <= content.keys():
        if file.name == RESULTS:
            raise RunError(f"{file} lacks stages or protocol; restore it or leave it out")
        raise NoResults(f"{file} holds no results of a run; give a {RESULTS}")
    if not content["stages"]:
        raise RunError(f"{file} has no finished stage; continue the run with --resume")
    return _run(file, file, run, content)


def _run(path: Path, file: Path, folder: RunFolder, content: Any) -> Run:
    """A run as tables take it.

    Raises:
        RunError: a file of it says what cannot be so.
    """
    try:
        found = folder.results_of(content)
    except RunError as error:
        raise RunError(f"{error} or leave it out") from error
    k, rules = found.num_classes, found.protocol.checkpoint_rule
    each = zip(found.stages, found.protocol.steps, strict=False)
    logs = [f"{i}-{stage.algorithm}/metrics.jsonl" for i, stage in enumerate(found.stages, 1)]
    stages = [
        replace(
            _stage(one, str(rules[one.algorithm])),
            algorithm=one.algorithm,
            steps=steps,
            log=Log(folder, log, k, one.log_sha256) if folder.has(log) else None,
        )
        for (one, steps), log in zip(each, logs, strict=True)
    ]
    split = {part: found.protocol.split.get(part) for part in PARTS}
    held = {part: [n] * k for part, n in split.items() if isinstance(n, int) and n}
    return Run(
        path=path,
        file=file,
        recorded=found,
        protocol=found.protocol.plain(),
        stages=tuple(stages),
        start=_stage(found.start, "given") if found.start else None,
        counts=held | found.counts,
        class_names=tuple(found.class_names or map(str, range(k))),
        model=found.model,
    )


def _stage(given: schema.Stage, rule: str) -> Stage:
    """A stage as weights that another run handed on."""
    measured = {part: getattr(given, part).plain() for part in PARTS}
    last = {part: getattr(given.last, part).plain() for part in PARTS} if given.last else None
    return Stage(
        algorithm=GIVEN,
        steps=None,
        kept_step=given.kept_step,
        seconds=given.seconds,
        measured=measured,
        last=last or (measured if given.kept_step == given.steps else None),
        settings=given.settings,
        rule=rule,
        log=None,
    )


def with_parents(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs in their order, each with all stages that are known; and notes on the joints."""
    notes = released.find_parents([released.Placed(Path(r.name), r.recorded) for r in runs])
    done: dict[str, Run] = {}
    told: dict[str, list[str]] = {}

    def joined(run: Run) -> Run:
        if run.start is None or run.name in done:
            return done.get(run.name, run)
        done[run.name] = _joined(run, None, 0)  # in case that a run starts from itself
        parent, length = _parent(run, runs)
        kind, line = GIVEN, f"{run.name} starts from weights (--init) of no run that is given here"
        if parent is not None:
            before = joined(parent)
            known = before.stages[: len(before.stages) - len(parent.stages) + length]
            done[run.name] = _joined(run, before, len(known))
            kind = " + ".join(done[run.name].chain)
            start = "+".join(stage.algorithm for stage in known)
            line = f"{run.name} starts (--init) where {parent.name} has its {start}"
        told.setdefault(kind, []).append(line)
        return done[run.name]

    found = [joined(run) for run in runs]
    more = {kind: f"; {len(lines) - 1} more run(s) likewise" for kind, lines in told.items()}
    lines = [lines[0] + (more[kind] if lines[1:] else "") for kind, lines in told.items()]
    return found, [*lines, *notes]


def _parent(run: Run, runs: Sequence[Run]) -> tuple[Run | None, int]:
    """The run that this one records as its start, and how many of its own stages came before.

    Without that run: another one on the same seed and images that handed on the same weights.
    """
    origin = run.recorded.stages[0].started_from
    if origin is None:
        return None, 0
    others = [other for other in runs if other is not run and other.unit == run.unit]
    for other in others:
        if origin.stages and other.recorded.run_id == origin.run_id:
            return other, origin.stages
    for other in others:
        first = other.recorded.stages[0].started_from
        if first and origin.sha256 and first.sha256 == origin.sha256:
            continue  # it began alike; that its stage kept these weights makes it no start
        for n, stage in enumerate(other.recorded.stages, 1):
            if origin.sha256 and stage.handed_on_sha256 == origin.sha256:
                return other, n
    return None, 0


def _joined(run: Run, parent: Run | None, length: int) -> Run:
    """The run with the first stages of its parent, and with what these say of the first stage."""
    assert run.start is not None
    if parent is None:
        return replace(run, stages=(run.start, *run.stages), start=None)
    told = dict(run.protocol)
    if "step" in parent.protocol:  # second stages have no views to split
        told["step"] = parent.protocol["step"]
    for key in ("precision", "processes", "sync_batch_norm"):
        before, after = (one.protocol.get(key, BEFORE.get(key)) for one in (parent, run))
        if before != after:
            told[key] = f"{before}, then {after}"
    stages, model = (*parent.stages[:length], *run.stages), parent.model or run.model
    return replace(run, stages=stages, start=None, model=model, protocol=told)
