"""Which runs are of one method, what the methods are called, and which may stand in one table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ssl_selmix.common.alike import sentence, unlike
from ssl_selmix.common.config import YOUNGER, flatten
from ssl_selmix.common.figures import plain
from ssl_selmix.compare import protocol, reading
from ssl_selmix.compare.reading import Run, Stage, Unit
from ssl_selmix.runs.folder import RESULTS

USUAL = 2 / 3  # a value that more of the methods share goes without saying

SAME = {"network": "model.name"}  # a key of the protocol and what the configuration calls it


Words = list[list[list[str]]]  # by run, by stage: what its name says beside the algorithm


def differences(
    runs: Sequence[Run], allowed: Sequence[str] = (), by: Sequence[str] = ()
) -> tuple[Words, list[str]]:
    """In what namesakes differ, over all tables, so that a name means one method; and notes.

    Keys in `by` have tables of their own and need no words.
    """
    words: Words = [[[] for _ in run.stages] for run in runs]
    notes: list[str] = []
    for position in range(max(len(run.stages) for run in runs)):
        there = [i for i, run in enumerate(runs) if len(run.stages) > position]
        for name in sorted({runs[i].chain[position] for i in there}):
            same = [i for i in there if runs[i].chain[position] == name]
            starts = [repr((runs[i].chain[:position], words[i][:position])) for i in same]
            found, usual = _differing_words([runs[i] for i in same], position, starts, by)
            for i, new in zip(same, found, strict=True):
                words[i][position] += new
            if usual:
                twice = any(run.chain.count(name) > 1 for run in runs)
                which = f"{name} as stage {position + 1}" if twice else name
                notes.append(f"{which}: {', '.join(usual)}, where its name says nothing else")
    told = [run.keys for run in runs]
    seen: list[list[str]] = []
    for key in (k for k in allowed if k != "steps"):  # which stages tell themselves
        values = [str(one.get(key)) for one in told]
        # The number of parameters says no more than the network does.
        if len(set(values)) > 1 and not any(_same_parts(values, other) for other in seen):
            seen.append(values)
            for mine, value in zip(words, values, strict=True):
                said = SAME.get(key)  # once is enough
                mine[0] = [w for w in mine[0] if w != f"{said}={value}"]
                _say(key, value, mine)
    return words, notes


def _say(key: str, value: str, words: list[list[str]]) -> None:
    """Give the stages of a run their words: the first one, and those that change the value."""
    parts = value.split(reading.THEN)
    parts = parts[:1] * (len(words) - len(parts)) + parts  # given weights have no part of their own
    before = None
    for position, part in enumerate(parts):
        if part != before:
            words[position].append(f"{key}={part}")
        before = part


def names(runs: Sequence[Run], words: Words) -> list[tuple[str, ...]]:
    """For every run of one table the names of its stages."""
    return [
        tuple(f"{a} [{', '.join(w)}]" if w else a for a, w in zip(run.chain, mine, strict=True))
        for run, mine in zip(runs, words, strict=True)
    ]


def _same_parts(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def _differing_words(
    runs: Sequence[Run], position: int, starts: Sequence[str], by: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """`key=value` of every setting that sets these stages of one algorithm apart; the usual ones.

    A stage after each of several starts is that many methods, however many seeds these have.
    """
    told = filled(runs[0].chain[position], [_settings(run, position) for run in runs])
    known = [settings for settings in told if settings is not None]
    apart = {SAME.get(key) for key in by}
    keys = dict.fromkeys(key for settings in known for key in settings if key not in apart)
    # A key that this version does not know says nothing about runs that do not have it.
    differing = [k for k in keys if len({plain(s[k]) for s in known if k in s}) > 1]
    steps = {run.stages[position].steps for run in runs if position or "steps" not in by}
    found = []
    for run, settings in zip(runs, told, strict=True):
        words = [f"steps={run.stages[position].steps}"] if len(steps) > 1 else []
        if differing and settings is None:
            words.append("settings unknown")
        elif settings is not None:
            words += [f"{k}={plain(settings.get(k, '?'))}" for k in differing]
        found.append(words)
    methods = dict.fromkeys((start, *words) for start, words in zip(starts, found, strict=True))
    held = Counter(word for _, *words in methods for word in words)
    usual = [w for w, n in held.items() if n > USUAL * len(methods) and n < len(methods)]
    return [[w for w in words if w not in usual] for words in found], usual


def filled(algorithm: str, told: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Settings with the defaults of those that are younger than the run that recorded them."""
    keys = {key for settings in told if settings is not None for key in settings}
    if all(settings is None or settings.keys() == keys for settings in told):
        return [None if settings is None else dict(settings) for settings in told]
    # Imports torch; a new key's default, or what its absence means, is what versions before it did.
    defaults = {k: YOUNGER.get(k, v) for k, v in _defaults(algorithm).items() if k in keys}
    return [None if settings is None else defaults | dict(settings) for settings in told]


@cache
def _defaults(algorithm: str) -> dict[str, Any]:
    """Of an algorithm's settings; empty if it is not here."""
    from ssl_selmix.algorithm import load

    try:
        return dataclasses.asdict(load(algorithm)[1].Config())
    except ValueError:
        return {}


def _settings(run: Run, position: int) -> dict[str, Any] | None:
    """What a stage was told, flat; None if nobody recorded it."""
    stage = run.stages[position]
    if stage.settings is None:
        return None
    network = flatten({"model": run.model}) if run.model and position == 0 else {}
    own = flatten(dict(stage.settings)) | network
    return {k: v for k, v in own.items() if k != "steps"}


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
    runs, notes = reading.with_parents(runs)
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
    kept = [_without_doubles(part) for part in parts.values()]
    words, usual = differences([run for part, _ in kept for run in part], list(found), by)
    made = []
    for title, (part, doubles) in zip(titles, kept, strict=True):
        mine, words = words[: len(part)], words[len(part) :]
        images = protocol.images(part)
        protocol.refuse({protocol.IMAGES: images}, allow, splits=True)
        others = [f"allowed to differ: images of a seed: {', '.join(images)}"] if images else []
        made.append(_group(title, part, mine, [*others, *doubles, *usual]))
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


def _without_doubles(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of copies of one run the one whose folder is there; and notes."""
    kept: dict[tuple[str, int], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda r: (r.path.name != RESULTS, str(r.path))):
        twin = kept.setdefault((run.recorded.run_id, len(run.stages)), run)
        if twin is not run:
            notes.append(f"{run.name} and {twin.name} are the same run, counted once")
    return sorted(kept.values(), key=lambda r: str(r.path)), sorted(notes)


def _group(title: str, runs: list[Run], words: Words, notes: Sequence[str]) -> Group:
    told = [*notes, *_repeated(runs, words)]
    rows, merged = _rows(runs, names(runs, words))
    told += [*merged, *_unlike(runs), *_unrecorded(runs), *_gaps(rows)]
    return Group(title, runs, rows, protocol.summary(runs), told)


def _repeated(runs: Sequence[Run], words: Words) -> list[str]:
    """Notes on runs that repeat another one: same method, seed, images and figures.

    Raises:
        ValueError: their figures differ.
    """
    notes = []
    seen: dict[Any, Run] = {}
    for run, mine in zip(runs, words, strict=True):
        other = seen.setdefault((run.chain, run.unit, repr(mine)), run)
        if other is run:
            continue
        if not all(a.same_figures(b) for a, b in zip(other.stages, run.stages, strict=True)):
            raise ValueError(
                f"{other.name} and {run.name} are both {' + '.join(run.chain)} with seed "
                f"{run.seed} on the same images, and their figures differ; leave one of them out"
            )
        notes.append(f"{run.name} repeats {other.name} with the same figures, counted once")
    return notes


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


def _unlike(runs: Sequence[Run]) -> list[str]:
    """Settings of one name that stages of different algorithms have otherwise.

    What namesakes differ in is in their names, and steps have notes of their own.
    """
    notes = []
    for which, stages in (("first", slice(0, 1)), ("further", slice(1, None))):
        told = [
            (run.chain[position], flatten(dict(run.stages[position].settings or {})))
            for run in runs
            for position in range(len(run.stages))[stages]
        ]
        found = unlike((name, {k: v for k, v in s.items() if k != "steps"}) for name, s in told)
        if found:
            notes.append(f"settings of {which} stages that are not the same: {sentence(found)}")
    return notes


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
        "what has the same stages is taken for the same method"
    ]
