"""Images of data sets that know no files: the run's own, and those that training loads by a name.

Shapes: N images of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ssl_selmix.data import ImageSet, Source, manifest
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.images.digests import FileImages
from ssl_selmix.images.pieces import Held
from ssl_selmix.runs import kept
from ssl_selmix.runs.folder import MANIFEST, RunFolder
from ssl_selmix.runs.plan import reopen
from ssl_selmix.splits import Split

Rows = npt.NDArray[np.int64]


class Found(NamedTuple):
    """One image: what rows call it, where it is, its label; "" is none."""

    name: str
    file: str
    label: str


def of_run(run: RunFolder, settings: Sequence[str], part: str, trust: Sequence[str]) -> list[Found]:
    """A part of the images that a run was trained and measured on, by its manifest.

    Args:
        run: finished.
        settings: key=value, where its images are now.
        part: train (the labeled images), validation, test or unlabeled.
        trust: the file or module of its data set, which is executed, if it is not ours.

    Raises:
        ValueError: the images are gone, or are others now.
    """
    plan = reopen(run.path, settings, trust)
    found = kept.load(plan)
    if found.sha256 != run.manifest["images_sha256"]:
        raise ValueError(
            f"the images of {run.path} are others now; give the folder that has them (data.root), "
            "or name what to predict"
        )
    return _of_split(found.source, manifest.load(run.path / MANIFEST), part)


def of_source(name: str, source: Source, part: str, run: RunFolder) -> list[Found]:
    """A part, or all, of a data set that was loaded.

    Parts that the set does not have itself, as the digits have no test part, are those that the run
    drew from it, if it is the run's own.

    Raises:
        ValueError: the set has no images, or no such part.
    """
    if isinstance(source, FeatureSet) != (len(run.manifest["image_shape"]) == 1):
        raise ValueError(
            f"one of {name} and the images that {run.path} was trained on has features and no "
            "images; name what the run takes"
        )
    if part and source.sha256() == run.manifest["images_sha256"]:
        return _of_split(source, manifest.load(run.path / MANIFEST), part)
    own = len(source.train) - source.apart
    everything = np.arange(len(source.train))
    rows: dict[str, tuple[str, Rows]] = {"train": ("train", everything[:own])}
    if source.apart:
        rows["validation"] = ("train", everything[own:])
    if source.test is not None:
        rows["test"] = ("test", np.arange(len(source.test)))
    if source.extra_unlabeled is not None:
        rows["unlabeled"] = ("extra_unlabeled", np.arange(len(source.extra_unlabeled)))
    if part and part not in rows:
        raise ValueError(
            f"{name} has no part {part!r} of its own, and {run.path} was trained on other images; "
            f"name {' or '.join(rows)}, or leave out --part"
        )
    wanted = [part] if part else list(rows)
    return [row for p in wanted for row in _rows(source, *rows[p])]


def _of_split(source: Source, split: Split, part: str) -> list[Found]:
    """The images of a part of a run."""
    if part == "test" and source.test is not None:
        return _rows(source, "test", np.arange(len(source.test)))
    index = np.asarray(split.labeled if part == "train" else getattr(split, part), dtype=np.int64)
    found = _rows(source, "train", index, labeled=part != "unlabeled")
    if part == "unlabeled" and source.extra_unlabeled is not None:
        num = len(source.extra_unlabeled)
        found += _rows(source, "extra_unlabeled", np.arange(num))
    return found


def _rows(source: Source, part: str, index: Rows, *, labeled: bool = True) -> list[Found]:
    """The images of these positions in one of a data set's own parts."""
    images = getattr(source, part)
    classes = {"train": source.train_labels, "test": source.test_labels}.get(part)
    texts = [""] * len(index)
    if labeled and classes is not None:
        names = source.class_names
        texts = [names[k] if k >= 0 else "" for k in np.asarray(classes)[index].tolist()]
    word = "unlabeled" if part == "extra_unlabeled" else part
    if isinstance(images, FileImages):
        paths = images.paths
        return [
            Found(paths[i], paths[i], text) for i, text in zip(index.tolist(), texts, strict=True)
        ]
    taken = torch.from_numpy(index)
    if isinstance(source, ImageSet):
        pixels = images[taken].permute(0, 2, 3, 1).numpy()
    else:
        pixels = images.take(taken).numpy()
    named = [(f"{word}[{i}]", text) for i, text in zip(index.tolist(), texts, strict=True)]
    return [
        Found(name, Held(name, own), text) for (name, text), own in zip(named, pixels, strict=True)
    ]
