"""Long-tailed splits: how many images of each class, and which ones. Knows labels, no image."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.common.rules import Checked

Indices = npt.NDArray[np.int64]

PARTS = ("labeled", "unlabeled", "validation", "test")
SHAPES = ("long_tail", "uniform", "inverted", "middle", "head_tail", "unknown", "all")
NOT_DRAWN = ("unknown", "all")  # shapes that have no largest class to choose

# Said by those splits alone, for the other manifests are what they were.
_ALL = "shape all: the labeled images are all that the other parts leave; their tail is the data's"

# Keeps the draws of a split apart from other generators that a user seeds with the same number.
_STREAM = 0x5EED

_MEANING = {
    "N1": "rule.labeled.largest: number of labeled images of the largest class",
    "rho": "size of the largest class / size of the smallest class; with rho < 1 the tail is "
    "inverted and N1 or M1 is the size of class 0, the smallest",
    "reverse": "the class order of the counts is reversed: the last class is the largest",
    "shape": "which class gets which count: long_tail as N1, M1 and rho say; uniform: every class "
    "the largest count; inverted: the last class the largest; middle, head_tail: the largest "
    "counts in the middle, or at both ends; unknown: nothing is drawn, the data set's own images "
    "without labels are the unlabeled pool",
    "counts": "images per class of each part, class 0 first",
    "indices": "positions in the training images of the data set, class by class",
}


def long_tail_counts(largest: int, rho: float, num_classes: int) -> list[int]:
    """Class sizes that fall exponentially from `largest` to `largest / rho`.

    With rho < 1 they rise instead, and `largest` is the size of class 0, the smallest. Counts are
    rounded down and may reach 0 where `largest < rho`; nothing is raised to 1.

    >>> long_tail_counts(1500, 100, 10)
    [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    """
    if largest < 1:
        raise ValueError(f"the largest class needs at least 1 image, got {largest}")
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(
            f"rho, largest / smallest class, must be positive and finite, got {rho}; "
            "1 is balanced, 100 a long tail"
        )
    if num_classes < 2:
        raise ValueError(f"a long tail needs at least 2 classes, got {num_classes}")
    # The published splits take a power of this exponential. The algebraically equal
    # rho ** (-i / (K - 1)) rounds some classes differently: 2,999 there is 3,000 here.
    a = math.exp(-math.log(rho) / (num_classes - 1))
    bound = max if rho >= 1 else min
    return [bound(int(a**i * largest), int(largest / rho)) for i in range(num_classes)]


@dataclass
class Counts:
    """Images per class of one part of a split."""

    largest: int  # N1 of the labeled, M1 of the unlabeled images
    rho: float = 1.0  # largest / smallest class
    reverse: bool = False  # the class order turned around, whatever the shape
    shape: str = "long_tail"  # or uniform, inverted, middle, head_tail, unknown, all

    def counts(self, num_classes: int) -> list[int]:
        """Images of each class, class 0 first.

        `unknown` and `all` have none before a split is drawn. All other shapes but `uniform` put
        the counts n_0 >= n_1 >= ... of the long tail into another class order. `inverted` is the
        long tail with `reverse`. `middle` and `head_tail` are those of SimPro (Du et al., ICML
        2024): the largest class in the middle, then alternately to its right and left, and ends
        that fall towards the middle.

        >>> Counts(100, rho=81, shape="middle").counts(5)
        [1, 11, 100, 33, 3]
        >>> Counts(100, rho=81, shape="head_tail").counts(5)
        [33, 3, 1, 11, 100]
        """
        self.check()
        if self.shape in NOT_DRAWN:
            return [0] * num_classes
        rho = 1.0 if self.shape == "uniform" else self.rho
        tail = long_tail_counts(self.largest, rho, num_classes)
        if self.shape == "middle":
            counts = tail[::2][::-1] + tail[1::2]
        elif self.shape == "head_tail":
            counts = tail[1::2] + tail[::2][::-1]
        else:
            counts = tail[::-1] if self.shape == "inverted" else tail
        return counts[::-1] if self.reverse else counts

    def check(self, part: str = "") -> None:
        """Refuse a shape that does not exist or contradicts the other fields."""
        where = f"{part}." if part else ""
        if self.shape not in SHAPES:
            key = f"{where}shape: " if part else ""
            raise ValueError(f"{key}{unknown('shape', self.shape, SHAPES)}")
        if self.shape in NOT_DRAWN and self.largest:
            own = {"unknown": "the data set's own images without labels", "all": "all images"}
            raise ValueError(
                f"{where}shape={self.shape} draws no image, got {where}largest={self.largest}; set "
                f"{where}largest=0 to use {own[self.shape]}"
            )
        if self.shape in ("inverted", "middle", "head_tail") and self.rho < 1:
            raise ValueError(
                f"{where}shape={self.shape} orders a tail that falls, got {where}rho={self.rho}; "
                f"set {where}rho={1 / self.rho if self.rho else 1:g}, or shape=long_tail"
            )


@dataclass
class LongTailSplit(Checked):
    """The rule of a split: labeled and unlabeled tails, balanced validation and test parts."""

    labeled: Counts
    unlabeled: Counts
    validation: int  # images per class, held out of the training images
    test: int | None = None  # the same, for a data set that has no test part of its own
    labeled_in_pool: bool = False  # labeled images are unlabeled ones too, on top of M1
    manifest: str | None = None  # a file to take the split from, instead of drawing one

    def __post_init__(self) -> None:
        """Refuse shapes without meaning."""
        super().__post_init__()
        self.unlabeled.check("unlabeled")
        self.labeled.check("labeled")
        if self.labeled.shape == "unknown":
            raise ValueError("labeled.shape=unknown leaves no labeled image; choose another shape")
        if self.unlabeled.shape == "all":
            raise ValueError(
                "unlabeled.shape=all would take the labeled images; choose another shape, such as "
                "unknown for the data set's own images without labels"
            )

    def counts(self, num_classes: int) -> dict[str, list[int]]:
        """Images per class of each part; 0 where the rule has no say, as of unknown classes."""
        labeled = self.labeled.counts(num_classes)
        unlabeled = self.unlabeled.counts(num_classes)
        if self.labeled_in_pool:
            unlabeled = [n + m for n, m in zip(labeled, unlabeled, strict=True)]
        return {
            "labeled": labeled,
            "unlabeled": unlabeled,
            "validation": [self.validation] * num_classes,
            "test": [self.test or 0] * num_classes,
        }

    def draw(
        self,
        labels: npt.ArrayLike,
        num_classes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        apart: int = 0,
    ) -> Split:
        """Choose the images of each part; images with a negative (unknown) label are never drawn.

        The last `apart` images, if there are such, are for validation and test, all others for
        training.

        A class draws from its own generator, and test, validation, labeled and unlabeled images
        are consecutive pieces of one permutation. So the parts are disjoint, another class never
        matters, and another unlabeled tail leaves the three other parts as they were. Only with
        `labeled_in_pool` are the labeled images in the unlabeled part too.
        """
        self._check(num_classes, seed)
        labels = _checked_labels(labels, num_classes)
        counts, unlabeled = self.counts(num_classes), self.unlabeled.counts(num_classes)
        drawn: dict[str, list[Indices]] = {part: [] for part in PARTS}
        for c in range(num_classes):
            pool = np.flatnonzero(labels == c).astype(np.int64)
            rng = np.random.default_rng([seed, _STREAM, c])
            wanted = {part: counts[part][c] for part in ("test", "validation", *PARTS[:2])}
            wanted["unlabeled"] = unlabeled[c]
            for source, parts in _sources(pool, len(labels) - apart if apart else None):
                if self.labeled.shape == "all" and "labeled" in parts:
                    others = sum(wanted[part] for part in parts if part != "labeled")
                    counts["labeled"][c] = wanted["labeled"] = max(0, len(source) - others)
                pieces = {part: wanted[part] for part in parts}
                if sum(pieces.values()) > len(source):
                    raise ValueError(_too_few(c, class_names, pieces, len(source)))
                order, start = rng.permutation(source), 0
                for part, count in pieces.items():
                    drawn[part].append(np.sort(order[start : start + count]))
                    start += count
            if not len(drawn["labeled"][c]):
                raise ValueError(_none_left(c, class_names, len(pool)))
            if self.labeled_in_pool:
                both = drawn["unlabeled"][c], drawn["labeled"][c]
                drawn["unlabeled"][c] = np.sort(np.concatenate(both))
                counts["unlabeled"][c] = len(drawn["unlabeled"][c])
        return Split(
            labeled=np.concatenate(drawn["labeled"]),
            unlabeled=np.concatenate(drawn["unlabeled"]),
            validation=np.concatenate(drawn["validation"]),
            test=np.concatenate(drawn["test"]),
            num_classes=num_classes,
            seed=seed,
            counts=counts,
            rule=self.rule(),
        )

    def rule(self) -> LongTailSplit:
        """A copy of what decides the counts, without what a data set's Config adds to it.

        A copy, because a configuration edited later must not rewrite history.
        """
        return LongTailSplit(
            labeled=copy.deepcopy(self.labeled),
            unlabeled=copy.deepcopy(self.unlabeled),
            validation=self.validation,
            test=self.test,
            labeled_in_pool=self.labeled_in_pool,
        )

    def settings(self) -> dict[str, Any]:
        """The rule as plain values, as a manifest records it."""
        settings = dataclasses.asdict(self.rule())
        del settings["manifest"]
        return settings

    def _check(self, num_classes: int, seed: int) -> None:
        for part, count in (("validation", self.validation), ("test", self.test or 0)):
            if count < 0:
                raise ValueError(f"{part} images per class cannot be negative, got {count}")
        if seed < 0:
            raise ValueError(f"the seed of a split must be 0 or larger, got {seed}")
        labeled = self.labeled.counts(num_classes)
        if 0 in labeled and self.labeled.shape != "all":
            raise ValueError(
                f"class {labeled.index(0)} would get no labeled image: largest "
                f"{self.labeled.largest}, rho {self.labeled.rho}; raise largest or lower rho"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """The images of each part, as positions in the training images, sorted within each class."""

    labeled: Indices
    unlabeled: Indices
    validation: Indices
    test: Indices  # empty where the data set brings its own test part
    num_classes: int
    seed: int
    counts: dict[str, list[int]]  # part -> images per class
    rule: LongTailSplit

    def manifest(self, images_sha256: str | None = None, **extra: Any) -> dict[str, Any]:
        """Everything needed to repeat and to compare this split, ready for JSON."""
        indices = {part: getattr(self, part).tolist() for part in PARTS}
        manifest = {
            "num_classes": self.num_classes,
            "seed": self.seed,
            "rule": self.rule.settings(),
            "meaning": {"M1": _meaning_of_m1(self.rule), **_MEANING}
            | ({"all": _ALL} if self.rule.labeled.shape == "all" else {}),
            "counts": {part: list(counts) for part, counts in self.counts.items()},
            "images_sha256": images_sha256,
            "indices_sha256": _sha256_of_indices(indices),
            "indices": indices,
        }
        if taken := sorted(manifest.keys() & extra.keys()):
            raise ValueError(f"the manifest already has the keys {taken}; name the extra ones else")
        return manifest | extra

    def save(self, path: str | Path, images_sha256: str | None = None, **extra: Any) -> None:
        """Write the manifest; a reader sees the old file or the whole new one."""
        manifest = self.manifest(images_sha256, **extra)
        # One line per key: a person can read the head of a file with 50,000 indices.
        lines = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in manifest.items())
        write_atomically(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    @classmethod
    def load(cls, path: str | Path, images_sha256: str | None = None) -> Split:
        """Read a verified manifest; with `images_sha256`, only if it was drawn on those images."""
        manifest = read_manifest(path)
        recorded = manifest["images_sha256"]
        if images_sha256 is not None and recorded is not None and recorded != images_sha256:
            raise ValueError(
                f"{path}: the split was drawn on other images (SHA-256 {recorded}, these have "
                f"{images_sha256}); use those images or draw a new split"
            )
        return cls(
            **{part: np.array(manifest["indices"][part], dtype=np.int64) for part in PARTS},
            num_classes=manifest["num_classes"],
            seed=manifest["seed"],
            counts=manifest["counts"],
            rule=_rule_of(manifest, path),
        )

    def verify(self, labels: npt.ArrayLike, num_classes: int) -> None:
        """Refuse labels that this split cannot have been drawn on, and parts that overlap."""
        labels = _checked_labels(labels, num_classes)
        if num_classes != self.num_classes:
            raise ValueError(
                f"the split is of {self.num_classes} classes and the data set has {num_classes}; "
                "use the data set that the split was drawn on"
            )
        everything = np.concatenate([getattr(self, part) for part in PARTS])
        if everything.size and not 0 <= everything.min() <= everything.max() < len(labels):
            raise ValueError(
                f"the split names image {everything.max()} (least {everything.min()}) and there "
                f"are {len(labels)}; use the data set that the split was drawn on"
            )
        for part in PARTS:
            of_part = labels[getattr(self, part)]
            counts = [int(np.sum(of_part == c)) for c in range(num_classes)]
            if counts != self.counts[part]:
                raise ValueError(
                    f"the {part} images have {counts} labels of each class and the split says "
                    f"{self.counts[part]}; use the labels that the split was drawn on"
                )
        _check_disjoint(self)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest in a file, refused if its indices are not the ones that were written."""
    try:
        manifest: dict[str, Any] = json.loads(expanded(path).read_text(encoding="utf-8"))
        digest = _sha256_of_indices(manifest["indices"])
        sizes = {part: sum(manifest["counts"][part]) for part in PARTS}
        intact = manifest["indices_sha256"] == digest
        intact &= all(sizes[part] == len(manifest["indices"][part]) for part in PARTS)
        intact &= all(len(manifest["counts"][p]) == manifest["num_classes"] for p in PARTS)
        missing = {"num_classes", "seed", "rule", "images_sha256"} - manifest.keys()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{path} is not a split manifest ({error!r}); draw the split anew"
        ) from error
    if missing:
        raise ValueError(f"{path} is not a split manifest (no {sorted(missing)}); draw it anew")
    if not intact:
        raise ValueError(
            f"{path}: the indices do not match their SHA-256 or their counts, the file was changed "
            "after it was written; restore it or draw the split anew"
        )
    return manifest


def _rule_of(manifest: dict[str, Any], path: str | Path) -> LongTailSplit:
    rule = manifest["rule"]
    try:
        return LongTailSplit(
            labeled=Counts(**rule["labeled"]),
            unlabeled=Counts(**rule["unlabeled"]),
            validation=int(rule["validation"]),
            test=None if rule["test"] is None else int(rule["test"]),
            # Manifests of version 0.1 were written before there was a choice.
            labeled_in_pool=bool(rule.get("labeled_in_pool", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a split manifest (rule: {error!r}); draw the split anew"
        ) from error


def _meaning_of_m1(rule: LongTailSplit) -> str:
    if rule.unlabeled.shape == "unknown":
        return "no M1: the unlabeled pool is the data set's own images of unknown classes"
    whose = "every" if rule.unlabeled.shape == "uniform" else "the largest"
    where = "" if rule.labeled_in_pool else "not "
    return (
        f"rule.unlabeled.largest: number of unlabeled images of {whose} class; labeled images "
        f"are {where}in the unlabeled pool and not counted in M1"
    )


def _check_disjoint(split: Split) -> None:
    """Refuse an image in two parts, or twice in one; the pool may repeat labeled images."""
    for i, one in enumerate(PARTS):
        first = getattr(split, one)
        if len(np.unique(first)) != len(first):
            raise ValueError(f"the {one} images of the split repeat; draw a new split")
        for other in PARTS[i + 1 :]:
            shared = np.intersect1d(first, getattr(split, other))
            allowed = split.rule.labeled_in_pool and (one, other) == ("labeled", "unlabeled")
            if len(shared) and not allowed:
                raise ValueError(
                    f"{len(shared)} images of the split are both {one} and {other}, such as image "
                    f"{shared[0]}; draw a new split"
                )


def _checked_labels(labels: npt.ArrayLike, num_classes: int) -> npt.NDArray[Any]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be a 1-D array of integers, got shape {labels.shape} and dtype "
            f"{labels.dtype}; one-hot labels need .argmax(1)"
        )
    if labels.size and labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie below num_classes {num_classes}, got {labels.max()}; "
            "count classes from 0 or raise num_classes"
        )
    return labels


def _sources(pool: Indices, held: int | None) -> list[tuple[Indices, tuple[str, ...]]]:
    """Where the parts of a class are drawn from: one pool, or one up to `held` and one after it."""
    if held is None:
        return [(pool, ("test", "validation", "labeled", "unlabeled"))]
    apart = pool[pool >= held], ("test", "validation")
    return [apart, (pool[pool < held], ("labeled", "unlabeled"))]


def _too_few(c: int, names: Sequence[str] | None, wanted: dict[str, int], available: int) -> str:
    name = f"class {c}" if names is None else f"class {c} ({names[c]})"
    parts = " + ".join(f"{count} {part}" for part, count in wanted.items() if count)
    return (
        f"{name} has {available} images, the split needs {sum(wanted.values())} ({parts}); "
        "lower the largest class, hold out fewer images, or raise rho"
    )


def _none_left(c: int, names: Sequence[str] | None, available: int) -> str:
    name = f"class {c}" if names is None else f"class {c} ({names[c]})"
    return (
        f"{name} has {available} images and the other parts take them all, so that none is "
        "labeled; hold out fewer images, or give the class more"
    )


def _sha256_of_indices(indices: dict[str, list[int]]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        if any(type(index) is not int for index in indices[part]):
            raise ValueError(f"{part} holds something else than whole numbers")
        # The length keeps an index from passing as one of the next part.
        digest.update(f"{part}:{len(indices[part])}:".encode())
        digest.update(np.array(indices[part], dtype="<i8").tobytes())
    return digest.hexdigest()
