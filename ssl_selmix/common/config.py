"""One configuration: dataclass defaults, then the preset's YAML, then the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_selmix.common.names import unknown
from ssl_selmix.common.rules import Checked, at_least, one_of

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Keys that every stage had in released versions and some have no more, with the default: a run that
# recorded it can be resumed, and the fingerprints of checkpoints still count it in.
RETIRED: Mapping[str, Any] = {"mu": 2}
REASONS = {
    "mu": "it is for methods that draw unlabeled images, whose Config is an Algorithm.PoolConfig"
}
# May differ between a run and its resumption.
MACHINE_KEYS = (
    *("device", "threads", "pictures", "checkpoint_minutes", "data.workers", "data.cache"),
)


@dataclass
class Run(Checked):
    """Settings of a run that belong to no part of it."""

    seed: int = at_least(0, 0)  # of all random numbers
    device: str = "auto"  # auto: a GPU if there is one; else as torch names it
    threads: int = at_least(0, 0)  # of the CPU; 0: chosen from the machine and the work of a step
    precision: str = one_of(*PRECISIONS)  # of the body; auto: bf16 where hardware has it
    compile: bool = False  # torch.compile for the network's body
    pictures: bool = True  # draw confusion and gain matrices for TensorBoard at every validation
    # of training between checkpoints, beside those at validations; 0: those alone
    checkpoint_minutes: float = at_least(0, 30.0)
    sync_batch_norm: bool = False  # batch statistics over the images of all processes


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as a flat mapping; values are YAML.

    Raises:
        ValueError: a word without `=`, or a value that is no YAML.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, _ = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is no setting; write key=value, such as seed=1")
        try:
            overrides |= settings_of(OmegaConf.from_dotlist([pair]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{pair!r} has a value that YAML cannot read") from error
    return overrides


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """A preset's text as a flat mapping.

    Raises:
        ValueError: the text is no YAML mapping.
    """
    try:
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise ValueError(f"{origin} must be a mapping of keys to values")
        return settings_of(loaded)
    except AssertionError as error:  # OmegaConf's answer to a lone number
        raise ValueError(f"{origin} must be a mapping of keys to values") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{origin} is no YAML: {str(error).splitlines()[0]}") from error


def settings_of(tree: DictConfig) -> dict[str, Any]:
    """A configuration tree as a flat mapping."""
    return flatten({str(k): v for k, v in dict(OmegaConf.to_container(tree)).items()})  # type: ignore[arg-type]


def compose(
    sections: Mapping[str, type[Any]], layers: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Typed configuration objects by section (and "" for `Run`), and their plain values.

    Args:
        sections: dataclass of each section.
        layers: (where it comes from, flat settings), later ones win.

    Raises:
        ValueError: an unknown key (the nearest is named), a wrong type, a value out of range.
    """
    types = {"": Run, **sections}
    tree: DictConfig = OmegaConf.structured(Run)
    OmegaConf.set_struct(tree, False)
    for name, kind in sections.items():
        tree[name] = OmegaConf.structured(kind)
    OmegaConf.set_struct(tree, True)
    known = flatten(OmegaConf.to_container(tree))  # type: ignore[arg-type]
    for origin, settings in layers:
        for key, value in settings.items():
            _check_key(key, known, origin)
            _set(tree, key, value, origin)
    objects: dict[str, Any] = {}
    for name in types:
        try:
            if name:
                objects[name] = OmegaConf.to_object(tree[name])
            else:
                objects[name] = Run(**{key: tree[key] for key in Run.__annotations__})
        except (ValueError, OmegaConfBaseException) as error:
            raise ValueError(f"{name}{'.' if name else ''}{error}") from error
    plain = OmegaConf.to_container(tree)
    assert isinstance(plain, dict)
    return objects, {str(k): v for k, v in plain.items()}


def _check_key(key: str, known: Mapping[str, Any], origin: str) -> None:
    if key not in known:
        inside = sorted(k for k in known if k.startswith(key + "."))
        if inside:
            raise ValueError(f"{key} is a group; set one of {', '.join(inside)} ({origin})")
        section, _, name = key.rpartition(".")
        if name in REASONS and any(k.startswith(f"{section}.") for k in known):
            raise ValueError(f"unknown key {key!r}: {REASONS[name]}; leave it out ({origin})")
        raise ValueError(f"{unknown('key', key, known)} ({origin})")


def _set(tree: DictConfig, key: str, value: Any, origin: str) -> None:
    try:
        OmegaConf.update(tree, key, value)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}={value!r} has the wrong type: {reason} ({origin})") from error


def without_retired(
    recorded: Mapping[str, Any], sections: Mapping[str, type[Any]]
) -> dict[str, Any]:
    """The flat settings of an older run, but for those that its sections do not have any more."""
    known = {f"{section}.{f.name}" for section, kind in sections.items() for f in fields(kind)}
    gone = {k for k in recorded if k not in known and k.rpartition(".")[2] in RETIRED}
    return {key: value for key, value in recorded.items() if key not in gone}


def deciding(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those of the machine, which decide no result."""
    return {
        key: deciding(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in MACHINE_KEYS
    }


def fingerprint(*parts: Any) -> str:
    """SHA-256 of JSON-like values, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for every key that decides a result and differs."""
    before, after = flatten(old), flatten(new)
    for key in before.keys() - after.keys():
        if (name := key.rpartition(".")[2]) in RETIRED:
            after[key] = RETIRED[name]
    keys = [k for k in sorted(before.keys() | after.keys()) if k not in MACHINE_KEYS]
    return [
        f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)
    ]
