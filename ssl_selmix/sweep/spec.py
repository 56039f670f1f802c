"""The file of a sweep: a short YAML that reads like the table it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_selmix.common import config, plugins
from ssl_selmix.common.names import unknown

KEYS = ("out", "dataset", "preset", "seeds", "settings", "splits", "algorithms", "then", "slurm")
ARM_KEYS = ("algo", "preset", "settings", "after")
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
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"no sweep file {path}; check the path")
        text = path.read_bytes().decode("utf-8", "replace")  # what is no text is no YAML
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
        loaded = OmegaConf.create(text)
        tree = OmegaConf.to_container(loaded) if OmegaConf.is_config(loaded) else None
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"this is no YAML: {line or 'a lone number'}") from error
    found = _mapping(tree, "a sweep", KEYS)
    dataset = _text(found.get("dataset", "digits"), "dataset")
    splits = _mapping(found.get("splits") or {Path(dataset).stem: {}}, "splits")
    named = {
        name: _mapping(value if value is not None else {}, f"split {name!r}")
        for name, value in splits.items()
    }
    seeds = _seeds(found.get("seeds", 0))
    spec = Spec(
        origin=origin,
        out=Path(_text(found.get("out", f"runs/{Path(origin).stem}"), "out")),
        dataset=dataset,
        preset=_text(found["preset"], "preset") if found.get("preset") else None,
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
        raise ValueError(f"{what} must be a mapping of names to values, not {value!r}")
    found = {str(key): item for key, item in value.items()}
    for key in found:
        if known and key not in known:
            raise ValueError(f"{unknown('key', key, known)} (in {what})")
    return found


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be a text, not {value!r}")
    return value


def _settings(value: Any, what: str) -> dict[str, Any]:
    found = config.flatten(_mapping(value if value is not None else {}, what))
    _no_seed(found, what)
    return found


def _no_seed(settings: Mapping[str, Any], what: str) -> None:
    if "seed" in settings:
        raise ValueError(f"seed={settings['seed']} in {what}; list seeds as seeds: [0, 1, 2]")


def _seeds(value: Any) -> tuple[int, ...]:
    ends = re.fullmatch(r"(\d+) *- *(\d+)", value) if isinstance(value, str) else None
    found = list(range(int(ends[1]), int(ends[2]) + 1)) if ends else value
    found = found if isinstance(found, list) else [found]
    if not found or any(type(seed) is not int or seed < 0 for seed in found):
        raise ValueError(f"seeds must be whole numbers from 0, as in [0, 1, 2] or 0-2, not {value}")
    if len(set(found)) < len(found):
        raise ValueError(f"seeds must differ, not {value}")
    return tuple(found)


def _arms(value: Any, what: str) -> dict[str, Arm]:
    if isinstance(value, list):
        if len(set(map(str, value))) < len(value):
            raise ValueError(f"{what} must differ, not {value}; give variants names of their own")
        value = dict.fromkeys(value)
    found = _mapping(value if value is not None else {}, what)
    return {name: _arm(name, item, what == SECOND) for name, item in found.items()}


def _arm(name: str, value: Any, second: bool) -> Arm:
    keys = ARM_KEYS if second else ARM_KEYS[:-1]
    found = _mapping(value if value is not None else {}, f"arm {name!r}", keys)
    after = found.get("after")
    after = [after] if isinstance(after, str) else after
    if after is not None and (not isinstance(after, list) or not after):
        raise ValueError(f"after must list arms, not {after!r} (in arm {name!r})")
    return Arm(
        algo=_text(found.get("algo", name), f"algo of arm {name!r}"),
        settings=_settings(found.get("settings"), f"arm {name!r}"),
        preset=_text(found["preset"], "preset") if found.get("preset") else None,
        after=None if after is None else tuple(map(str, after)),
    )


def _slurm(value: Any) -> dict[str, str]:
    found = _mapping(value if value is not None else {}, "slurm")
    for key, item in found.items():
        if key == "time" and not isinstance(item, str):  # YAML reads 12:00:00 as 43200
            raise ValueError(f"slurm.time={item} is no text; write it in quotes, as in '12:00:00'")
        if not re.fullmatch(r"[a-z-]+", key) or type(item) not in (str, int):
            raise ValueError(f"slurm.{key}={item!r} is no long option of sbatch with its value")
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
