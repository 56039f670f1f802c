"""The file of a sweep: a short YAML that reads like the table it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ssl_selmix.common import config, fields, plugins
from ssl_selmix.common import text as texts
from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.common.text import Word

KEYS = ("out", "dataset", "preset", "seeds", "settings", "splits", "algorithms", "then", "slurm")
ARM_KEYS = ("algo", "preset", "settings", "after")
MOST_SEEDS = 10_000
FLAGS = ("true", "false")
FIRST, SECOND = "algo", "then"  # sections of whatever algorithm a first or second stage runs


@dataclass(frozen=True)
class Arm:
    """A row of the table: an algorithm and what it is told."""

    algo: str
    settings: Mapping[str, Any]
    preset: str | None = None
    after: tuple[str, ...] | None = None  # of a second stage; None: after every first stage


@dataclass(frozen=True)
class Spec:
    """What a sweep's file says."""

    origin: str
    out: Path
    dataset: str
    preset: str | None
    seeds: Mapping[str, tuple[int, ...]]  # of every split
    settings: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    algorithms: Mapping[str, Arm]
    then: Mapping[str, Arm]
    slurm: Mapping[str, str]
    words: Mapping[str, Any]  # settings of the command line, which have the last word

    @property
    def arms(self) -> dict[str, Arm]:
        """First and second stages by name."""
        return {**self.algorithms, **self.then}


def read(source: str, words: Sequence[str] = (), out: Path | None = None) -> Spec:
    """The spec in a YAML file or of a shipped name; settings and folder of the command line win.

    Raises:
        ValueError: there is no such file, or it has a mistake that shows without a run.
    """
    path = expanded(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"no sweep file {path}; check the path")
        text = plugins.text_of(path)
    elif source in (known := plugins.sweeps()):
        text = (files("ssl_selmix") / "configs" / "sweeps" / f"{source}.yaml").read_text("utf-8")
    else:
        raise ValueError(f"{unknown('sweep', source, known)}, or give a .yaml file")
    overrides = config.parse_overrides(words)
    try:
        spec = parse(text, source)
        _no_seed(overrides, "the command line")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return replace(spec, words=overrides, out=out or spec.out)


def parse(text: str, origin: str) -> Spec:
    """A spec from its YAML."""
    try:
        found = _mapping(texts.words(text), "a sweep", KEYS)
    except yaml.YAMLError as error:
        raise ValueError(f"this is no YAML: {' '.join(str(error).split())[:200]}") from error
    preset = _preset(found)
    dataset = _text(found.get("dataset", _dataset_of(preset)), "dataset")
    splits = _inner(found.get("splits"), "splits") or {Path(dataset).stem: {}}
    named = {name: _inner(value, f"split {name!r}") for name, value in splits.items()}
    seeds = _seeds(found.get("seeds", Word("0")))
    spec = Spec(
        origin=origin,
        out=expanded(_text(found.get("out", f"runs/{Path(origin).stem}"), "out")),
        dataset=dataset,
        preset=preset,
        seeds={
            name: _seeds(value.pop("seeds")) if "seeds" in value else seeds
            for name, value in named.items()
        },
        settings=_settings(found.get("settings"), "settings"),
        splits={name: _settings(value, f"split {name!r}") for name, value in named.items()},
        algorithms=_arms(found.get("algorithms"), "algorithms"),
        then=_arms(found.get("then"), "then"),
        slurm=_slurm(found.get("slurm")),
        words={},
    )
    _check_names(spec)
    return spec


def _mapping(value: Any, what: str, known: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a mapping of names to values, not {fields.shown(value)}")
    found = {str(key): item for key, item in value.items()}
    for key in found:
        if known and key not in known:
            raise ValueError(f"{unknown('key', key, known)} (in {what})")
    return found


def _inner(value: Any, what: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping that may be left empty."""
    return {} if _nothing(value) else _mapping(value, what, known)


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, Word) and value.is_null)


def _dataset_of(preset: str | None) -> Word:
    """What is trained on without a dataset of the spec: that of the preset, or digits."""
    named = plugins.preset_dataset(preset) if preset and preset != "none" else ""
    return Word(named or "digits")


def _preset(found: Mapping[str, Any]) -> str | None:
    value = found.get("preset")
    return None if _nothing(value) else _text(value, "preset")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or _nothing(value) or not value:
        raise ValueError(f"{what} must be a text, not {fields.shown(value)}")
    return str(value)


def _settings(value: Any, what: str) -> dict[str, Any]:
    found = config.flatten(_inner(value, what))
    _no_seed(found, what)
    return found


def _no_seed(settings: Mapping[str, Any], what: str) -> None:
    if "seed" in settings:
        raise ValueError(f"seed={settings['seed']} in {what}; list seeds as seeds: [0, 1, 2]")


def _seeds(value: Any) -> tuple[int, ...]:
    ends = re.fullmatch(r"(\d{1,9}) *- *(\d{1,9})", value) if isinstance(value, str) else None
    first, last = (int(ends[1]), int(ends[2])) if ends else (0, -1)
    if last - first >= MOST_SEEDS:
        raise ValueError(f"seeds must be at most {MOST_SEEDS}, not {value}")
    given = list(range(first, last + 1)) if ends else value
    try:
        found = [fields.value_of(s, int) for s in (given if isinstance(given, list) else [given])]
    except fields.WrongType:
        found = []
    if not found or min(found) < 0:
        raise ValueError(
            f"seeds must be whole numbers from 0, as in [0, 1, 2] or 0-2, not {fields.shown(value)}"
        )
    if len(set(found)) < len(found):
        raise ValueError(f"seeds must differ, not {fields.shown(value)}")
    return tuple(found)


def _arms(value: Any, what: str) -> dict[str, Arm]:
    if isinstance(value, list):
        names = [_text(name, f"each of {what}") for name in value]
        if len(set(names)) < len(names):
            raise ValueError(f"{what} must differ, not {names}; give variants names of their own")
        value = dict.fromkeys(names)
    found = _inner(value, what)
    return {name: _arm(name, item, what == SECOND) for name, item in found.items()}


def _arm(name: str, value: Any, second: bool) -> Arm:
    keys = ARM_KEYS if second else ARM_KEYS[:-1]
    found = _inner(value, f"arm {name!r}", keys)
    after = None if _nothing(found.get("after")) else found["after"]
    after = [after] if isinstance(after, str) else after
    if after is not None and (not isinstance(after, list) or not after):
        raise ValueError(f"after must list arms, not {after!r} (in arm {name!r})")
    return Arm(
        algo=_text(found.get("algo", name), f"algo of arm {name!r}"),
        settings=_settings(found.get("settings"), f"arm {name!r}"),
        preset=_preset(found),
        after=None if after is None else tuple(_text(one, "after") for one in after),
    )


def _slurm(value: Any) -> dict[str, str]:
    found = _inner(value, "slurm")
    for key, item in found.items():
        if (
            not re.fullmatch(r"[a-z-]+", key)
            or not isinstance(item, str)
            or _nothing(item)
            or item in FLAGS
        ):
            said = f"slurm.{key}={fields.shown(item)}"
            raise ValueError(f"{said} is no long option of sbatch with its value")
        if key in ("array", "output") or len(str(item).split("\n")) > 1:
            raise ValueError(f"slurm.{key} is not for a sweep to change; leave it out")
    return {key: str(item) for key, item in found.items()}


def slug(name: str) -> str:
    """A name as a folder's: letters, digits and a few signs; `+` joins the names of stages."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-.")


def _check_names(spec: Spec) -> None:
    if not spec.algorithms:
        raise ValueError("no algorithm; list one, as in algorithms: [fixmatch]")
    for names in (spec.splits, [*spec.algorithms, *spec.then]):
        taken: dict[str, str] = {}
        for name in names:
            place = slug(name).casefold()
            if not place:
                raise ValueError(f"the name {name!r} has no letter for a folder; rename it")
            if place in taken:
                raise ValueError(f"{taken[place]!r} and {name!r} need one folder; rename one")
            taken[place] = name
    above = list(spec.algorithms)
    for name, arm in spec.then.items():
        for one in arm.after or ():
            if one not in above:
                raise ValueError(f"{unknown('arm', one, above)} (after, in arm {name!r})")
        above.append(name)
