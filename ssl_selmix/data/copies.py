"""Images that are in two parts of a split, by digests of their bytes.

Shapes: N training images and those of unknown class behind them, T test images, n of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssl_selmix.data.features import Rows
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.source import Source
from ssl_selmix.images.cache import digest_of
from ssl_selmix.splits import Split

Digests = npt.NDArray[np.bytes_]
ROWS = 4096  # features that are looked at together
# The part whose figures then are too good, or whose images choose too well, comes first.
PAIRS = (
    *(("test", "labeled"), ("test", "unlabeled"), ("test", "validation")),
    *(("validation", "labeled"), ("validation", "unlabeled"), ("unlabeled", "labeled")),
)


def of_parts(
    source: Source, split: Split, known: tuple[Digests, Digests | None] | None = None
) -> dict[str, dict[str, Any]]:
    """How many images of a part are in another one, and the first of them with its copy.

    A position is that in the training images; of a test part of its own, that in the test images;
    images of unknown class follow the training images.

    Args:
        source: the data set.
        split: which images each part has.
        known: what `digests` gives, if it was computed before.

    Returns:
        {"test in labeled": {"images": 2, "first": [17, 203]}}; {} if no image is in two parts.
    """
    own, test = known or digests(source)
    extra = np.arange(len(source.train), len(own))
    places = {
        "labeled": np.asarray(split.labeled),
        "unlabeled": np.concatenate([np.asarray(split.unlabeled, dtype=np.int64), extra]),
        "validation": np.asarray(split.validation),
        "test": np.asarray(split.test) if test is None else np.arange(len(test)),
    }
    of_part = {part: own[at.astype(np.int64)] for part, at in places.items()}
    if test is not None:
        of_part["test"] = test
    found: dict[str, dict[str, Any]] = {}
    for one, other in PAIRS:
        if (one, other) == ("unlabeled", "labeled") and split.rule.labeled_in_pool:
            continue  # all of them, as was asked
        copied = np.flatnonzero(np.isin(of_part[one], of_part[other]))
        if copied.size:
            first = copied[0]
            original = np.flatnonzero(of_part[other] == of_part[one][first])[0]
            pair = [int(places[one][first]), int(places[other][original])]
            found[f"{one} in {other}"] = {"images": int(copied.size), "first": pair}
    return found


def told(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line about the copies that make figures look better than they are; "" without any."""
    shown = [
        f"{entry['images']} {pair.replace(' in ', ' image(s) in ')}"
        for pair, entry in found.items()
        if not pair.startswith("unlabeled")
    ]
    if not shown:
        return ""
    return (
        f"the same image is in two parts: {', '.join(shown)}; figures look better than they are "
        "(the first of each are in manifest.json, and ssl-selmix data names all)"
    )


def digests(source: Source) -> tuple[Digests, Digests | None]:
    """Of the training images and those of unknown class, and of a test part of its own.

    Of decoded images it is that of their pixels, of files that of their bytes.
    """
    if isinstance(source, FileSet):
        found = [source.hashes[part] for part in ("train", "unlabeled") if part in source.hashes]
        own = np.concatenate([np.array(part, dtype=np.bytes_) for part in found])
        return own, np.array(source.hashes["test"], np.bytes_) if source.test else None
    parts = [part for part in (source.train, source.extra_unlabeled) if part is not None]
    own = np.concatenate([_of_rows(part) for part in parts])
    return own, None if source.test is None else _of_rows(source.test)


def _of_rows(rows: Tensor | Rows) -> Digests:
    """Of each image or row of features."""

    def some(start: int) -> npt.NDArray[Any]:
        stop = min(start + ROWS, len(rows))
        if isinstance(rows, Rows):
            found = rows.take(torch.arange(start, stop)).contiguous()
        else:
            found = rows[start:stop].contiguous()
        return found.view(torch.uint8).flatten(1).numpy()

    starts = range(0, len(rows), ROWS)
    return np.array([digest_of(row.data) for at in starts for row in some(at)], dtype=np.bytes_)
