"""What `predict` reads: every kind of source that training reads, as images with a name for each.

The readers are those of training (`data.table`, `data.image_arrays`, `data.arrow`, `data.shards`,
`images.find`). Only the places of images are looked at here; `deploy.decoder` makes pixels of them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ssl_selmix.common import config, plugins
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import kinds
from ssl_selmix.deploy.listings import LISTERS, PARTS, Asked, Images
from ssl_selmix.deploy.loaded import Found, of_source
from ssl_selmix.images.find import find, is_list, matching, shown
from ssl_selmix.runs.folder import RunFolder

# The setting of a data set that a path alone stands for.
PLACE = {
    "table": "file",
    "arrays": "file",
    "hf": "root",
    "webdataset": "shards",
    "features": "root",
}
# What decides which images there are; all else, such as how they are split, is of training.
ASKED = {
    "table": ("file", "root", "path_column", "label_column", "split_column"),
    "arrays": ("file", "classes"),
    "hf": (
        *("name", "root", "revision", "image_column", "label_column", "classes"),
        *(f"{part}_split" for part in PARTS),
    ),
    "webdataset": (
        *("shards", "test_shards", "validation_shards", "unlabeled_shards"),
        *("image", "label", "classes"),
    ),
    "image_folder": ("root", "more_roots", "unlabeled_from"),
    "features": ("root",),
}


def of_words(words: Sequence[str], settings: Sequence[str], asked: Asked) -> Images:
    """What paths mean: images, folders, patterns, lists of paths, tables, arrays, sets, shards.

    Args:
        words: the paths.
        settings: data.key=value, of the one kind of data set that is among them.
        asked: what is wanted.

    Raises:
        ValueError: one is nothing of these, or cannot be read as what it is.
    """
    known = [("features" if asked.features else kind_of(word), word) for word in words]
    sets = dict.fromkeys(kind for kind, _ in known if kind in PLACE)
    if settings and len(sets) != 1:
        what = f"paths are of {' and '.join(sets)}" if sets else "no path here is one"
        raise ValueError(
            f"{settings[0]} is a setting of a data set, and {what}; name one with --dataset, such "
            "as --dataset table data.file=FILE"
        )
    found = Images()
    for kind, group in groupby(known, key=lambda pair: pair[0]):
        own = [word for _, word in group]
        if kind in PLACE:
            found.join(_of_places(kind, own, settings, asked))
        else:
            found.join(_of_images(kind, own, asked))
    if not words:
        find([])  # which says what to give
    return found


def kind_of(word: str) -> str:
    """The data set that reads a path; list or pattern for those; "" for images and folders.

    Raises:
        ValueError: it is a URL, or a name of the Hub.
    """
    path = os.path.expanduser(word)
    if "://" in word[:12]:
        raise ValueError(
            f"{shown(word)} is a URL, and nothing is fetched; download it and name the file"
        )
    if word.startswith("hf:") and not os.path.lexists(path):
        raise ValueError(f"{shown(word)} is a set of the Hub; write --dataset {shown(word)}")
    if os.path.isdir(path):
        return kinds.of_folder(path)
    if kind := kinds.of_file(path):
        return kind
    if os.path.lexists(path):
        return "list" if path.lower().endswith(".txt") else ""
    return "list" if is_list(word) else "pattern" if glob.has_magic(path) else ""


def _of_places(kind: str, places: Sequence[str], settings: Sequence[str], asked: Asked) -> Images:
    """Files of one kind of data set, each with the same settings."""
    module, given, notes = _composed(kind, settings)
    if kind == "webdataset":
        if asked.part:
            raise ValueError(
                f"shards named by path have no part {asked.part!r}; leave out --part, or write "
                "--dataset webdataset data.test_shards=SHARDS"
            )
        each = [os.path.join(p, "*.tar") if os.path.isdir(expanded(p)) else p for p in places]
        found = LISTERS[kind](module, replace(given, shards=each), asked)
        found.notes += notes
        return found
    found = Images(notes=notes)
    for place in places:
        found.join(LISTERS[kind](module, replace(given, **{PLACE[kind]: place}), asked))
    return found


def _composed(name: str, settings: Sequence[str]) -> tuple[Any, Any, list[str]]:
    """A data set's module and configuration, and a note of settings that change nothing."""
    module = plugins.dataset(name)
    words = config.parse_overrides(settings)
    given = config.compose({"data": module.Config}, [("command line", words)])[0]["data"]
    known = [f"data.{key}" for key in ASKED.get(name, ())]
    idle = [key for key in words if known and key not in known]
    if not idle:
        return module, given, []
    return module, given, [f"note: {', '.join(idle)}: of training, and without effect here"]


def _of_images(kind: str, words: Sequence[str], asked: Asked) -> Images:
    """Images and folders, or patterns and lists of paths."""
    found = Images()
    if kind:
        if asked.part:
            raise ValueError(
                f"{shown(words[0])} has no part {asked.part!r}; leave out --part, or name a folder"
            )
        for word in words:
            files = matching([word if "@" in word[:1] or kind != "list" else f"@{word}"], {})
            found.add(files, files, [_label_of(file, "", asked) for file in files])
        return found
    for word in words:
        place = os.path.expanduser(word)
        if asked.part:
            place = _part_of(place, asked.part)
        files, left_out = find([place])
        labels = [_label_of(file, place, asked) for file in files]
        found.join(Images([*files], files, labels, left_out))
    return found


def _part_of(place: str, part: str) -> str:
    inner = os.path.join(place, part)
    if os.path.isdir(inner):
        return inner
    what = "folder" if os.path.isdir(place) else "image"
    raise ValueError(
        f"the {what} {shown(place)} has no part {part!r}; name a folder that holds {part}/*, or "
        "leave out --part"
    )


def _label_of(file: str, root: str, asked: Asked) -> int:
    """The class that the outermost folder below the root is named by; -1 if none is."""
    if not asked.judged:
        return -1
    folders = os.path.dirname(os.path.relpath(file, root) if root else file).split(os.sep)
    own = os.path.basename(os.path.abspath(root)) if root else ""
    named = [name for name in (*folders, own) if name in asked.class_names]
    return asked.class_names.index(named[0]) if named else -1


def of_dataset(name: str, settings: Sequence[str], asked: Asked, run: RunFolder) -> Images:
    """The images of a data set, named as for training.

    Args:
        name: of a data set, perhaps hf:NAME, or its file.
        settings: data.key=value.
        asked: what is wanted.
        run: whose split tells the parts of a data set that has none of its own.

    Raises:
        ValueError: it cannot be read, or has no such part.
    """
    head, own = plugins.parted(name)
    module, given, notes = _composed(head, [*own, *settings])
    if asked.features and head != "features":
        raise ValueError(
            f"the run was trained on {asked.features} features and takes no images; name an .npz "
            "of features, or train on the images with features=cached"
        )
    if head in LISTERS:
        found = LISTERS[head](module, given, asked)
    else:
        found = _held(of_source(head, module.load(given), asked.part, run), asked)
    found.notes += notes
    if not found.files:
        what = f"part {asked.part!r}" if asked.part else "image"
        raise ValueError(f"{name} has no {what}; leave out --part, or check the settings")
    return found


def _held(rows: Sequence[Found], asked: Asked) -> Images:
    """Of a data set that was loaded."""
    found = Images()
    for name, file, label in rows:
        found.names.append(name)
        found.files.append(file)
        found.labels.append(asked.class_of(label, name))
    return found


def of_run(rows: Sequence[Found], asked: Asked) -> Images:
    """The run's own images; see `loaded.of_run`."""
    return _held(rows, asked)
