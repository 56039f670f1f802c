"""What is noteworthy about a data set, image by image and as a whole.

Shapes: N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ssl_selmix.audit import near
from ssl_selmix.audit.inventory import PARTS, Inventory
from ssl_selmix.common.processes import default_workers
from ssl_selmix.images.checks import Copies, alike
from ssl_selmix.images.decode import CORRECTIONS

MOST_COMPARED = 100_000  # images; near copies are looked for among so many


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: a word for programs.
        text: what it is, and the remedy.
        examples: all of them: a name, or the names of two.
        mend: whether figures would be wrong, or training would end with an error.
    """

    kind: str
    text: str
    examples: Sequence[tuple[str, ...]]
    mend: bool = True


class Fact(NamedTuple):
    """What remains of an `Opened`: digest of its bytes, W×H pixels, mode, corrections."""

    digest: bytes
    size: tuple[int, int]
    mode: str
    corrections: list[str]


@dataclass
class Seen:
    """What was read of N images.

    Attributes:
        sizes: how many images have W×H pixels.
        modes: how many have a mode of Pillow.
        unreadable: the reason, by the image's number.
        corrected: which images took a correction, by its name.
        digests: of the bytes, by the image's number.
        miniatures: N×8×9 grey, black where there is none.
    """

    miniatures: npt.NDArray[np.uint8]
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[int, str] = field(default_factory=dict)
    corrected: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)


def look(images: Inventory) -> Seen:
    """Read every image once; what cannot be read is noted."""

    def one(i: int) -> tuple[Any, Any]:
        try:
            found = images.open(i)
        except ValueError as error:
            return str(error), None
        small = near.miniature(found.image)
        # Without the pixels: images wait here until those before them are read.
        return Fact(found.digest, found.size, found.mode, found.corrections), small

    num = len(images.names)
    seen = Seen(np.zeros((num, near.ROWS, near.COLUMNS), dtype=np.uint8))
    # Images in memory are read under Python's lock, and more threads would wait for each other.
    with ThreadPoolExecutor(default_workers() if images.kind == "files" else 1) as threads:
        for i, (found, miniature) in enumerate(threads.map(one, range(num))):
            if miniature is None:
                seen.unreadable[i] = found
                continue
            seen.sizes["{}×{}".format(*found.size)] += 1
            seen.modes[found.mode] += 1
            seen.digests[i] = found.digest
            seen.miniatures[i] = miniature
            for correction in found.corrections:
                seen.corrected.setdefault(correction, []).append(i)
    return seen


def counts(images: Inventory) -> dict[str, dict[str, int]]:
    """How many images of each part each class has; of no class, those named with an empty text."""
    found = {part: dict.fromkeys(names, 0) for part, names in images.classes.items()}
    for part, label in zip(images.parts, images.labels, strict=True):
        of_part = found.setdefault(part, {})
        of_part[label] = of_part.get(label, 0) + 1
    return {part: found[part] for part in PARTS if part in found}


def findings(images: Inventory, seen: Seen) -> list[Finding]:
    """All that was found, what must be mended first."""
    found = [
        *_unreadable(images, seen),
        *_classes(images),
        *_copies(images, seen),
        *_near_copies(images, seen),
        *_groups(images),
        *_others(images, seen),
    ]
    return sorted(found, key=lambda finding: not finding.mend)


def _unreadable(images: Inventory, seen: Seen) -> Iterator[Finding]:
    if seen.unreadable:
        texts = [(images.names[i], reason) for i, reason in seen.unreadable.items()]
        yield Finding("unreadable", "unreadable images; remove or replace them", texts)
    if damaged := seen.corrected.get("damaged"):
        names = [(images.names[i],) for i in damaged]
        yield Finding("damaged", "JPEG files damaged in their middle; replace them", names)


def _classes(images: Inventory) -> Iterator[Finding]:
    every = list(dict.fromkeys(name for names in images.classes.values() for name in names))
    if odd := alike(every):
        text = "class names that nobody can tell apart or type; rename or merge them"
        yield Finding("class_names", text, [(line,) for line in odd])
    trained = set(images.classes.get("train", ()))
    if len(trained) < 2:
        yield Finding("one_class", "fewer than two classes to train on", [(n,) for n in trained])
    for part in ("validation", "test"):
        if part not in images.classes:
            continue
        own = set(images.classes[part])
        if extra := sorted(own - trained):
            text = f"classes of {part} that train lacks; add train images or remove them"
            yield Finding(f"only_in_{part}", text, [(name,) for name in extra])
        if lacking := sorted(trained - own):
            text = f"classes of train without {part} images, whose recall nobody can measure"
            yield Finding(f"not_in_{part}", text, [(name,) for name in lacking])
    for part, of_part in counts(images).items():
        if empty := [name for name, count in of_part.items() if not count]:
            text = f"classes of {part} without an image; add some or remove the folder"
            yield Finding("empty_class", text, [(name,) for name in empty])


def _copies(images: Inventory, seen: Seen) -> Iterator[Finding]:
    numbers = {name: k for k, name in enumerate(sorted(set(images.labels) - {""}))}
    copies = Copies(images.kind)
    for part in PARTS:
        here = [i for i in seen.digests if images.parts[i] == part]
        if here:
            labels = np.array([numbers.get(images.labels[i], -1) for i in here], dtype=np.int64)
            names = [images.names[i] for i in here]
            copies.add(part, names, [seen.digests[i] for i in here], labels)
    kinds: dict[str, list[tuple[str, ...]]] = {}
    for kind, first, copy in copies.pairs():
        kinds.setdefault(kind, []).append((first, copy))
    for text, both in kinds.items():
        name = "two_labels" if text.startswith("in two classes") else "copies"
        # The pool may well have an image twice, or one that is labeled.
        yield Finding(name, f"images {text}", both, mend="in unlabeled" not in text)


def _near_copies(images: Inventory, seen: Seen) -> Iterator[Finding]:
    if len(images.names) > MOST_COMPARED:
        text = f"near copies are looked for among at most {MOST_COMPARED} images, not these"
        yield Finding("not_compared", text, [], mend=False)
        return
    kinds: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for i, j in near.pairs(seen.miniatures).tolist():
        if seen.digests[i] != seen.digests[j]:
            parts = sorted((images.parts[i], images.parts[j]), key=PARTS.index)
            kinds.setdefault((parts[0], parts[1]), []).append((images.names[i], images.names[j]))
    for (one, other), both in kinds.items():
        where = f"in {one}" if one == other else f"in {one} and in {other}"
        text = f"pairs {where} that look the same and are no copies byte by byte; compare them"
        yield Finding("near_copies", text, both, mend=False)


def _groups(images: Inventory) -> Iterator[Finding]:
    where: dict[str, dict[str, str]] = {}
    for group, part, name in zip(images.groups, images.parts, images.names, strict=False):
        where.setdefault(group, {}).setdefault(part, name)
    for part, others in (("test", PARTS[:2]), ("validation", PARTS[:1]), ("test", PARTS[3:])):
        shared = [
            (f"group {group}", parts[other], parts[part])
            for group, parts in where.items()
            for other in others
            if part in parts and other in parts
        ]
        if shared:
            text = f"groups of {part} that are in {' or '.join(others)} as well; give them one part"
            yield Finding("groups", text, shared, mend=others != PARTS[3:])


def _others(images: Inventory, seen: Seen) -> Iterator[Finding]:
    for line in images.notes:
        yield Finding("left_out", line, [], mend=False)
    for kind, numbers in seen.corrected.items():
        if kind != "damaged":
            done = CORRECTIONS.get(kind, "made RGB")
            names = [(images.names[i],) for i in numbers]
            yield Finding("corrected", f"{kind} images, which are {done}", names, mend=False)
    read = np.array(sorted(seen.digests), dtype=np.int64)
    flat = read[near.flat(seen.miniatures[read])] if read.size else read
    if flat.size:
        names = [(images.names[i],) for i in flat.tolist()]
        yield Finding("flat", "images of one colour, or nearly", names, mend=False)


def as_json(images: Inventory, seen: Seen, found: list[Finding]) -> dict[str, Any]:
    """All of it as JSON has it."""
    sizes: Mapping[str, int] = dict(seen.sizes.most_common())
    return {
        "dataset": images.title,
        "images": len(images.names),
        "counts": counts(images),
        "sizes": sizes,
        "modes": dict(seen.modes.most_common()),
        "findings": [
            {
                "kind": finding.kind,
                "mend": finding.mend,
                "text": finding.text,
                "count": len(finding.examples),
                "examples": [list(example) for example in finding.examples],
            }
            for finding in found
        ],
    }
