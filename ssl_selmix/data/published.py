"""Data sets whose images a published list names: one way to read them all.

A plug-in says in a `Layout` which lists there are, in which format, and how many images they name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssl_selmix.common.console import warn
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import listed
from ssl_selmix.data.files import FileSet
from ssl_selmix.data.listed import Listed
from ssl_selmix.data.lists import Listing, Reader
from ssl_selmix.data.source import ImageSet
from ssl_selmix.data.workers import check_settings
from ssl_selmix.images.cache import folder_of
from ssl_selmix.images.checks import check_class_names
from ssl_selmix.images.folder import Part
from ssl_selmix.splits import FOLDER, Counts, LongTailSplit

Labels = npt.NDArray[np.int64]


@dataclass
class Published(LongTailSplit):
    """Where images and lists are, and how the listed images are split: all as they are listed."""

    root: str = ""  # the folder that the paths of the lists begin at
    lists: str = ""  # the folder of the lists; empty: root
    train_list: str = ""  # another list in the place of the published one, in its format
    size: int = 224  # side of the views, size×size pixels
    labeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="all"))
    unlabeled: Counts = field(default_factory=lambda: Counts(largest=0, shape="unknown"))
    # Held out of the train images; `folder`: those of the published validation list
    validation: int | float | str = FOLDER
    # place of decoded images or digests: auto (~/.cache/ssl_selmix), none, a folder
    cache: str = "auto"
    workers: int | None = None  # processes that read images; None: one for each core; 0: none
    strict: bool = True  # refuse a JPEG that is damaged in its middle; false: tell of it, take it

    def __post_init__(self) -> None:
        """Refuse a size or a number of workers without meaning, and a cache without a place."""
        super().__post_init__()
        folder_of(self.cache)
        check_settings(self.size, self.workers)


@dataclass(frozen=True)
class Layout:
    """What was published of a data set.

    Attributes:
        title: as papers write it.
        put: what to fetch and how it lies below data.root, for errors.
        lists: of each part, train, validation, test and unlabeled, the files that may hold it, in
            order of preference, with their formats.
        numbers: of images in the published list of each part.
        images: the folder below data.root that the paths begin at.
        both_from_test: validation and test images are drawn from the published test images,
            because labeled and unlabeled ones take all of a class.
        named_by_folder: class folders bear the names of the classes; else classes are numbers, or
            named by the list.
    """

    title: str
    put: str
    lists: Mapping[str, Sequence[tuple[str, Reader]]]
    numbers: Mapping[str, int]
    images: str = ""
    both_from_test: bool = False
    named_by_folder: bool = True


def load(
    layout: Layout, config: Published, groups: Mapping[str, str] | None = None
) -> ImageSet | FileSet:
    """The listed images, in the order of class and path; above 64 px they stay files.

    Args:
        layout: of the data set.
        config: where it is.
        groups: the group of an image by the stem of its name; one without is alone.

    Raises:
        ValueError: names the list, the row, the value and the remedy.
    """
    if not config.root:
        raise ValueError(f"{layout.title} needs data.root=PATH; {layout.put}")
    root = expanded(config.root)
    found = {part: _read(layout, config, root, part) for part in _wanted(layout, config)}
    root = root / layout.images
    places = _places(layout, root, found)
    names = _names(layout, found)
    for part in found.keys() - {"train"}:
        _renumber(found[part], names)
    parts = {part: _part(found[part], part, places[part], len(names)) for part in found}
    if layout.both_from_test:
        parts["validation"] = parts.pop("test")
    train, held = parts["train"], parts.get("validation")
    own = [*train[1], *(held[1] if held else ())]
    listing = Listed(
        root=root,
        class_names=names,
        train=train,
        validation=held,
        test=parts.get("test"),
        unlabeled=parts.get("unlabeled"),
        groups=None if groups is None else _groups(own, groups),
    )
    return listed.load(listing, config.size, config.cache, config.workers, strict=config.strict)


def _wanted(layout: Layout, config: Published) -> list[str]:
    """The parts that the settings ask for.

    Raises:
        ValueError: they ask for one that was not published.
    """
    wanted = ["train"]
    if layout.both_from_test and not config.test:
        raise ValueError(
            f"validation and test images of {layout.title} are drawn from the published test "
            "images; say how many with data.test=200, say"
        )
    if config.validation == FOLDER:
        wanted.append("validation")
        if "validation" not in layout.lists:
            raise ValueError(
                f"{layout.title} has no published validation list; hold images out of the train "
                "images with data.validation=0.1, say"
            )
    if layout.both_from_test or not config.test:
        wanted.append("test")
        if "test" not in layout.lists:
            raise ValueError(
                f"{layout.title} has no published test list; hold images out of the train images "
                "with data.test=0.2, say"
            )
    if config.unlabeled.shape == "unknown" and "unlabeled" in layout.lists:
        wanted.append("unlabeled")
    return wanted


def _read(layout: Layout, config: Published, root: Path, part: str) -> Listing:
    """The list of a part, wherever it is."""
    folder = expanded(config.lists) if config.lists else root
    known = layout.lists[part]
    if part == "train" and config.train_list:
        file = expanded(config.train_list)
        if not file.is_file():
            raise ValueError(f"no file {file}; check data.train_list")
        same = [reader for name, reader in known if name.endswith(file.suffix)]
        return (same or [known[0][1]])[0](file)
    for name, reader in known:
        if (folder / name).is_file():
            found = reader(folder / name)
            if (number := layout.numbers.get(part)) not in (None, len(found.paths)):
                warn(
                    f"{folder / name} lists {len(found.paths)} images and the published list "
                    f"{number}"
                )
            return found
    raise ValueError(f"no file {folder / known[0][0]}; {layout.put}, or set data.lists")


def _places(layout: Layout, root: Path, found: Mapping[str, Listing]) -> dict[str, list[str]]:
    """The files of every part, each of which is there and in no other part.

    Raises:
        ValueError: names the row.
    """
    seen: dict[str, tuple[Path, int]] = {}
    below, places = os.path.join(os.path.abspath(root), ""), {}
    for part, listing in found.items():
        places[part] = of_part = [os.path.normpath(below + path) for path in listing.paths]
        for path, whole, row in zip(listing.paths, of_part, listing.rows, strict=True):
            where = f"{listing.file}, row {row}: {path[:120]!r}"
            if not whole.startswith(below) or "\0" in path or os.path.isabs(path):
                raise ValueError(f"{where} lies outside {root}; write paths below data.root")
            if whole in seen:
                file, first = seen[whole]
                raise ValueError(
                    f"{where} is in row {first} of {file.name} as well; keep one of the two"
                )
            seen[whole] = (listing.file, row)
            if not os.path.isfile(whole):
                raise ValueError(f"{where} is no file in {root}; {layout.put}")
    return places


def _names(layout: Layout, found: Mapping[str, Listing]) -> tuple[str, ...]:
    """The names of the classes 0 to K - 1.

    Raises:
        ValueError: a class has no train image, or two folders, or a folder two classes.
    """
    train = found["train"]
    present = sorted(set(train.labels) - {-1})
    if len(present) < 2 or present != list(range(len(present))):
        first = next((k for k, label in enumerate(present) if k != label), len(present))
        raise ValueError(
            f"{train.file}: no image of class {first} among {len(present)} classes; classes are "
            "numbered from 0 without gaps, and there are at least 2"
        )
    if layout.named_by_folder:
        _check_folders(found)
        folders = {k: Path(p).parent.name for p, k in zip(train.paths, train.labels, strict=True)}
        names = tuple(folders[k] for k in present)
    else:
        names = tuple(train.names.get(k, str(k)) for k in present)
    if len(set(names)) < len(names):  # iNaturalist's hidden names are no names
        names = tuple(map(str, present))
    check_class_names(train.file, names)
    return names


def _renumber(listing: Listing, names: Sequence[str]) -> None:
    """Number the classes of a list that names them as those of the train list.

    Raises:
        ValueError: one of them is none of those to train on.
    """
    if not listing.by_name:
        return
    places = {name: k for k, name in enumerate(names)}
    for i, (label, row) in enumerate(zip(listing.labels, listing.rows, strict=True)):
        if (name := listing.names[label]) not in places:
            raise ValueError(
                f"{listing.file}, row {row}: no image of the class {name!r} to train on; take "
                "lists that belong together"
            )
        listing.labels[i] = places[name]


def _check_folders(found: Mapping[str, Listing]) -> None:
    """Refuse a list whose classes and folders contradict each other: it is cut or mixed up."""
    of_class: dict[int, tuple[str, int]] = {}
    of_folder: dict[str, tuple[int, int]] = {}
    listing = found["train"]
    for path, label, row in zip(listing.paths, listing.labels, listing.rows, strict=True):
        folder = Path(path).parent.as_posix()
        other, first = of_class.setdefault(label, (folder, row))
        if other != folder:
            raise ValueError(
                f"{listing.file}, row {row}: {path[:120]!r} is of class {label}, whose images "
                f"are in {other} (row {first}); take the published list"
            )
        number, first = of_folder.setdefault(folder, (label, row))
        if number != label:
            raise ValueError(
                f"{listing.file}, row {row}: {path[:120]!r} is of class {label}, and row {first} "
                f"says {number} of the same folder; take the published list"
            )


def _part(listing: Listing, part: str, places: Sequence[str], num_classes: int) -> Part:
    """The files of a part with their classes, in the order of class and path.

    Raises:
        ValueError: names a row whose class is none, or that has none and needs one.
    """
    if part == "unlabeled":
        return listing.file.parent / part, sorted(places, key=lambda p: p.split(os.sep)), None
    for path, label, row in zip(listing.paths, listing.labels, listing.rows, strict=True):
        if not 0 <= label < num_classes:
            raise ValueError(
                f"{listing.file}, row {row}: {path[:120]!r} is of class {label}, and those to "
                f"train on are 0 to {num_classes - 1}; take lists that belong together"
            )
    order = sorted(range(len(places)), key=lambda i: (listing.labels[i], places[i].split(os.sep)))
    labels = np.array([listing.labels[i] for i in order], dtype=np.int64)
    return listing.file.parent / part, [places[i] for i in order], labels


def _groups(files: Sequence[str], groups: Mapping[str, str]) -> Labels:
    """Numbers of the groups (N,); an image without one has its own."""
    stems = [Path(file).stem for file in files]
    keys = [groups.get(stem) or f"\0{stem}" for stem in stems]
    numbers = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)
