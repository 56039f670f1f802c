"""Finds the results of runs on disk, and checks that they are what they seem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FILE = "results.json"
BESIDE = ("manifest.json", "environment.json")  # JSON files of a run that hold no results
PARTS = ("validation", "test")
GIVEN = "given weights"  # what a stage starts from whose first stage nobody knows
Unit = tuple[int, str]  # seed and images: what pairs
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
    protocol: Mapping[str, Any]
    stages: tuple[Stage, ...]
    start: Stage | None = None  # the weights that --init gave
    counts: Mapping[str, Sequence[int]] | None = None  # images of each class, by part
    class_names: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None  # what config.yaml says, if it is there

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
        return str(self.path.parent if self.path.name == FILE else self.path)


def read(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs in files and folders, in the order of their paths, and notes on what is missing.

    Raises:
        ValueError: a path does not exist, a named file holds no results, or there is no run.
    """
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give run folders or {FILE} files")
        found = [path] if path.is_file() else sorted(path.rglob("*.json"))
        foreign = 0
        for file in found:
            try:
                runs.setdefault(file.resolve(), _run(file))
            except NoResults as error:
                if path.is_file():
                    raise ValueError(str(error)) from error
                foreign += file.name not in BESIDE
            except ValueError as error:
                if path.is_file():
                    raise
                notes.append(f"left out: {error}")
        if foreign:
            notes.append(f"{path}: left out {foreign} JSON file(s) that hold no results of a run")
        notes += _unfinished(path)
    if not runs:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"no finished run in {', '.join(map(str, paths))}{why}")
    return list(runs.values()), notes


class NoResults(ValueError):
    """A JSON file that is something else."""


def _unfinished(path: Path) -> list[str]:
    if path.is_file():
        return []
    missing = [
        p.parent for p in sorted(path.rglob("config.yaml")) if not (p.parent / FILE).exists()
    ]
    return [f"{folder} has no finished stage yet and is left out" for folder in missing]


def _run(file: Path) -> Run:
    content = _json(file)
    if not isinstance(content, dict) or not {"stages", "protocol"} <= content.keys():
        raise NoResults(f"{file} holds no results of a run; give a {FILE}")
    if not content["stages"]:
        raise ValueError(f"{file} has no finished stage; continue the run with --resume")
    folder = file.parent if file.name == FILE else None
    try:
        run = _build(file, content, folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise ValueError(f"{file} {what}; restore it or leave it out") from error
    return _with_folder(run, folder)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise ValueError(f"{file} {DAMAGED}") from error


def _build(file: Path, content: Mapping[str, Any], folder: Path | None) -> Run:
    protocol = dict(content["protocol"])
    rules = dict(protocol["checkpoint_rule"])
    stages = [
        _stage(
            given,
            rules[given["algorithm"]],
            folder / f"{i}-{given['algorithm']}" if folder else None,
        )
        for i, given in enumerate(content["stages"], 1)
    ]
    start = _stage(content["start"], "given", None) if "start" in content else None
    sizes = {len(s.measured[p]["per_class_recall"]) for s in stages for p in PARTS}
    if len(sizes) != 1:
        raise ValueError("its parts have different numbers of classes")
    count = sizes.pop()
    split = dict(protocol["split"])
    counts = {p: [int(split[p])] * count for p in PARTS if split.get(p)}
    counts |= {p: [int(n) for n in given] for p, given in content.get("counts", {}).items()}
    if len(protocol["steps"]) < len(stages):
        raise ValueError(f"{len(stages)} stages, steps of {len(protocol['steps'])}")
    return Run(
        path=file,
        dataset=str(content["dataset"]),
        seed=int(content["seed"]),
        images=str(content["manifest_sha256"]),
        protocol=protocol,
        stages=tuple(
            replace(s, steps=int(n)) for s, n in zip(stages, protocol["steps"], strict=False)
        ),
        start=replace(start, algorithm=GIVEN, steps=None) if start else None,
        counts=counts,
        class_names=tuple(map(str, range(count))),
    )


def _stage(given: Mapping[str, Any], rule: str, folder: Path | None) -> Stage:
    measured = {part: _figures(given[part]) for part in PARTS}
    last = given.get("last")
    if last is None and given["kept_step"] == given["steps"]:
        last = measured
    log = folder / "metrics.jsonl" if folder else None
    settings = given.get("settings")
    return Stage(
        algorithm=str(given["algorithm"]),
        steps=None,
        kept_step=int(given["kept_step"]),
        seconds=float(given["seconds"]),
        measured=measured,
        last=None if last is None else {part: _figures(last[part]) for part in PARTS},
        settings=None if settings is None else dict(settings),
        rule=str(rule),
        log=log if log and log.exists() else None,
    )


def _figures(given: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("mean_recall", "min_recall"):
        float(given[key])
    recalls = [None if r is None else float(r) for r in given["per_class_recall"]]
    if not all(r is None or 0 <= r <= 1 for r in recalls):
        raise ValueError("a recall is outside 0..1")
    return dict(given)


def _with_folder(run: Run, folder: Path | None) -> Run:
    """What manifest.json and config.yaml beside the results know."""
    if folder is None:
        return run
    if (folder / "manifest.json").exists():
        try:
            manifest = _json(folder / "manifest.json")
            counts = {p: [int(n) for n in manifest["counts"].get(p) or []] for p in PARTS}
            known = {p: n for p, n in counts.items() if sum(n)}
            names = tuple(map(str, manifest["class_names"]))
            run = replace(run, counts={**(run.counts or {}), **known})
            run = replace(
                run, class_names=names if len(names) == len(run.class_names) else run.class_names
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'manifest.json'} is damaged; restore it") from error
    return _with_settings(run, _yaml(folder / "config.yaml"))


def _with_settings(run: Run, config: Mapping[str, Any] | None) -> Run:
    if config is None:
        return run
    stages = [
        replace(s, settings=config.get(s.algorithm)) if s.settings is None else s
        for s in run.stages
    ]
    return replace(run, config=config, stages=tuple(stages))


def _yaml(file: Path) -> Mapping[str, Any] | None:
    if not file.exists():
        return None
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged; restore it") from error
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else None


def validations(stage: Stage) -> list[dict[str, Any]]:
    """The validation rows of a stage's log, in order; half a row at the end is left out."""
    if stage.log is None:
        return []
    rows = []
    for line in stage.log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("kind") == "validation":
            rows.append(row)
    return rows
