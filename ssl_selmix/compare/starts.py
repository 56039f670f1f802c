"""Who started from whom: runs that --init started become the next stage of their parent.

config.yaml records which folder a run started from. Figures prove it, class by class, on the same
seed and images; without that record they must do, and they cannot tell apart a parent from a child
that kept its step 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_selmix.compare.protocol import BEFORE
from ssl_selmix.compare.reading import GIVEN, Run


@dataclass(frozen=True)
class Origin:
    """A run by its index, and how many of its own stages came before the start."""

    index: int
    length: int


def join(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs in their order, each with all stages that are known; and notes on the joints."""
    done = {i: run for i, run in enumerate(runs) if run.start is None}
    named, notes = _by_config(runs)
    joints: list[tuple[int, Origin]] = []
    alone: list[Run] = []
    while rest := [i for i in range(len(runs)) if i not in done]:
        ready = [i for i in rest if i in named and named[i].index in done]
        if ready:  # parents first
            found = [(i, named[i]) for i in ready]
        else:
            nameless = [i for i in rest if i not in named] or rest[:1]
            found = []
            for i in nameless:
                origin, told = _by_figures(i, runs, done)
                notes += told
                found += [(i, origin)] if origin else []
            if not found:
                alone += [runs[i] for i in nameless]
                done |= {i: _joined(runs[i]) for i in nameless}
        for i, origin in found:
            parent = done[origin.index]
            before = len(parent.stages) - len(runs[origin.index].stages)
            done[i] = _joined(runs[i], parent, before + origin.length)
        joints += found
    return [done[i] for i in range(len(runs))], [*_told(runs, done, joints, alone), *notes]


def _joined(run: Run, parent: Run | None = None, length: int = 0) -> Run:
    """The run with the first stages of its parent, and with what these say of the first stage."""
    assert run.start is not None
    if parent is None:
        return replace(run, stages=(run.start, *run.stages), start=None)
    config, told = run.config, dict(run.protocol)
    if config is not None and parent.config is not None and "model" in parent.config:
        config = {**config, "model": parent.config["model"]}
    if "step" in parent.protocol:  # second stages have no views to split
        told["step"] = parent.protocol["step"]
    for key in ("precision", "processes", "sync_batch_norm"):
        before, after = (one.protocol.get(key, BEFORE.get(key)) for one in (parent, run))
        if before != after:
            told[key] = f"{before}, then {after}"
    stages = (*parent.stages[:length], *run.stages)
    return replace(run, stages=stages, start=None, config=config, protocol=told)


def _told(
    runs: Sequence[Run],
    done: Mapping[int, Run],
    joints: Sequence[tuple[int, Origin]],
    alone: Sequence[Run],
) -> list[str]:
    """A line for every kind of joint, however many runs have it."""
    kinds: dict[str, list[str]] = {}
    for i, origin in joints:
        start = done[i].chain[: -len(runs[i].chain)]
        told = f"{runs[i].name} starts (--init) where {runs[origin.index].name} has its "
        kinds.setdefault(" + ".join(done[i].chain), []).append(told + "+".join(start))
    if alone:
        told = f"{alone[0].name} starts from weights (--init) of no run that is given here"
        kinds[GIVEN] = [told, *(run.name for run in alone[1:])]
    return [
        lines[0] + (f"; {len(lines) - 1} more run(s) likewise" if lines[1:] else "")
        for lines in kinds.values()
    ]


def _by_config(runs: Sequence[Run]) -> tuple[dict[int, Origin], list[str]]:
    """The origin that config.yaml names, for every run that has one among the others."""
    found, notes = {}, []
    for i, run in enumerate(runs):
        path = _init_path(run)
        if path is None:
            continue
        near = {j: n for j, other in enumerate(runs) if j != i and (n := _nearness(path, other))}
        best = [j for j, n in near.items() if n == max(near.values())]
        fitting = [(j, n) for j in best if (n := _length(run, runs[j], path))]
        if len(fitting) == 1:
            found[i] = Origin(*fitting[0])
        elif near and not fitting and runs[best[0]].unit == run.unit:
            notes.append(
                f"{run.name} names {runs[best[0]].name} as its start (--init), which has other "
                "figures now: it was trained anew, or figures depend on the machine"
            )
    return found, notes


def _init_path(run: Run) -> Path | None:
    told = run.config.get("init") if run.config and run.start is not None else None
    path = told.get("path") if isinstance(told, Mapping) else None
    return Path(path) if isinstance(path, str) and path.strip() else None


def _nearness(path: Path, other: Run) -> float:
    """How much of a path to weights leads to this run; 0 if too little to believe it."""
    folder = other.path.parent.resolve()
    target = path.resolve()
    if folder == target or folder in target.parents:
        return float("inf")
    shared = 0  # runs may have moved together with what they started from
    for ours, theirs in zip(reversed(path.parts), reversed(folder.parts), strict=False):
        if ours != theirs:
            break
        shared += 1
    # A folder seed-0 may be in every method's folder.
    return shared if shared >= min(2, len(path.parts)) else 0


def _length(run: Run, other: Run, path: Path) -> int:
    """After how many of the other's own stages this run starts, by figures; 0 if after none."""
    assert run.start is not None
    alike = [n for n, s in enumerate(other.stages, 1) if s.same_figures(run.start)]
    if run.unit != other.unit or not alike:
        return 0
    for part in reversed(path.parts):  # a file within a stage's folder
        if (told := re.match(r"(\d+)-", part)) and int(told[1]) in alike:
            return int(told[1])
    return alike[-1]  # a run hands on what its last stage kept


def _by_figures(
    index: int, runs: Sequence[Run], done: Mapping[int, Run]
) -> tuple[Origin | None, list[str]]:
    """The shortest chain that ends with the figures this run starts from; and what else fits."""
    run = runs[index]
    assert run.start is not None
    found: list[tuple[int, Origin, str]] = []
    for j, other in done.items():
        before = len(other.stages) - len(runs[j].stages)
        for n, stage in enumerate(runs[j].stages, 1):
            if other.unit == run.unit and stage.same_figures(run.start):
                chain = " + ".join(other.chain[: before + n])
                found.append((before + n, Origin(j, n), chain))
    if not found:
        return None, []
    _, origin, chain = min(found, key=lambda one: (one[0], one[1].index))
    # Runs whose own start is still open may have handed on the same figures, too.
    others = [told for _, _, told in found] + [
        "+ ".join(["… ", *other.chain])
        for j, other in enumerate(runs)
        if j not in done and j != index and _length(run, other, Path())
    ]
    others = sorted(set(others) - {chain})
    note = (
        f"{run.name} starts (--init) with the figures of {chain} and of {', '.join(others)}; "
        f"{chain} is taken, for no config.yaml beside the runs says which"
    )
    return origin, [note] if others else []
