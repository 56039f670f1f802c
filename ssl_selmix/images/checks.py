"""What a listing of image files says about the data set: names of classes, copies."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.console import warn

Digests = npt.NDArray[np.bytes_]
Labels = npt.NDArray[np.int64]


def check_class_names(folder: Path, names: Sequence[str]) -> None:
    """Refuse names of class folders that nobody can print, type or tell apart.

    Raises:
        ValueError: names the folder and what to do.
    """
    seen: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            told = ascii(name.encode("utf-8", "surrogateescape"))[1:]
            raise ValueError(
                f"class folder {folder}/{told[1:-1]} has a name that is no UTF-8; rename it"
            ) from error
        if odd := [c for c in name if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]:
            raise ValueError(
                f"class folder {name!a} in {folder} has the character U+{ord(odd[0]):04X}, "
                "which no terminal shows; rename it"
            )
        other = seen.setdefault(_look(name), name)
        if other != name:
            raise ValueError(
                f"class folders {other!r} and {name!r} in {folder} look alike "
                f"({_difference(other, name)}); rename or merge them"
            )


def alike(names: Sequence[str]) -> list[str]:
    """A text for each two names that look alike, and for each that nobody can print or type."""
    told: list[str] = []
    seen: dict[str, str] = {}
    for name in names:
        try:
            check_class_names(Path("the data set"), [name])
        except ValueError as error:
            told.append(str(error))
            continue
        other = seen.setdefault(_look(name), name)
        if other != name:
            told.append(f"{other!r} and {name!r} ({_difference(other, name)})")
    return told


def _look(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _difference(one: str, other: str) -> str:
    spelled = f"{one!a} and {other!a}"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return f"in another Unicode normal form: {spelled}"
    if " ".join(one.split()) == " ".join(other.split()):
        return f"with other spaces: {spelled}"
    if one.lower() == other.lower():
        return "in other case"
    return f"of other Unicode characters: {spelled}"


def check_same_classes(
    train: Path, names: Sequence[str], test: Path, others: Sequence[str]
) -> None:
    """Refuse two parts whose class folders differ.

    Raises:
        ValueError: names the classes that only one has, and how those differ that look the same.
    """
    if tuple(names) == tuple(others):
        return
    only = sorted(set(names) ^ set(others))
    by_look = {_look(name): name for name in names}
    for name in others:
        alike = by_look.get(_look(name))
        if alike is not None and alike != name:
            raise ValueError(
                f"class folder {alike!r} in {train} and {name!r} in {test} look alike "
                f"({_difference(alike, name)}); give them one name"
            )
    raise ValueError(
        f"{train} and {test} must hold the same classes; only one of them has {', '.join(only[:5])}"
    )


@dataclass
class Copies:
    """Finds files of the same bytes among the parts of a data set, or images of an array.

    Attributes:
        kind: what the bytes are of, for messages.
    """

    kind: str = "files"
    _parts: list[tuple[str, Sequence[str], Digests, Labels]] = field(default_factory=list)

    def add(
        self, part: str, files: Sequence[str], digests: Sequence[Any], labels: Labels | None = None
    ) -> None:
        """The files of a part, digests of their bytes, and their classes where they are known."""
        if labels is None:
            labels = np.full(len(files), -1, dtype=np.int64)
        # Fixed places, 16 or 64 bytes each: a dictionary of a million would take hundreds of MB.
        self._parts.append((part, files, np.array(digests, dtype=np.bytes_), labels))

    def tell(self) -> None:
        """A line for each kind of copies: how many, and the first of them."""
        kinds: dict[str, list[tuple[str, str]]] = {}
        for kind, first, copy in self.pairs():
            kinds.setdefault(kind, []).append((first, copy))
        for kind, pairs in kinds.items():
            num = f"{len(pairs)} image is" if len(pairs) == 1 else f"{len(pairs)} images are"
            warn(f"{num} {kind} (first: {pairs[0][0]} and {pairs[0][1]})")

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """What is wrong, the file that comes first, and the copy of it."""
        parts = [part for part in self._parts if len(part[1])]
        if not parts:
            return
        digests = np.concatenate([part[2] for part in parts])
        labels = np.concatenate([part[3] for part in parts])
        files = [(name, file) for name, of_part, _, _ in parts for file in of_part]
        order = np.argsort(digests, kind="stable")
        begins = np.r_[True, digests[order][1:] != digests[order][:-1]]
        firsts = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        places = np.stack([firsts[~begins], order[~begins]], axis=1)
        for first, copy in sorted(places.tolist()):
            (one, original), (other, double) = files[first], files[copy]
            known = min(labels[first], labels[copy]) >= 0
            clash = known and labels[first] != labels[copy]
            kind = _kind(one, other, clash).replace("identical files", f"identical {self.kind}")
            yield kind, original, double


def _kind(one: str, other: str, clash: bool) -> str:
    if clash:
        return "in two classes, as byte-identical files; remove the wrong one"
    if one == other == "unlabeled":
        return "in unlabeled twice, as byte-identical files; remove one of each"
    if one == other:
        return (
            f"in {one} twice, as byte-identical files, which may be drawn into training and "
            "validation; remove one of each"
        )
    better = f"; figures on {other} look better than they are" if other != "unlabeled" else ""
    return f"in {one} and in {other}, as byte-identical files{better}; remove one of each"
