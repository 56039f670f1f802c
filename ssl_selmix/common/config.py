"""One configuration: dataclass defaults, then the preset's YAML, then the command line."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yaml import YAMLError

from ssl_selmix.common import fields, text
from ssl_selmix.common.fields import shown
from ssl_selmix.common.keys import unknown_key
from ssl_selmix.common.rules import Checked, at_least, one_of
from ssl_selmix.common.text import Word

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Keys that every stage had in released versions and some have no more, with the default: a run that
# recorded it can be resumed, and the fingerprints of checkpoints still count it in.
RETIRED: Mapping[str, Any] = {"mu": 2}
REASONS = {
    "pseudo_labels": "it is for FixMatch and its relatives, which learn nothing through weak views",
    "mu": "it is for methods that draw unlabeled images, whose Config is an Algorithm.PoolConfig",
}
# Keys that came after version 0.1, with the value that means what was before them: a run with that
# value records what older runs recorded, so that either can be resumed and compared. Those of a
# stage stand without its name.
ADDED: Mapping[str, Any] = {
    "model.pretrained": "",
    "model.size": 0,
    "model.mean": [],
    "model.std": [],
    "model.interpolation": "auto",
    "model.tune": "full",
    "model.rank": 8,
    "model.scale": None,
    "model.dropout": 0.0,
    "model.layer_decay": 1.0,
    "model.head": "linear",
    "model.length": None,
    "model.branches": 1,
    "optimizer": "sgd",
    "mu_from": 0,
    "gamma_pos": 0.0,
    "gamma_neg": 4.0,
    "label_smoothing": 0.1,
    "sam": "none",
    "sam_radius": None,
    "sam_below": 0,
    "prune": 0.0,
    "prune_until": 0.875,
    "data.unlabeled_from": [],
    "data.more_roots": [],
    "statistics": "shared",
    "label_filter": "none",
    "filter_from": 0.5,
    "data.weight_column": "",
    "data.annotators": "vote",
    "rate": "absolute",
    "offsets": "none",
    "pseudo_labels": "student",
    "with_labeled": False,
    "views.strong": "randaugment",
    "step.strong": "randaugment",  # as runs record that section
    "augmix_width": 3,
    "augmix_depth": 0,
    "augmix_severity": 3.0,
    "augmix_alpha": 1.0,
    "augmix_all": False,
}
# Keys that stages did not have in released versions, with what their absence means, and defaults
# that were others then: a run without the keys goes on as it began.
YOUNGER: Mapping[str, Any] = {"rate": "absolute"}
CHANGED: Mapping[str, Any] = {"stop": "none"}
# May differ between a run and its resumption.
MACHINE_KEYS = (
    *(
        "device",
        "threads",
        "pictures",
        "checkpoint_minutes",
        "data.workers",
        "data.cache",
        "data.strict",
        "features.dir",
    ),
)
# Where a machine has the images.
PLACES_OF_DATA = (
    *("data.root", "data.file", "data.shards", "data.test_shards", "data.validation_shards"),
    *("data.unlabeled_shards", "data.unlabeled_from", "data.more_roots", "data.lists"),
    *("data.train_list", "data.labeled_index", "data.unlabeled_index", "data.validation_index"),
)


@dataclass
class Run(Checked):
    """Settings of a run that belong to no part of it."""

    seed: int = at_least(0, 0)  # seeds all generators
    device: str = "auto"  # auto: a GPU if there is one; else as torch names it
    # threads of the CPU; 0: chosen from the machine and the work of a step
    threads: int = at_least(0, 0)
    # number format in which the network's body computes; auto: bf16 where hardware has it
    precision: str = one_of(*PRECISIONS)
    compile: bool = False  # torch.compile for the network's body
    pictures: bool = True  # draw confusion and gain matrices for TensorBoard, at five validations
    # minutes of training between checkpoints, beside those at validations; 0: those alone
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
    """`key=value` words as a flat mapping to `Word`s, as they were typed.

    Raises:
        ValueError: a word without `=`.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{pair!r} is no setting; write key=value, such as seed=1")
        overrides[key] = Word(value)
    return overrides


def parse_yaml(content: str, origin: str) -> dict[str, Any]:
    """A preset's text as a flat mapping to `Word`s, and to texts where it has quotes.

    Raises:
        ValueError: the text is no YAML mapping.
    """
    try:
        loaded = text.words(content)
        if not isinstance(loaded, Mapping) and loaded is not None:
            raise ValueError(f"{origin} must be a mapping of keys to values")
        return flatten({str(key): value for key, value in (loaded or {}).items()})
    except YAMLError as error:
        raise ValueError(f"{origin} is no YAML: {' '.join(str(error).split())[:200]}") from error


Layer = tuple[str, Mapping[str, Any]]  # where settings come from, and they by dotted key


def read(sections: Mapping[str, type[Any]], layers: Sequence[Layer]) -> list[Layer]:
    """The layers with values in place of words.

    Raises:
        ValueError: an unknown key (the nearest is named), or a wrong type.
    """
    known = flatten(_trees(sections, types=True))
    return [(origin, _read(settings, known, origin)) for origin, settings in layers]


def _read(settings: Mapping[str, Any], known: Mapping[str, Any], origin: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in _ungrouped(settings, known, origin).items():
        _check_key(key, known, origin)
        try:
            found[key] = fields.value_of(value, known[key])
        except fields.WrongType as error:
            raise ValueError(f"{key} must be {error}, not {shown(value)} ({origin})") from error
        except fields.NoSetting as error:
            raise ValueError(f"{key} cannot be set: {error} ({origin})") from error
    return found


def _ungrouped(
    settings: Mapping[str, Any], known: Mapping[str, Any], origin: str
) -> dict[str, Any]:
    """`data.labeled={largest: 3}` as the one key that it sets."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        group = isinstance(value, Word) and value.strip().startswith("{") and key not in known
        inner = parse_yaml(value, f"{key} ({origin})") if group else {}
        found |= {f"{key}.{name}": item for name, item in inner.items()} or {key: value}
    return found


def compose(
    sections: Mapping[str, type[Any]], layers: Sequence[Layer]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Typed configuration objects by section (and "" for `Run`), and their plain values.

    Args:
        sections: dataclass of each section.
        layers: settings, later ones win.

    Raises:
        ValueError: an unknown key (the nearest is named), a wrong type, a value out of range.
    """
    tree = _trees(sections)
    for _, settings in read(sections, layers):
        for key, value in settings.items():
            *groups, last = key.split(".")
            place = tree
            for group in groups:
                place = place[group]
            place[last] = value
    objects: dict[str, Any] = {}
    kinds: dict[str, type[Any]] = {"": Run, **sections}
    for name, kind in kinds.items():
        own = (
            {k: v for k, v in tree.items() if k in Run.__annotations__} if not name else tree[name]
        )
        try:
            objects[name] = _build(kind, own)
        except ValueError as error:
            raise ValueError(f"{name}{'.' if name else ''}{error}") from error
    return objects, _plain(tree)


def _trees(sections: Mapping[str, type[Any]], types: bool = False) -> dict[str, Any]:
    """The defaults of all sections, or the types of their fields."""
    tree = _tree(Run, Run(), types)
    return tree | {name: _tree(kind, None, types) for name, kind in sections.items()}


def _tree(kind: type[Any], instance: Any, types: bool) -> dict[str, Any]:
    """A dataclass's fields by name: their types, or what an instance or else the class has there.

    Raises:
        NoSetting: a field is of a type that no setting can have.
    """
    found: dict[str, Any] = {}
    hints = fields.types_of(kind)
    for field in dataclasses.fields(kind):
        if field.name not in hints:
            continue
        hint, value = hints[field.name], getattr(instance, field.name, None)
        if instance is None:
            made = field.default_factory is not dataclasses.MISSING
            value = field.default_factory() if made else field.default  # type: ignore[misc,operator]
        if dataclasses.is_dataclass(hint):
            nested = type(value) if dataclasses.is_dataclass(value) else hint
            inner = value if dataclasses.is_dataclass(value) else None
            found[field.name] = _tree(nested, inner, types)  # type: ignore[arg-type]
        elif types:
            found[field.name] = hint
        else:
            found[field.name] = _default(kind, field.name, value, hint)
    return found


def _default(kind: type[Any], name: str, value: Any, hint: Any) -> Any:
    try:
        return value if value is dataclasses.MISSING else fields.value_of(value, hint)
    except fields.WrongType as error:
        raise fields.NoSetting(
            f"the default of {name} in {kind.__qualname__} must be {error}, not {shown(value)}"
        ) from error
    except fields.NoSetting as error:
        raise fields.NoSetting(f"{name} in {kind.__qualname__}: {error}") from error


def _build(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The object of these values; those of nested dataclasses are built first."""
    hints, given = fields.types_of(kind), {}
    for name, value in values.items():
        if value is dataclasses.MISSING:
            raise ValueError(f"{name} has no default; set it, or give Config one")
        if not dataclasses.is_dataclass(hints[name]):
            given[name] = copy.copy(value)
            continue
        try:
            given[name] = _build(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error
    return kind(**given)


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, Mapping) else fields.plain(v) for k, v in tree.items()}


def _check_key(key: str, known: Mapping[str, Any], origin: str) -> None:
    if key not in known:
        inside = sorted(k for k in known if k.startswith(key + "."))
        if inside:
            raise ValueError(f"{key} is a group; set one of {', '.join(inside)} ({origin})")
        section, _, name = key.rpartition(".")
        if name in REASONS and any(k.startswith(f"{section}.") for k in known):
            raise ValueError(f"unknown key {key!r}: {REASONS[name]}; leave it out ({origin})")
        raise ValueError(f"{unknown_key(key, list(known))} ({origin})")


def without_retired(
    recorded: Mapping[str, Any], sections: Mapping[str, type[Any]]
) -> dict[str, Any]:
    """The flat settings of an older run, but for those that its sections do not have any more."""
    known = {
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
    }
    gone = {k for k in recorded if k not in known and k.rpartition(".")[2] in RETIRED}
    return {key: value for key, value in recorded.items() if key not in gone}


def as_began(recorded: Mapping[str, Any], sections: Mapping[str, type[Any]]) -> dict[str, Any]:
    """What the sections' defaults were when a run began that records none of the keys `YOUNGER`.

    Args:
        recorded: its flat settings.
        sections: dataclass of each section of today.
    """
    found: dict[str, Any] = {}
    for section, kind in sections.items():
        names = {field.name for field in dataclasses.fields(kind)}
        begun = any(key.startswith(f"{section}.") for key in recorded)
        if begun and any(n in names and f"{section}.{n}" not in recorded for n in YOUNGER):
            old = {n: v for n, v in {**YOUNGER, **CHANGED}.items() if n in names}
            found |= {f"{section}.{name}": value for name, value in old.items()}
    return found


def as_released(section: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings as checkpoints of older versions count them in."""
    kept = {k: v for k, v in section.items() if k not in YOUNGER or v != YOUNGER[k]}
    return dict(RETIRED) | kept


def deciding(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings without those of the machine and those of `ADDED`, which decide no result."""
    return {
        key: deciding(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in MACHINE_KEYS and not _as_before(f"{prefix}{key}", value)
    }


def _as_before(key: str, value: Any) -> bool:
    """Whether an added setting has the value that means what was before it."""
    name = key if key in ADDED else key.rpartition(".")[2]
    return name in ADDED and bool(value == ADDED[name])


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
    for key in after.keys() - before.keys():
        if (name := key if key in ADDED else key.rpartition(".")[2]) in ADDED:
            before[key] = ADDED[name]
    keys = [k for k in sorted(before.keys() | after.keys()) if k not in MACHINE_KEYS]
    return [
        f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)
    ]
