"""Tables and their rows: which runs are the same method on the same question."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_selmix.comparison import naming, protocol, starts
from ssl_selmix.comparison.reading import Run, Stage, Unit

LONGEST = 48  # part of a file name


@dataclass(frozen=True)
class Cell:
    """One run at one of its stages."""

    run: Run
    position: int

    @property
    def stage(self) -> Stage:
        """What was measured."""
        return self.run.stages[self.position]

    @property
    def start(self) -> Stage:
        """The stage before, whose weights this one started from."""
        return self.run.stages[self.position - 1]


@dataclass
class Row:
    """A method, over seeds."""

    steps: tuple[str, ...]  # what it consists of, stage by stage
    cells: dict[Unit, Cell] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Stages in their order."""
        return " + ".join(self.steps)

    @property
    def parent(self) -> str:
        """The method without its last stage."""
        return " + ".join(self.steps[:-1])


@dataclass
class Group:
    """Runs that compare: one table."""

    title: str  # what tells it from the other tables; "" if it is the only one
    runs: list[Run]
    rows: list[Row]
    protocol: list[str]
    notes: list[str]

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "all"
        # Other titles might come to the same words, but for such as settings usually make.
        if len(words) <= LONGEST and not re.search(r"=-|[^a-z0-9=_., -]|\w-", self.title):
            return words
        digest = hashlib.sha256(self.title.encode()).hexdigest()[:8]
        return f"{words[:LONGEST].rstrip('-')}-{digest}"


def group(
    runs: Sequence[Run], allow: Iterable[str] = (), by: Iterable[str] = ()
) -> tuple[list[Group], list[str]]:
    """Tables of what compares, and notes on how the runs were taken.

    Raises:
        ValueError: runs of a table differ in what makes figures comparable, or contradict.
    """
    allow, by = (protocol.with_implied(names) for names in (allow, by))
    runs, notes = starts.join(runs)
    protocol.check_names(runs, allow, "--allow")
    protocol.check_names(runs, by, "--by")
    # Over all tables: who reads one beside the other compares them as well.
    found = protocol.differences(runs, by)
    protocol.refuse(found, allow)
    notes += [f"allowed to differ: {key}: {', '.join(v)}" for key, v in found.items()]
    parts: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(protocol.conditions(run, by), sort_keys=True, default=str)
        parts.setdefault(key, []).append(run)
    conditions = [json.loads(key) for key in parts]
    titles = [_title(one, conditions) for one in conditions]
    if len(set(titles)) < len(titles):  # only what a key implies tells two of them apart
        titles = [_title(one, conditions, implied=True) for one in conditions]
    kept = [_checked(part, allow) for part in parts.values()]
    every = [run for runs, _ in kept for run in runs]
    words, usual = naming.differences(every, list(found), by)
    made = []
    for title, (runs, notes_of_part) in zip(titles, kept, strict=True):
        mine, words = words[: len(runs)], words[len(runs) :]
        made.append(_group(title, runs, mine, [*notes_of_part, *usual]))
    if len(made) > 1:
        keys = dict.fromkeys(key for one in conditions for key in _differing(one, conditions))
        told = "; ".join(g.title for g in made)
        notes.append(
            f"{len(made)} tables, for runs that differ in {', '.join(keys)} are never averaged: "
            f"{told}"
        )
    return made, notes


def _title(
    one: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]], implied: bool = False
) -> str:
    found = _differing(one, all_of_them, implied)
    return ", ".join(f"{k.removeprefix('data.')}={one[k]}" for k in found)


def _differing(
    one: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]], implied: bool = False
) -> list[str]:
    found = [k for k in one if any(one[k] != other.get(k) for other in all_of_them)]
    said = {k for name in found for k in protocol.IMPLIED.get(name, ())}
    return [k for k in found if implied or k not in said]


def _checked(runs: list[Run], allow: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs of a table, each counted once, on the same images; and notes."""
    images = protocol.images(runs)
    protocol.refuse({protocol.IMAGES: images}, allow, splits=True)
    notes = [f"allowed to differ: images of a seed: {', '.join(images)}"] if images else []
    runs, doubles = _without_doubles(runs)
    return runs, notes + doubles


def _group(title: str, runs: list[Run], words: naming.Words, notes: Sequence[str]) -> Group:
    labels, told = naming.names(runs, words)
    rows, merged = _rows(runs, labels)
    first = protocol.summary(runs)
    return Group(
        title, runs, rows, first, [*notes, *told, *merged, *_unrecorded(runs), *_gaps(rows)]
    )


def _without_doubles(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One of every set of identical results: the one whose folder is there."""
    kept: list[Run] = []
    notes = []
    for run in sorted(runs, key=lambda r: (r.config is None, str(r.path))):
        twin = next((other for other in kept if _identical(run, other)), None)
        if twin is None:
            kept.append(run)
        else:
            notes.append(f"{run.name} and {twin.name} are the same run, counted once")
    return sorted(kept, key=lambda r: str(r.path)), sorted(notes)


def _identical(one: Run, other: Run) -> bool:
    """Same figures from what may be the same settings; unknown ones may be the same."""
    if (one.unit, one.chain) != (other.unit, other.chain):
        return False
    pairs = zip(one.stages, other.stages, strict=True)
    return all(a.same_figures(b) and _may_be_same(a, b) for a, b in pairs)


def _may_be_same(one: Stage, other: Stage) -> bool:
    told = naming.filled(one.algorithm, [one.settings, other.settings])
    return one.steps == other.steps and (None in told or told[0] == told[1])


def _rows(runs: Sequence[Run], labels: Sequence[tuple[str, ...]]) -> tuple[list[Row], list[str]]:
    """A row for every chain and every beginning of one; and notes on stages trained twice."""
    rows: dict[tuple[str, ...], Row] = {}
    twice: dict[str, set[str]] = {}
    # Runs that end with a stage come first: it is theirs more than another's first stage.
    for run, names in sorted(zip(runs, labels, strict=True), key=lambda p: len(p[1])):
        for position in range(len(names)):
            steps = names[: position + 1]
            row = rows.setdefault(steps, Row(steps))
            cell = row.cells.setdefault(run.unit, Cell(run, position))
            if not cell.stage.same_figures(run.stages[position]):
                twice.setdefault(row.name, set()).add(f"seed {run.seed} of {cell.run.name}")
    notes = [
        f"{name} was trained more than once with different figures; the table has "
        f"{', '.join(sorted(which))}, changes are over each run's own start"
        for name, which in sorted(twice.items())
    ]
    return [rows[steps] for steps in sorted(rows)], notes


def _gaps(rows: Sequence[Row]) -> list[str]:
    """Which rows lack seeds that others have."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    units = sorted({unit for row in rows for unit in row.cells})
    for row in rows:
        missing = tuple(str(unit[0]) for unit in units if unit not in row.cells)
        if missing:
            lacking.setdefault(missing, []).append(row.name)
    return [
        f"{', '.join(names)} {'lacks' if len(names) == 1 else 'lack'} seed {', '.join(missing)}; "
        "differences are over the seeds that both have"
        for missing, names in lacking.items()
    ]


def _unrecorded(runs: Sequence[Run]) -> list[str]:
    bare = [run for run in runs if any(s.settings is None for s in run.stages)]
    if not bare:
        return []
    return [
        f"settings unknown of {len(bare)} of {len(runs)} runs (no config.yaml beside the results): "
        "what has the same stages and file name is taken for the same method"
    ]
