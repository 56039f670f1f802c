"""Features of a network in the place of images: data.root=FILE.npz, .npy + .csv, .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.paths import expanded
from ssl_selmix.data import arrays
from ssl_selmix.data.arrays import Part
from ssl_selmix.data.features import VIEWS, FeatureSet, Rows
from ssl_selmix.data.source import sha256_of_arrays
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit


@dataclass
class Config(LongTailSplit):
    """Where the features are and how they are split; the counts are the SelMix paper's CIFAR-10."""

    root: str = ""  # the file of features, or the folder that has it
    labeled: Counts = field(default_factory=lambda: Counts(largest=1500, rho=100.0))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=3000, rho=100.0))
    validation: int | float | str = 500


def files(config: Config) -> list[Path]:
    """The file and its table, or the folder: see `runs.kept`."""
    path = expanded(config.root)
    return [path, path.with_suffix(".csv")] if config.root else []


def load(config: Config) -> FeatureSet:
    """The parts of the file or folder; views of the images, if it has some."""
    if not config.root:
        raise ValueError(
            "--dataset features needs data.root=FILE, an .npz, .npy or .safetensors file or a "
            f"folder of .npy files; {arrays.EXPECTED}"
        )
    path = expanded(config.root)
    parts, names = arrays.read(path)
    names = _names(str(path), parts, names)
    test = None if config.test else parts.get("test")
    held = parts.get("validation") if config.validation == FOLDER else None
    if config.validation == FOLDER and held is None:
        raise ValueError(f"{path} has no part validation; set data.validation=20, say")
    extra = parts.get("unlabeled") if config.unlabeled.shape == "unknown" else None
    used = {"train": parts["train"]} | ({"validation": held} if held else {})
    labels = [_numbers(f"{path}: {name}", part, names) for name, part in used.items()]
    return FeatureSet(
        train=Rows(*(part.features for part in used.values())),
        train_labels=np.concatenate(labels),
        class_names=names,
        views=_views(str(path), [*used.values(), *([extra] if extra else [])]),
        test=Rows(test.features) if test else None,
        test_labels=_numbers(f"{path}: test", test, names) if test else None,
        extra_unlabeled=Rows(extra.features) if extra else None,
        apart=len(held.features) if held else 0,
        groups=_groups(str(path), used),
        digest=_digest([*used.values(), *(part for part in (test, extra) if part)]),
    )


def _names(path: str, parts: Mapping[str, Part], told: tuple[str, ...] | None) -> tuple[str, ...]:
    """The classes: as told, or the texts among the labels, or the numbers up to the largest."""
    if parts["train"].labels is None:
        raise ValueError(f"{path} has no train_labels; add a label per row of train")
    if told is not None:
        found = told
    elif parts["train"].labels.dtype.kind == "U":
        found = tuple(np.unique(parts["train"].labels).tolist())
    else:
        found = tuple(map(str, range(int(parts["train"].labels.max()) + 1)))
    if len(set(found)) != len(found) or len(found) < 2:
        raise ValueError(f"{path} has the classes {list(found)[:10]}; give two or more, each once")
    return found


def _numbers(where: str, part: Part, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Labels as positions in the names; -1, of numbers, is an unknown class."""
    labels = part.labels
    if labels is None:
        raise ValueError(f"{where} has no labels; add {where.rpartition(' ')[2]}_labels")
    if labels.dtype.kind == "U":
        numbers = {name: k for k, name in enumerate(names)}
        if others := sorted(set(labels.tolist()) - numbers.keys()):
            raise ValueError(f"{where} has the class {others[0]!r}, which train lacks; correct it")
        return np.array([numbers[name] for name in labels.tolist()], dtype=np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= len(names):
        raise ValueError(
            f"{where} labels run from {low} to {high} and there are {len(names)} classes; they "
            f"must lie in 0..{len(names) - 1}"
        )
    return labels.astype(np.int64)


def _groups(path: str, parts: Mapping[str, Part]) -> npt.NDArray[np.int64] | None:
    """Numbers of the groups of all parts, (N,), or None without any.

    Raises:
        ValueError: one part has them and another has not.
    """
    here = [part.groups for part in parts.values() if part.groups is not None]
    if not here:
        return None
    if len(here) < len(parts):
        lacking = next(name for name, part in parts.items() if part.groups is None)
        raise ValueError(f"{path} has groups, but none of its part {lacking}; add {lacking}_groups")
    return np.unique(np.concatenate(here), return_inverse=True)[1].astype(np.int64)


def _views(path: str, parts: list[Part]) -> dict[str, Rows]:
    """The views of all parts one after the other.

    Raises:
        ValueError: one part has them and another has not, or not as many.
    """
    found = {}
    for name in VIEWS:
        drawn = [part.views.get(name) for part in parts]
        here = [views for views in drawn if views is not None]
        if here and (len(here) < len(drawn) or len({views.shape[1] for views in here}) > 1):
            raise ValueError(
                f"{path} has not the same number of {name} views of all its parts; give as many "
                "of each, or leave them out"
            )
        if here:
            found[name] = Rows(*here)
    return found


def _digest(parts: list[Part]) -> str:
    found = chain.from_iterable((part.features, *part.views.values()) for part in parts)
    return sha256_of_arrays(*(tensor.numpy() for tensor in found))
