"""From images with labels by part, as shards and Hugging Face sets have them, to a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_selmix.common.console import warn
from ssl_selmix.common.names import unknown
from ssl_selmix.data import listed
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.listed import Listed
from ssl_selmix.data.source import ImageSet
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images.cache import folder_of
from ssl_selmix.images.checks import check_class_names
from ssl_selmix.images.folder import Part
from ssl_selmix.images.pieces import Piece
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit

PARTS = ("train", "validation", "test", "unlabeled")


class Sample(NamedTuple):
    """One image: the bytes of a file that it is, its name, its label; "" is none."""

    file: str
    offset: int
    size: int
    name: str
    label: str


@dataclass
class Config(LongTailSplit):
    """How the images of such a set are split, read and kept; as of `datasets.table`."""

    classes: list[str] = field(default_factory=list)  # their order, or names of the numbers
    # side of the views, size×size pixels; None: take small images as they are
    size: int | None = None
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="all"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    # Held out of the train images; `folder`: the images of the part validation
    validation: int | float | str = 0.2
    # place of decoded images or digests: auto (~/.cache/ssl_selmix), none, a folder
    cache: str = "auto"
    workers: int | None = None  # processes that read images above 64 px; None: one for each core
    strict: bool = True  # refuse a JPEG that is damaged in its middle; false: tell of it, take it

    def __post_init__(self) -> None:
        """Refuse a size or a number of workers without meaning, and a cache without a place."""
        super().__post_init__()
        folder_of(self.cache)
        check_settings(self.size, self.workers)


def load(
    where: str, parts: Mapping[str, Sequence[Sample]], config: Config, stated: Sequence[str] = ()
) -> ImageSet | FileSet:
    """The images as pools, or as pieces of their files above 64 px, in the order of class and name.

    Args:
        where: the data set, for messages.
        parts: by their names in `PARTS`; images to train on without a label are unlabeled ones.
        config: how they are split and read.
        stated: names of the classes in their order, if the set has them.

    Raises:
        ValueError: parts, classes and settings do not fit together, or an image is no whole one.
    """
    found = listing(where, parts, config, stated)
    return listed.load(found, config.size, config.cache, config.workers, strict=config.strict)


def listing(
    where: str, parts: Mapping[str, Sequence[Sample]], config: Config, stated: Sequence[str] = ()
) -> Listed:
    """What is to be read; see `load`."""
    used = _used(where, _by_part(parts), config)
    if not used.get("train"):
        raise ValueError(f"{where} has no image with a label to train on; add labels")
    names = _names(where, used, config.classes, stated)
    places = {name: k for k, name in enumerate(names)}
    given = _numbered(used, config.classes or stated)

    def part(kind: str) -> Part | None:
        if not used.get(kind):
            return None
        rows = [(places.get(given.get(s.label, s.label), -1), s) for s in used[kind]]
        rows.sort(key=lambda row: (row[0], row[1].name.split("/")))
        known = kind != "unlabeled"
        labels_of = [names[k] if known else "" for k, _ in rows]
        pieces = _pieces(where, kind, labels_of, [s for _, s in rows])
        labels = np.array([k for k, _ in rows], dtype=np.int64)
        return Path(where) / kind, pieces, labels if known else None

    train = part("train")
    assert train is not None
    return Listed(Path(where), names, train, part("validation"), part("test"), part("unlabeled"))


def _pieces(
    where: str, part: str, labels: Sequence[str], found: Sequence[Sample]
) -> Sequence[Piece]:
    """Named as in a folder of class folders, so that the digest of large images is equal."""

    def name(label: str, sample: Sample, *own: str) -> str:
        inner = sample.name.removeprefix(f"{part}/").removeprefix(f"{label}/")
        return "/".join(word for word in (part, label, *own, inner) if word)

    pairs = list(zip(labels, found, strict=True))
    names = [name(*pair) for pair in pairs]
    if len(set(names)) < len(names):  # every shard counts anew
        names = [name(label, s, Path(s.file).stem) for label, s in pairs]
    made = [Piece(s.file, s.offset, s.size, n) for s, n in zip(found, names, strict=True)]
    _check_twice(where, made)
    return made


def _by_part(parts: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {part: [] for part in PARTS}
    for part, samples in parts.items():
        for sample in samples:
            unlabeled = part == "train" and not sample.label
            found["unlabeled" if unlabeled else part].append(sample)
    return found


def _used(where: str, parts: Mapping[str, list[Sample]], config: Config) -> dict[str, list[Sample]]:
    """The parts that the settings ask for.

    Raises:
        ValueError: they ask for one that is not there.
    """
    found = dict(parts)
    held, test = found["validation"], found["test"]
    if config.validation == FOLDER and not held:
        raise ValueError(
            f"{where} has no validation images; hold images out of the train images with "
            "data.validation=0.2, say"
        )
    if held and config.validation != FOLDER:
        warn(
            f"{where}: {len(found.pop('validation'))} validation images are not used, for "
            f"data.validation={config.validation} holds images out; data.validation=folder uses "
            "them"
        )
    if test and config.test:
        warn(
            f"{where}: {len(found.pop('test'))} test images are not used, for data.test="
            f"{config.test} holds images out"
        )
    if not test and not config.test:
        raise ValueError(
            f"{where} has no test images; add them, or hold images out with data.test=0.2"
        )
    if config.unlabeled.shape != "unknown":
        found.pop("unlabeled")
    return found


def _numbered(parts: Mapping[str, Iterable[Sample]], names: Sequence[str]) -> dict[str, str]:
    """What the labels 0, 1, ... mean, if all labels are such numbers and the classes have names."""
    labels = {s.label for part in parts.values() for s in part if s.label}
    if not names or not all(map(str.isdecimal, labels)) or labels <= set(names):
        return {}
    return {label: names[int(label)] for label in labels if int(label) < len(names)}


def _names(
    where: str,
    parts: Mapping[str, Sequence[Sample]],
    told: Sequence[str],
    stated: Sequence[str],
) -> tuple[str, ...]:
    """The classes in their order: as told, as the set states them, or sorted, numbers as numbers.

    Raises:
        ValueError: fewer than two, one without a train image, or a label that is none of them.
    """
    given = _numbered(parts, told or stated)
    trained = {given.get(s.label, s.label) for s in parts["train"]}
    if told or stated:
        names = tuple(told or stated)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{where}: the class {twice[0]!r} is named twice; name each once")
        if absent := [name for name in names if name not in trained]:
            raise ValueError(
                f"{where} has no train image of the class {absent[0]!r}; name the classes that "
                "have some in data.classes, or add some"
            )
    else:
        decimal = all(map(str.isdecimal, trained))
        names = tuple(sorted(trained, key=int) if decimal else sorted(trained))
    if len(names) < 2:
        raise ValueError(f"{where} has {len(names)} classes to train on; at least 2 are needed")
    check_class_names(Path(where), names)
    for part, samples in parts.items():
        if part != "unlabeled":
            _check_labels(where, part, samples, given, names)
    return names


def _check_labels(
    where: str,
    part: str,
    samples: Sequence[Sample],
    given: Mapping[str, str],
    names: Sequence[str],
) -> None:
    known = set(names)
    for sample in samples:
        label = given.get(sample.label, sample.label)
        if not label:
            raise ValueError(
                f"{where}: the {part} image {sample.name} has no label and cannot be judged; "
                "label it or move it to the unlabeled images"
            )
        if label not in known:
            raise ValueError(
                f"{where}: the {part} image {sample.name}: {unknown('class', label, names)}; "
                "remove the image, or add train images of its class"
            )


def _check_twice(where: str, pieces: Sequence[Piece]) -> None:
    seen: dict[str, Piece] = {}
    for piece in pieces:
        if (first := seen.setdefault(piece.name, piece)) is not piece:
            raise ValueError(
                f"{where}: {piece.name} is there twice, in {first.file} and in {piece.file}; "
                "give every image a name of its own"
            )
