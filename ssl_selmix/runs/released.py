"""What version 0.1 did not write into a run's files, and how it is found: read-only, no weights.

Its results say no schema, no run_id, no tail and not from whom a run started; its manifests say
not how files were decoded. Nothing else in the package infers what newer files record.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_selmix.common.config import fingerprint
from ssl_selmix.runs.results import SCHEMA, Classes, Figures, Results, Stage, StartedFrom
from ssl_selmix.splits import Counts

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])  # mean and std, in 0..255
LABELED = "labeled"


def preprocessing(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How a run of version 0.1 decoded files.

    Only sets that streamed from files normalised by ImageNet's constants, and those showed the
    central square; all others showed the whole image.
    """
    _, height, width = manifest["image_shape"]
    mean, std = list(manifest["mean"]), list(manifest["std"])
    square = (mean, std) == IMAGENET and height == width
    return {
        "kind": "central_square" if square else "whole",
        "size": [height, width],
        "resize": round(width * 256 / 224) if square else None,
        "interpolation": "bilinear",
        "mean": mean,
        "std": std,
    }


def completed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a preprocessing."""
    return {"preprocessing": preprocessing(manifest), **manifest}


def numbered(content: Any) -> Any:
    """Results with a schema and an identity: a digest of all they say, where none is recorded."""
    if not isinstance(content, dict) or "schema" in content:
        return content
    return {"schema": SCHEMA, "run_id": fingerprint(content)[:32]} | content


def add_classes(results: Results, manifest: Classes) -> None:
    """What the manifest knows: names of the classes, images of each class, the data set's images.

    Raises:
        ValueError: it is of another number of classes.
    """
    k = results.num_classes
    counts = {part: n for part, n in manifest.counts.items() if sum(n)}
    sizes = {"class_names": len(manifest.class_names)}
    sizes |= {f"counts.{part}": len(n) for part, n in manifest.counts.items() if n}
    for where, size in sizes.items():
        if size != k:
            raise ValueError(f"{where} has {size} values instead of {k}")
    results.class_names = [" ".join(name.split()) for name in manifest.class_names]
    results.counts = results.counts | counts
    results.images_sha256 = results.images_sha256 or manifest.images_sha256


def add_settings(results: Results, config: Mapping[str, Any]) -> None:
    """What the configuration knows: settings of stages and network, and the folder of --init.

    Raises:
        ValueError: a section is none.
    """
    for stage in results.stages:
        section = config.get(stage.algorithm)
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"{stage.algorithm} is {section!r}, no section")
        stage.settings = stage.settings or section
    results.model = config.get("model")
    if results.start is not None:
        init = config.get("init")
        path = init.get("path") if isinstance(init, Mapping) else None
        path = path if isinstance(path, str) and path.strip() else None
        sha256 = results.init_sha256 or ""
        results.stages[0].started_from = StartedFrom(sha256=sha256, path=path)


def add_tail(results: Results) -> None:
    """The classes that explain `min_ht_recall`: the rarest tenth by labeled images, or the last."""
    k = results.num_classes
    size = max(1, round(0.1 * k))  # as metrics.tail_size, whose module loads torch
    figures = results.stages[-1].test if results.stages else None
    for labeled in (*_labeled_counts(results, k), [0] * k):
        tail = sorted(range(k), key=lambda c: -labeled[c])[-size:]
        if figures is not None and _explains(tail, figures):
            results.tail = tail
            return


def _labeled_counts(results: Results, k: int) -> list[list[int]]:
    if counts := results.counts.get(LABELED):
        return [counts]
    rule = results.protocol.split.get(LABELED)
    try:
        return [Counts(**rule).counts(k)]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []


def _explains(tail: Sequence[int], figures: Figures) -> bool:
    recalls = figures.per_class_recall
    parts = [
        [r for c, r in enumerate(recalls) if r is not None and (c in tail) == last]
        for last in (False, True)
    ]
    found = min(statistics.fmean(part) for part in parts if part)
    return figures.min_ht_recall is not None and abs(found - figures.min_ht_recall) < 1e-9


def same_figures(one: Stage, other: Stage) -> bool:
    """Whether both were measured alike, class by class, on both parts."""
    # Not the calibration error: its last bits depend on the machine.
    names = ("per_class_recall", "per_class_coverage")
    parts = ((getattr(one, part), getattr(other, part)) for part in ("validation", "test"))
    return all(getattr(a, n) == getattr(b, n) for a, b in parts for n in names)


@dataclass(frozen=True)
class Placed:
    """Results with the folder that they were found in."""

    folder: Path
    results: Results

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The folder's names, the last one first."""
        return tuple(reversed(self.folder.resolve().parts))

    @property
    def chain(self) -> str:
        """What the run trained, in words."""
        start = "… + " if self.results.start else ""
        return start + " + ".join(stage.algorithm for stage in self.results.stages)


def find_parents(runs: Sequence[Placed]) -> list[str]:
    """Record from which of the runs those of version 0.1 started; notes on what is not sure.

    A parent has, on the same seed and images, a stage with the figures of the start; of several the
    one whose folder the configuration names, else the one with the fewest stages before it.
    """
    units: dict[tuple[int, str], list[Placed]] = {}
    for run in runs:
        units.setdefault((run.results.seed, run.results.manifest_sha256), []).append(run)
    notes = []
    for unit in units.values():
        for run in unit:
            origin = run.results.stages[0].started_from if run.results.start else None
            if origin is not None and origin.run_id is None:
                notes += _find_parent(run, origin, [other for other in unit if other is not run])
    return notes


def upgrade(runs: Sequence[Placed]) -> None:
    """Record from whom runs of version 0.1 started, and what their parents handed on."""
    find_parents(runs)
    by_id = {run.results.run_id: run.results for run in runs}
    for run in runs:
        origin = run.results.stages[0].started_from if run.results.start else None
        parent = by_id.get(origin.run_id or "") if origin else None
        if origin and parent and origin.sha256 and origin.stages == len(parent.stages):
            last = parent.stages[-1]
            last.handed_on_sha256 = last.handed_on_sha256 or origin.sha256


def _find_parent(run: Placed, origin: StartedFrom, others: Sequence[Placed]) -> list[str]:
    near = _near(Path(origin.path), others) if origin.path else others
    fitting = [(other, n) for other in near if (n := _stages(run, other, origin))]
    if not fitting and not (near and origin.path):
        return []
    if not fitting:
        return [
            f"{run.folder} names {near[0].folder} as its start (--init), which has other figures "
            "now: it was trained anew, or figures depend on the machine"
        ]
    fitting.sort(key=lambda found: (found[0].results.start is not None, found[1]))
    parent, origin.stages = fitting[0]
    origin.run_id = parent.results.run_id
    if not (further := sorted({other.chain for other, _ in fitting} - {parent.chain})):
        return []
    return [
        f"{run.folder} starts (--init) with the figures of {parent.chain} and of "
        f"{', '.join(further)}; {parent.chain} is taken, for no config.yaml beside the runs says "
        "which"
    ]


def _near(path: Path, runs: Sequence[Placed]) -> list[Placed]:
    """The runs whose folder a path to weights leads into; folders may have moved together."""
    target = path.resolve()

    def shared(run: Placed) -> float:
        if (here := Path(*reversed(run.parts))) == target or here in target.parents:
            return float("inf")
        same = [a == b for a, b in zip(reversed(path.parts), run.parts, strict=False)]
        return [*same, False].index(False)

    found = [shared(run) for run in runs]
    # A folder seed-0 may be in every method's folder.
    least = max([min(2, len(path.parts)), *found])
    return [run for run, length in zip(runs, found, strict=True) if length >= least]


def _stages(run: Placed, other: Placed, origin: StartedFrom) -> int:
    """After how many stages of the other run this one starts; 0 if after none."""
    start = run.results.start
    assert start is not None
    alike = [n for n, s in enumerate(other.results.stages, 1) if same_figures(s, start)]
    for part in reversed(Path(origin.path or "").parts):  # a file within a stage's folder
        if (told := re.match(r"(\d+)-", part)) and int(told[1]) in alike:
            return int(told[1])
    return alike[-1] if alike else 0  # a run hands on what its last stage kept
