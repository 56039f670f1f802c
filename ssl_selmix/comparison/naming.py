"""Names of methods: what tells runs of the same algorithms from each other."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ssl_selmix.comparison import protocol
from ssl_selmix.comparison.reading import Run, Stage, Unit
from ssl_selmix.config import flatten

USUAL = 2 / 3  # a value that more of the methods share goes without saying

COMMON = ("model",)  # section of the configuration that no protocol repeats in full

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
            found, usual = _differing([runs[i] for i in same], position, starts, by)
            for i, new in zip(same, found, strict=True):
                words[i][position] += new
            if usual:
                twice = any(run.chain.count(name) > 1 for run in runs)
                which = f"{name} as stage {position + 1}" if twice else name
                notes.append(f"{which}: {', '.join(usual)}, where its name says nothing else")
    told = [protocol.keys(run) for run in runs]
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
    parts = value.split(protocol.THEN)
    parts = parts[:1] * (len(words) - len(parts)) + parts  # given weights have no part of their own
    before = None
    for position, part in enumerate(parts):
        if part != before:
            words[position].append(f"{key}={part}")
        before = part


def names(runs: Sequence[Run], words: Words) -> tuple[list[tuple[str, ...]], list[str]]:
    """For every run of one table the names of its stages; and notes on how they were found."""
    words = [[list(stage) for stage in run] for run in words]
    notes = _by_file_names(runs, words)
    found = [
        tuple(f"{a} [{', '.join(w)}]" if w else a for a, w in zip(run.chain, mine, strict=True))
        for run, mine in zip(runs, words, strict=True)
    ]
    return found, notes


def _same_parts(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def _differing(
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
    differing = [k for k in keys if len({_plain(s[k]) for s in known if k in s}) > 1]
    steps = {run.stages[position].steps for run in runs if position or "steps" not in by}
    found = []
    for run, settings in zip(runs, told, strict=True):
        words = [f"steps={run.stages[position].steps}"] if len(steps) > 1 else []
        if differing and settings is None:
            words.append("settings unknown")
        elif settings is not None:
            words += [f"{k}={_plain(settings.get(k, '?'))}" for k in differing]
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
    # Imports torch; a new key's default is what versions before it did.
    defaults = {k: v for k, v in _defaults(algorithm).items() if k in keys}
    return [None if settings is None else defaults | dict(settings) for settings in told]


@cache
def _defaults(algorithm: str) -> dict[str, Any]:
    """Of an algorithm's settings; empty if it is not here."""
    from ssl_selmix import plugins

    try:
        return dataclasses.asdict(plugins.algorithm(algorithm)[1].Config())
    except ValueError:
        return {}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def _by_file_names(runs: Sequence[Run], words: Words) -> list[str]:
    """Tell runs without settings apart by the words of their paths; notes on which.

    Raises:
        ValueError: two runs claim to be the same and have different figures.
    """
    notes = []
    kinds: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        kinds.setdefault(repr((run.chain, words[i])), []).append(i)
    for same in kinds.values():
        units = [runs[i].unit for i in same]
        if len(set(units)) == len(units):
            continue
        tags = _path_words([runs[i] for i in same])
        known = all(s.settings is not None for i in same for s in runs[i].stages)
        if known or len({*zip(units, tags, strict=True)}) < len(units):
            raise ValueError(_contradiction([runs[i] for i in same], () if known else tags))
        position = _where_they_part([runs[i] for i in same], tags)
        for i, tag in zip(same, tags, strict=True):
            words[i][position] += [tag] if tag else []
        shown = ", ".join(sorted(f"'{tag}'" for tag in set(tags) if tag))
        chain = " + ".join(runs[same[0]].chain)
        notes.append(f"runs of {chain} are told apart by their file names: {shown}")
    return notes


def _contradiction(runs: Sequence[Run], tags: Sequence[str]) -> str:
    """The first two runs that say that they are the same."""
    first: dict[Any, Run] = {}
    for run, tag in zip(runs, tags or [""] * len(runs), strict=True):
        other = first.setdefault((run.unit, tag), run)
        if other is not run:
            break
    return (
        f"{other.name} and {run.name} are both {' + '.join(run.chain)} with seed {run.seed} on the "
        "same images, and their figures differ; leave one of them out"
    )


def _path_words(runs: Sequence[Run]) -> list[str]:
    """What is special in each path: no seeds, no algorithms, no words that all have."""
    split = [re.split(r"[/\\.\s-]+", run.name) for run in runs]
    common = set.intersection(*(set(words) for words in split))
    return [
        " ".join(
            w
            for w in dict.fromkeys(words)
            if w not in common | set(run.chain) and not re.fullmatch(r"(seed|s)?\d*|json", w)
        )
        for run, words in zip(runs, split, strict=True)
    ]


def _where_they_part(runs: Sequence[Run], tags: Sequence[str]) -> int:
    """The first stage in which runs of one seed with different tags differ."""
    last = len(runs[0].stages) - 1
    for position in range(last):
        seen: dict[Unit, Stage] = {}
        for run in runs:
            stage = run.stages[position]
            if not stage.same_figures(seen.setdefault(run.unit, stage)):
                return position
    return last


def _settings(run: Run, position: int) -> dict[str, Any] | None:
    """What a stage was told, flat; None if nobody recorded it."""
    stage = run.stages[position]
    if stage.settings is None:
        return None
    common = {k: run.config[k] for k in COMMON if k in run.config} if run.config else {}
    own = flatten(dict(stage.settings)) | (flatten(common) if position == 0 else {})
    return {k: v for k, v in own.items() if k != "steps"}
