"""A CSV, TSV, JSON, JSONL or parquet file with a row for each image: data.file=FILE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.console import warn
from ssl_selmix.common.names import unknown
from ssl_selmix.common.rules import one_of
from ssl_selmix.data import ImageSet, listed, table
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.listed import Listed
from ssl_selmix.data.targets import shares_of
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images.cache import folder_of
from ssl_selmix.images.checks import check_class_names
from ssl_selmix.images.folder import Part
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit


@dataclass
class Config(LongTailSplit):
    """Where the table is, what its columns are called, and how its images are split."""

    file: str = ""  # path of the table
    root: str = ""  # folder that paths in the table begin at; empty: the table's own
    path_column: str = ""  # empty: path, file, filename, image ...
    label_column: str = ""  # empty: label, class, category ...; a,b,c: the majority of three
    split_column: str = ""  # empty: split, part, subset ...; train, validation, test, unlabeled
    group_column: str = ""  # patient or camera, whose images stay together
    # column of numbers that multiply the labeled loss of each image, 0 or more; empty: all alike
    weight_column: str = ""
    # what several annotators make of an image. vote: their majority is its class; soft: its loss is
    # of the share of them that are for each class, and all else goes by their majority
    annotators: str = one_of("vote", "soft")
    classes: list[str] = field(default_factory=list)  # their order; empty: sorted
    # side of the views, size×size pixels; None: take small images as they are
    size: int | None = None
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="all"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    # Held out of the train rows; `folder`: the rows of the table's part validation
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


def load(config: Config) -> ImageSet | FileSet:
    """The table's images as uint8 RGB pools, decoded or found in the cache; above 64 px as files.

    Rows without a label are unlabeled images. Images are in the order of class and path, as they
    are in folders, so that the same images give the same run.
    """
    file, root = table.place(config.file, config.root)
    labels = [name.strip() for name in config.label_column.split(",")]
    wanted = table.Columns(
        config.path_column,
        labels if config.label_column else (),
        config.split_column,
        config.group_column,
        config.weight_column,
        votes=config.annotators == "soft",
    )
    rows = table.read(file, wanted)
    if wanted.votes:
        _check_annotators(file, rows)
    files = table.resolved(file, root, rows)
    if rows.disagreements:
        first = rows.disagreements[0]
        warn(
            f"{file}: annotators of {len(rows.disagreements)} images have no majority (first: row "
            f"{first}); these images are unlabeled"
        )
    parts = [
        "unlabeled" if not label and part == "train" else part
        for label, part in zip(rows.labels, rows.parts, strict=True)
    ]
    names = _names(file, config.classes, rows, parts)
    made = _Parts(file, files, rows, parts, names)
    return listed.load(
        made.listed(config), config.size, config.cache, config.workers, strict=config.strict
    )


def _check_annotators(file: Path, rows: table.Rows) -> None:
    """Refuse soft labels of one annotator, and an annotator who says nothing."""
    if len(rows.annotators) < 2:
        raise ValueError(
            f"data.annotators=soft needs several annotators, and data.label_column names "
            f"{rows.annotators[0]!r} alone; name the columns of all, as one,two,three"
        )
    for column, who in enumerate(rows.annotators):
        if not any(votes[column] for votes in rows.votes):
            raise ValueError(
                f"{file}: the annotator {who!r} has labeled no image; leave the column out of "
                "data.label_column"
            )


def _names(
    file: Path, told: Sequence[str], rows: table.Rows, parts: Sequence[str]
) -> tuple[str, ...]:
    """The classes in their order; numbers are sorted as numbers.

    Raises:
        ValueError: fewer than two, or one that only held-out rows or the setting have.
    """
    trained = {
        label for label, part in zip(rows.labels, parts, strict=True) if label and part == "train"
    }
    if told:
        if twice := [name for name in told if told.count(name) > 1]:
            raise ValueError(f"data.classes names {twice[0]!r} twice; name every class once")
        if absent := [name for name in told if name not in trained]:
            raise ValueError(
                f"{file}: {unknown('class', absent[0], trained)} (data.classes has it, and no row "
                "to train on)"
            )
        names = tuple(told)
    else:
        numbers = all(name.lstrip("-").isdecimal() for name in trained)
        names = tuple(sorted(trained, key=int) if numbers else sorted(trained))
    if len(names) < 2:
        raise ValueError(
            f"{file} has {len(names)} classes to train on; at least 2 are needed, in rows whose "
            "part is train"
        )
    check_class_names(file, names)
    known = set(names)
    for label, part, number in zip(rows.labels, parts, rows.numbers, strict=True):
        if label and label not in known:
            where = "no train row has" if label not in trained else "data.classes lacks"
            raise ValueError(
                f"{file}, row {number}: the class {label!r} of a {part} row, which {where}; "
                "remove the row or add the class"
            )
        if not label and part in ("validation", "test"):
            raise ValueError(
                f"{file}, row {number}: a {part} image without a label cannot be judged; label it "
                "or call its part unlabeled"
            )
    return names


class _Parts:
    """The rows of each part, sorted by class and path."""

    def __init__(
        self,
        file: Path,
        files: Sequence[str],
        rows: table.Rows,
        parts: Sequence[str],
        names: tuple[str, ...],
    ) -> None:
        self.file, self.names, self.rows, self.files = file, names, rows, files
        classes = {name: k for k, name in enumerate(names)}
        self.labels = [classes.get(label, -1) for label in rows.labels]
        self.of: dict[str, list[int]] = {}
        for i, part in enumerate(parts):
            self.of.setdefault(part, []).append(i)
        for found in self.of.values():
            found.sort(key=lambda i: (self.labels[i], files[i].split(os.sep)))

    def listed(self, config: Config) -> Listed:
        """What is to be read.

        Raises:
            ValueError: settings and parts of the table contradict each other.
        """
        held, test = self.of.get("validation"), self.of.get("test")
        if config.validation == FOLDER and not held:
            raise ValueError(
                f"{self.file} has no row of the part validation; hold images out of the train "
                "rows with data.validation=0.2, say"
            )
        if held and config.validation != FOLDER:
            warn(
                f"{self.file}: {len(held)} validation rows are not used, for "
                f"data.validation={config.validation} holds images out; data.validation=folder "
                "uses them"
            )
        if test and config.test:
            warn(
                f"{self.file}: {len(test)} test rows are not used, for data.test={config.test} "
                "holds images out"
            )
        if not test and not config.test:
            raise ValueError(
                f"{self.file} has no row of the part test; add a column split, or hold images out "
                "with data.test=0.2"
            )
        used = held if config.validation == FOLDER else None
        pool = self.of.get("unlabeled") if config.unlabeled.shape == "unknown" else None
        whole = [*self.of["train"], *(used or [])]
        self._check_groups(test if not config.test else None, whole)
        test = None if config.test else test
        return Listed(
            root=self._root(),
            class_names=self.names,
            train=self._part("train", self.of["train"]),
            validation=self._part("validation", used) if used else None,
            test=self._part("test", test) if test else None,
            unlabeled=self._part("unlabeled", pool) if pool else None,
            groups=self._groups(whole),
            weights=self._weights(whole),
            shares=self._shares(whole),
        )

    def _root(self) -> Path:
        return Path(os.path.commonpath([os.path.dirname(file) for file in self.files]))

    def _part(self, name: str, rows: Sequence[int]) -> Part:
        labels = np.array([self.labels[i] for i in rows], dtype=np.int64)
        known = labels if name != "unlabeled" else None
        return self.file / name, [self.files[i] for i in rows], known

    def _groups(self, rows: Sequence[int]) -> npt.NDArray[np.int64] | None:
        if not self.rows.groups:
            return None
        numbers = {name: i for i, name in enumerate(sorted(set(self.rows.groups)))}
        return np.array([numbers[self.rows.groups[i]] for i in rows], dtype=np.int64)

    def _weights(self, rows: Sequence[int]) -> npt.NDArray[np.float64] | None:
        found = self.rows.weights
        return np.array([found[i] for i in rows], dtype=np.float64) if found else None

    def _shares(self, rows: Sequence[int]) -> npt.NDArray[np.float32] | None:
        """What annotators say of these rows.

        Raises:
            ValueError: a class that no train row has by majority.
        """
        if not self.rows.votes:
            return None
        numbers = {name: k for k, name in enumerate(self.names)} | {"": -1}
        for i in rows:
            for who, vote in zip(self.rows.annotators, self.rows.votes[i], strict=True):
                if vote not in numbers:
                    raise ValueError(
                        f"{self.file}, row {self.rows.numbers[i]}: {who} is {vote!r}, a class that "
                        "is the majority of no train row; correct it, or leave the value empty"
                    )
        votes = [[numbers[vote] for vote in self.rows.votes[i]] for i in rows]
        return shares_of(np.array(votes, dtype=np.int64), len(self.names))

    def _check_groups(self, test: Sequence[int] | None, others: Sequence[int]) -> None:
        """Refuse a group that test rows share with rows to train or validate on."""
        if not self.rows.groups or not test:
            return
        seen = {self.rows.groups[i]: self.rows.numbers[i] for i in others}
        for i in test:
            group = self.rows.groups[i]
            if group in seen:
                raise ValueError(
                    f"{self.file}, row {self.rows.numbers[i]}: group {group!r} of a test row is in "
                    f"row {seen[group]} as well, which is trained on; give the group to one part"
                )
