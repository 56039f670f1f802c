"""Long-tailed splits: how many images of each class, and which ones. Knows labels, no image."""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.names import unknown
from ssl_selmix.common.rules import Checked

Indices = npt.NDArray[np.int64]

PARTS = ("labeled", "unlabeled", "validation", "test")
SHAPES = (
    *("long_tail", "uniform", "inverted", "middle", "head_tail"),
    *("unknown", "all", "rest", "none"),
)
NOT_DRAWN = ("unknown", "all", "rest", "none")  # shapes that have no largest class to choose

# Keeps the draws of a split apart from other generators that a user seeds with the same number.
_STREAM = 0x5EED


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
    rho: float = 1.0  # rho, largest by smallest class
    reverse: bool = False  # the class order turned around, whatever the shape
    # or uniform, inverted, middle, head_tail, unknown, all, rest, none, or 0.1: a share of a class
    shape: str = "long_tail"

    @property
    def share(self) -> float | None:
        """The share of every class that `shape` names, if it names one."""
        return float(self.shape) if SHARE.fullmatch(str(self.shape)) else None

    @property
    def decided_later(self) -> bool:
        """Whether the images that there are decide the counts, and no largest class does."""
        return self.shape in NOT_DRAWN or self.share is not None

    def counts(self, num_classes: int) -> list[int]:
        """Images of each class, class 0 first.

        `unknown`, `all`, `rest`, `none` and shares have none before a split is drawn. All others
        but `uniform` put the counts n_0 >= n_1 >= ... of the long tail into another class order.
        `inverted` is the long tail with `reverse`. `middle` and `head_tail` are those of SimPro
        (Du et al., ICML 2024): the largest class in the middle, then alternately to its right and
        left, and ends that fall towards the middle.

        >>> Counts(100, rho=81, shape="middle").counts(5)
        [1, 11, 100, 33, 3]
        >>> Counts(100, rho=81, shape="head_tail").counts(5)
        [33, 3, 1, 11, 100]
        """
        self.check()
        if self.decided_later:
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
        if self.shape not in SHAPES and not self.share:
            key = f"{where}shape: " if part else ""
            raise ValueError(f"{key}{unknown('shape', self.shape, SHAPES)}")
        if self.decided_later and self.largest:
            own = {
                "unknown": "the data set's own images without labels",
                "all": "all images",
                "rest": "the rest of the images",
                "none": "no image",
            }
            used = own.get(self.shape, "this share of every class")
            raise ValueError(
                f"{where}shape={self.shape} draws no image, got {where}largest={self.largest}; set "
                f"{where}largest=0 to use {used}"
            )
        if self.shape in ("inverted", "middle", "head_tail") and self.rho < 1:
            raise ValueError(
                f"{where}shape={self.shape} orders a tail that falls, got {where}rho={self.rho}; "
                f"set {where}rho={1 / self.rho if self.rho else 1:g}, or shape=long_tail"
            )


@dataclass(frozen=True)
class HeldOut:
    """How many images of each class are held out: a count or a share, with a floor and a cap.

    A count without a floor is that of every class, and a class with fewer images is refused. With
    one, a class gives at most half of its images, but not fewer than the floor; of a share the
    floor is 1 unless another is told.

    >>> [HeldOut.of("validation", "20,min=4").of_class(n) for n in (1000, 40, 30, 10, 6)]
    [20, 20, 15, 5, 4]
    >>> [HeldOut.of("validation", "0.2,max=50").of_class(n) for n in (1000, 40, 3)]
    [50, 8, 1]
    """

    count: int = 0
    share: float | None = None
    least: int | None = None
    most: int | None = None

    @staticmethod
    def of(part: str, rule: int | float | str | None) -> HeldOut:
        """The rule of `validation` or `test`; None holds out nothing.

        Raises:
            ValueError: it is no count, no share and neither of them with `min=` and `max=`.
        """
        if rule is None:
            return HeldOut()
        if rule == FOLDER and part == "validation":
            return HeldOut(share=1.0)
        if isinstance(rule, numbers.Integral) and not isinstance(rule, bool):
            if rule < 0:
                raise ValueError(f"{part} images per class cannot be negative, got {rule}")
            return HeldOut(count=int(rule))
        found = HELD_OUT.fullmatch(str(rule).replace(" ", ""))
        told = re.findall(r"(min|max)=([0-9]+)", str(rule))
        limits = dict(told)
        share = float(found[1]) if found and "." in found[1] else None
        sensible = found and (share is None or 0 < share < 1) and not isinstance(rule, bool)
        least, most = (int(v) if (v := limits.get(k)) else None for k in ("min", "max"))
        count = int(found[1]) if found and share is None else 0
        sensible = sensible and len(told) == len(limits) and not (most and share is None)
        if not sensible or least == 0 or (least or 1) > (most or count or math.inf):
            raise ValueError(
                f"{part}={rule} is no number of images per class: give a count such as 20, a share "
                "of each class such as 0.2, or one of them with limits, as in 20,min=4 or "
                "0.2,min=2,max=50"
            )
        return HeldOut(count, share, least, most)

    def of_class(self, num: int) -> int:
        """Images that a class of so many gives."""
        if self.share is None and self.least is None:
            return self.count
        wanted = self.count if self.share is None else round(self.share * num)
        wanted = min(wanted, self.most or wanted, num // 2 if self.share is None else num)
        return max(wanted, self.least or 1)


SHARE = re.compile(r"0?\.[0-9]+")
FOLDER = "folder"  # all images of PATH/validation/<class>/ are for validation
# A whole number or a share, then limits.
HELD_OUT = re.compile(r"([0-9]+|0?\.[0-9]+)((?:,(?:min|max)=[0-9]+){0,2})")


@dataclass
class LongTailSplit(Checked):
    """The rule of a split: labeled and unlabeled tails, balanced validation and test parts."""

    labeled: Counts  # how many labeled images each class has
    unlabeled: Counts  # how many images of each class the pool without labels has
    # Held out of the training images: images per class, 0.2 of each class, or `20,min=4`
    validation: int | float | str
    # The same, for a data set that has no test part of its own
    test: int | float | str | None = None
    labeled_in_pool: bool = False  # labeled images are unlabeled ones too, on top of M1
    manifest: str | None = None  # a file to take the split from, instead of drawing one

    def __post_init__(self) -> None:
        """Refuse shapes without meaning."""
        super().__post_init__()
        self.unlabeled.check("unlabeled")
        self.labeled.check("labeled")
        for part in ("validation", "test"):
            HeldOut.of(part, getattr(self, part))
        if self.labeled.shape in ("unknown", "rest", "none"):
            raise ValueError(
                f"labeled.shape={self.labeled.shape} leaves no labeled image; choose another shape"
            )
        if (self.labeled.shape, self.unlabeled.shape) == ("all", "rest"):
            raise ValueError(
                "labeled.shape=all leaves nothing for unlabeled.shape=rest; label a share of every "
                "class, as in labeled.shape=0.1"
            )
        if self.unlabeled.shape == "all":
            raise ValueError(
                "unlabeled.shape=all would take the labeled images; choose another shape, such as "
                "unknown for the data set's own images without labels"
            )

    def counts(self, num_classes: int) -> dict[str, list[int]]:
        """Images per class of each part; 0 where the rule alone has no say.

        That is so for unknown classes, and for validation and test images that are a share of what
        there is.
        """
        labeled = self.labeled.counts(num_classes)
        unlabeled = self.unlabeled.counts(num_classes)
        if self.labeled_in_pool:
            unlabeled = [n + m for n, m in zip(labeled, unlabeled, strict=True)]
        return {
            "labeled": labeled,
            "unlabeled": unlabeled,
            "validation": [HeldOut.of("validation", self.validation).count] * num_classes,
            "test": [HeldOut.of("test", self.test).count] * num_classes,
        }

    def draw(
        self,
        labels: npt.ArrayLike,
        num_classes: int,
        seed: int,
        class_names: Sequence[str] | None = None,
        apart: int = 0,
        groups: npt.ArrayLike | None = None,
    ) -> Split:
        """Choose the images of each part; images with a negative (unknown) label are never drawn.

        The last `apart` images, if there are such, are for validation and test, all others for
        training.

        A class draws from its own generator, and test, validation, labeled and unlabeled images
        are consecutive pieces of one permutation. So the parts are disjoint, another class never
        matters, and another unlabeled tail leaves the three other parts as they were. Only with
        `labeled_in_pool` are the labeled images in the unlabeled part too.

        With `groups` (N,), images of one group are in one of test, validation and training. Whole
        groups are then held out, in which classes may have more images than are asked for; those
        are in no part.
        """
        self._check(num_classes, seed)
        if self.validation == FOLDER and not apart:
            raise ValueError(
                "validation=folder is for --dataset image_folder with PATH/validation/<class>/*; "
                "hold images out of the training images with validation=0.2, say"
            )
        labels = _checked_labels(labels, num_classes)
        held = len(labels) - apart if apart else None
        grouped = None
        if groups is not None:
            grouped = self._hold_out_groups(labels, np.asarray(groups), seed, class_names, held)
        counts, unlabeled = self.counts(num_classes), self.unlabeled.counts(num_classes)
        drawn: dict[str, list[Indices]] = {part: [] for part in PARTS}
        for c in range(num_classes):
            pool = np.flatnonzero(labels == c).astype(np.int64)
            rng = np.random.default_rng([seed, _STREAM, c])
            wanted = {part: counts[part][c] for part in ("test", "validation", *PARTS[:2])}
            wanted["unlabeled"] = unlabeled[c]
            for source, parts in _sources(pool, held, grouped):
                for part in set(parts) & {"test", "validation"}:
                    rule = HeldOut.of(part, getattr(self, part))
                    whole = len(source) if grouped is None else len(pool)
                    counts[part][c] = wanted[part] = rule.of_class(whole)
                if "labeled" in parts:
                    for part, number in self._decided(wanted, parts, len(source)).items():
                        counts[part][c] = wanted[part] = number
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

    def _decided(
        self, wanted: dict[str, int], parts: Sequence[str], available: int
    ) -> dict[str, int]:
        """How many labeled and unlabeled images of a class there are, where its size decides."""
        rules = {"labeled": self.labeled, "unlabeled": self.unlabeled}
        found = {
            part: round(rule.share * available)
            for part, rule in rules.items()
            if rule.share is not None
        }
        for part, shape in (("labeled", "all"), ("unlabeled", "rest")):
            if rules[part].shape == shape:
                taken = wanted | found
                others = sum(taken[other] for other in parts if other != part)
                found[part] = max(0, available - others)
        return found

    def _hold_out_groups(
        self,
        labels: npt.NDArray[Any],
        groups: npt.NDArray[Any],
        seed: int,
        names: Sequence[str] | None,
        held: int | None,
    ) -> npt.NDArray[np.int8]:
        """Which part each image's group is for: 0 test, 1 validation, 2 training; (N,).

        Classes take turns from the rarest on, and each takes random groups until it has as many
        images held out as it is to have.

        Raises:
            ValueError: a class has too few groups, or groups and parts of the data set clash.
        """
        if held is not None:
            if len(np.intersect1d(groups[:held], groups[held:])):
                raise ValueError("a group is in train and in validation; give it to one of them")
            if self.test:
                raise ValueError(
                    "test images cannot be held out of a validation part by groups; mark the test "
                    "images in the data set itself, and leave test out"
                )
            return np.where(np.arange(len(labels)) < held, 2, 1).astype(np.int8)
        place = np.full(len(labels), 2, dtype=np.int8)
        sizes = np.bincount(labels[labels >= 0])
        for number, part in enumerate(("test", "validation")):
            rule = HeldOut.of(part, getattr(self, part))
            for c in np.argsort(sizes, kind="stable").tolist():
                of_class = labels == c
                missing = rule.of_class(int(sizes[c])) - int((of_class & (place == number)).sum())
                if missing <= 0:
                    continue
                rng = np.random.default_rng([seed, _STREAM, c, number])
                free = rng.permutation(np.unique(groups[of_class & (place == 2)]))
                for group in free[:-1].tolist():  # one is left to learn from
                    members = groups == group
                    place[members] = number
                    missing -= int((of_class & members).sum())
                    if missing <= 0:
                        break
                if missing > 0:
                    name = f"class {c}" if names is None else f"class {c} ({names[c]})"
                    raise ValueError(
                        f"{name} has too few groups: {missing} {part} images are missing after all "
                        f"groups but one were held out; lower {part}, or give a count as 20,min=4"
                    )
        return place

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
        if seed < 0:
            raise ValueError(f"the seed of a split must be 0 or larger, got {seed}")
        labeled = self.labeled.counts(num_classes)
        if 0 in labeled and not self.labeled.decided_later:
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


def _sources(
    pool: Indices, held: int | None, grouped: npt.NDArray[np.int8] | None
) -> list[tuple[Indices, tuple[str, ...]]]:
    """Where the parts of a class are drawn from.

    One pool, or one up to `held` and one after it, or those that groups were held out for.
    """
    if grouped is not None:
        parts = (("test",), ("validation",), ("labeled", "unlabeled"))
        return [(pool[grouped[pool] == i], names) for i, names in enumerate(parts)]
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
