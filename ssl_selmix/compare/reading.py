"""Finds the results of runs on disk, and checks that they are what they seem."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_selmix.compare import checks

FILE = "results.json"
BESIDE = ("manifest.json", "environment.json")  # JSON files of a run that hold no results
PARTS = ("validation", "test")
LABELED = "labeled"  # whose counts say which classes are the tail
GIVEN = "given weights"  # what a stage starts from whose first stage nobody knows
Unit = tuple[int, str]  # seed and images: what pairs
Counts = Mapping[str, Sequence[int]]
DAMAGED = "is damaged (it is no JSON); restore it or leave it out"


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
    log: Path | None  # metrics.jsonl, if it is there

    def same_figures(self, other: Stage) -> bool:
        """Whether both were measured alike, class by class, on both parts."""
        # Not the calibration error: its last bits depend on the machine.
        names = ("per_class_recall", "per_class_coverage")
        return all(self.measured[p][n] == other.measured[p][n] for p in PARTS for n in names)


@dataclass(frozen=True)
class Run:
    """One results.json, with what its folder adds."""

    path: Path
    dataset: str
    seed: int
    images: str  # SHA-256 of the images and the split
    data: str | None  # SHA-256 of all images of the data set; None: not recorded
    protocol: Mapping[str, Any]
    stages: tuple[Stage, ...]
    start: Stage | None = None  # the weights that --init gave
    counts: Counts | None = None  # images of each class, by part
    class_names: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None  # what config.yaml says, if it is there
    unfinished: bool = False  # whether stages are missing

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
        path = self.path.parent if self.path.name == FILE else self.path
        return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs in files and folders, in the order of their paths, and notes on what is missing.

    Raises:
        ValueError: a path does not exist, a named file holds no results, or there is no run.
    """
    paths = list(paths)
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give run folders or {FILE} files")
        if path.is_dir():
            notes += _below(path, runs)
        else:
            runs.setdefault(path.resolve(), _run(path))
    if not runs:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}{why}")
    return list(runs.values()), notes


def _below(folder: Path, runs: dict[Path, Run]) -> list[str]:
    """Add the runs of a folder; notes on what else is there."""
    notes: list[str] = []
    foreign = 0
    entries = _entries(folder)
    for file in (path for path in entries if path.suffix == ".json"):
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "is a link to nothing or no regular file"
            notes.append(f"left out: {file} {what}")
            continue
        try:
            runs.setdefault(file.resolve(), _run(file))
        except NoResults:
            foreign += file.name not in BESIDE
        except ValueError as error:
            notes.append(f"left out: {error}")
    if foreign:
        notes.append(f"{folder}: left out {foreign} JSON file(s) that hold no results of a run")
    return notes + _unfinished(entries)


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


def _unfinished(entries: Iterable[Path]) -> list[str]:
    folders = [path.parent for path in entries if path.name == "config.yaml"]
    missing = [folder for folder in folders if not (folder / FILE).exists()]
    return [f"{folder} has no finished stage yet and is left out" for folder in missing]


def _run(file: Path) -> Run:
    try:
        content = _json(file)
    except ValueError as error:
        if file.suffix != ".json":
            raise NoResults(f"{file} is no {FILE}; give a run's folder or its {FILE}") from error
        raise
    if not isinstance(content, dict) or not {"stages", "protocol"} <= content.keys():
        if file.name == FILE:
            raise ValueError(f"{file} lacks stages or protocol; restore it or leave it out")
        raise NoResults(f"{file} holds no results of a run; give a {FILE}")
    if not content["stages"]:
        raise ValueError(f"{file} has no finished stage; continue the run with --resume")
    folder = file.parent if file.name == FILE else None
    return _with_folder(_explained(file, lambda: _build(file, content, folder)), folder)


def _explained(file: Path, make: Callable[[], Run]) -> Run:
    """What is made of a file; an error names the file and what is wrong with it.

    Raises:
        ValueError: the file says what cannot be so.
    """
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise ValueError(f"{file} {what}; restore it or leave it out") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise ValueError(f"{file} {DAMAGED}") from error


def _build(file: Path, content: Mapping[str, Any], folder: Path | None) -> Run:
    protocol = checks.mapping(content["protocol"], "protocol")
    rules, steps = (checks.needed(protocol, k, "protocol") for k in ("checkpoint_rule", "steps"))
    rules = checks.mapping(rules, "protocol.checkpoint_rule")
    steps = checks.listing(steps, "protocol.steps")
    given = checks.listing(content["stages"], "stages")
    if len(steps) < len(given):
        raise ValueError(f"{len(given)} stages, steps of {len(steps)}")
    stages = []
    for i, (one, told) in enumerate(zip(given, steps, strict=False), 1):
        stage = _stage(one, f"stages[{i}]", rules, folder / f"{i}-" if folder else None)
        stages.append(replace(stage, steps=checks.whole(told, "protocol.steps")))
    start = _stage(content["start"], "start", None, None) if "start" in content else None
    sizes = {len(s.measured[p]["per_class_recall"]) for s in (*stages, start) if s for p in PARTS}
    if len(sizes) != 1:
        raise ValueError("its parts have different numbers of classes")
    count = sizes.pop()
    return Run(
        path=file,
        dataset=checks.text(content["dataset"], "dataset"),
        seed=checks.whole(content["seed"], "seed"),
        images=checks.text(content["manifest_sha256"], "manifest_sha256"),
        data=_data(content),
        protocol=protocol,
        stages=tuple(stages),
        start=start,
        counts=_counts(content, protocol, count),
        class_names=tuple(map(str, range(count))),
        unfinished=len(steps) > len(stages),
    )


def _data(content: Mapping[str, Any]) -> str | None:
    """Which images the data set has, as results and manifests say it."""
    told = content.get("images_sha256")
    return None if told is None else checks.text(told, "images_sha256")


def _counts(content: Mapping[str, Any], protocol: Mapping[str, Any], count: int) -> Counts:
    """Images of each class, by part, as far as the results know them."""
    split = checks.mapping(checks.needed(protocol, "split", "protocol"), "protocol.split")
    found = {
        p: [checks.whole(split[p], f"protocol.split.{p}")] * count for p in PARTS if split.get(p)
    }
    told = checks.mapping(content.get("counts") or {}, "counts")
    return found | {p: checks.counts(told[p], f"counts.{p}", count) for p in told}


def _stage(given: Any, where: str, rules: Mapping[str, Any] | None, place: Path | None) -> Stage:
    """A stage; without rules, the weights that another run handed on."""
    stage = checks.mapping(given, where)
    for key in ("algorithm", "steps", "kept_step", "seconds", *PARTS):
        checks.needed(stage, key, where)
    name = checks.text(stage["algorithm"], f"{where}.algorithm")
    if rules is not None:
        checks.needed(rules, stage["algorithm"], "protocol.checkpoint_rule")
    measured = {part: checks.figures(stage[part], f"{where}.{part}") for part in PARTS}
    last = _last(stage, where, measured)
    settings = stage.get("settings")
    log = place.with_name(f"{place.name}{stage['algorithm']}") / "metrics.jsonl" if place else None
    return Stage(
        algorithm=name if rules is not None else GIVEN,
        steps=None,
        kept_step=checks.whole(stage["kept_step"], f"{where}.kept_step"),
        seconds=checks.number(stage["seconds"], f"{where}.seconds"),
        measured=measured,
        last=last,
        settings=None if settings is None else checks.mapping(settings, f"{where}.settings"),
        rule="given" if rules is None else str(rules[stage["algorithm"]]),
        log=log if log and log.is_file() else None,
    )


def _last(stage: Mapping[str, Any], where: str, measured: Mapping[str, Any]) -> Any:
    """Figures by the weights of the last step, if they are known."""
    if stage.get("last") is None:
        return measured if stage["kept_step"] == stage["steps"] else None
    last = checks.mapping(stage["last"], f"{where}.last")
    return {part: checks.figures(last[part], f"{where}.last.{part}") for part in PARTS}


def _with_folder(run: Run, folder: Path | None) -> Run:
    """What manifest.json and config.yaml beside the results know."""
    if folder is None:
        return run
    file = folder / "manifest.json"
    if file.exists():
        content = _json(file)
        run = _explained(file, lambda: _with_manifest(run, content))
    config = _yaml(folder / "config.yaml")
    return _explained(folder / "config.yaml", lambda: _with_settings(run, config))


def _with_manifest(run: Run, content: Any) -> Run:
    manifest = checks.mapping(content, "it")
    told = checks.mapping(manifest["counts"], "counts")
    count = len(run.class_names)
    parts = [p for p in (*PARTS, LABELED) if told.get(p)]
    counts = {p: checks.counts(told[p], f"counts.{p}", count) for p in parts}
    names = checks.listing(manifest["class_names"], "class_names", count)
    known = {p: n for p, n in counts.items() if sum(n)}
    names = [" ".join(str(name).split()) for name in names]
    return replace(
        run,
        counts={**(run.counts or {}), **known},
        class_names=tuple(names),
        data=run.data or _data(manifest),
    )


def _with_settings(run: Run, config: Mapping[str, Any] | None) -> Run:
    if config is None:
        return run
    stages = []
    for stage in run.stages:
        section = config.get(stage.algorithm)
        if stage.settings is None and section is not None:
            stage = replace(stage, settings=checks.mapping(section, stage.algorithm))
        stages.append(stage)
    return replace(run, config=config, stages=tuple(stages))


def _yaml(file: Path) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    from ssl_selmix.common import text

    try:
        return text.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); restore it") from error
