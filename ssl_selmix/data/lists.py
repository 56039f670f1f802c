"""Lists of images as they were published: lines, COCO's JSON, columns of ones, names in folders.

No image is looked at. Classes are numbers from 0, and -1 is an image whose class nobody knows.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LINE = re.compile(r"(.*\S)[ \t]+(-1|[0-9]{1,9})")


@dataclass
class Listing:
    """What a list says, an entry for each image, in its order.

    Attributes:
        file: the list.
        paths: relative to the folder of the images, as they are written.
        labels: numbers of the classes; -1: unknown.
        rows: of the file, from 1, where each entry is.
        names: of the classes, if the list has them.
        by_name: whether names say which class is meant, and numbers follow from them.
    """

    file: Path
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    by_name: bool = False

    def add(self, path: str, label: int, row: int) -> None:
        """One more image."""
        self.paths.append(path)
        self.labels.append(label)
        self.rows.append(row)


Reader = Callable[[Path], Listing]


def lines(file: Path) -> Listing:
    """`train/n01440764/n01440764_190.JPEG 0` in every line: ImageNet-LT, Places-LT, Semi-Aves.

    Raises:
        ValueError: names the row, the value and the remedy.
    """
    found = Listing(file)
    for row, line in _text_lines(file):
        written = LINE.fullmatch(line)
        if written is None:
            raise ValueError(
                f"{file}, row {row}: {line[:80]!r} is no path with the number of a class; write "
                "it as in 'train/a/1.jpg 0', or -1 for an unknown class"
            )
        found.add(written[1], int(written[2]), row)
    return _some(found)


def in_class_folders(suffix: str) -> Reader:
    """A reader of `apple_pie/1005649` in every line: Food-101. Classes are numbered by name.

    Args:
        suffix: that the list leaves out, such as .jpg.
    """

    def read(file: Path) -> Listing:
        found, of_rows = Listing(file, by_name=True), []
        for row, line in _text_lines(file):
            name, _, image = line.rpartition("/")
            if not name or not image or " " in line:
                raise ValueError(
                    f"{file}, row {row}: {line[:80]!r} is no class and image; write it as in "
                    "'apple_pie/1005649'"
                )
            of_rows.append(name)
            found.add(line + suffix, 0, row)
        places = {name: k for k, name in enumerate(sorted(set(of_rows)))}
        found.labels = [places[name] for name in of_rows]
        found.names = {k: name for name, k in places.items()}
        return _some(found)

    return read


def class_folders(file: Path) -> Listing:
    """`/a/abbey` in every line, the folder of a class beside the list: SUN397.

    Raises:
        ValueError: a folder is missing or holds no image.
    """
    found = Listing(file)
    for label, (row, line) in enumerate(_text_lines(file)):
        inside = line.strip("/")
        folder = file.parent / inside
        images = sorted(path.name for path in folder.glob("*.jpg")) if folder.is_dir() else []
        if not images or ".." in inside.split("/"):
            raise ValueError(
                f"{file}, row {row}: {line[:80]!r} is no folder with images beside the list; "
                "unpack the archive again"
            )
        found.names[label] = inside.partition("/")[2] or inside
        for name in images:
            found.add(f"{inside}/{name}", label, row)
    return _some(found)


def coco(file: Path) -> Listing:
    """JSON with images, annotations and perhaps categories: iNaturalist.

    Raises:
        ValueError: names the record, the value and the remedy.
    """
    content = _json(file)
    places: dict[Any, int] = {}
    for row, record in enumerate(_records(file, content, "annotations", "image_id"), 1):
        label = record.get("category_id")
        if type(label) is not int or label < -1:
            raise ValueError(
                f"{file}, annotation {row}: category_id is {str(label)[:60]!r}; give the number "
                "of a class"
            )
        if places.setdefault(record["image_id"], label) != label:
            raise ValueError(
                f"{file}, annotation {row}: the image {record['image_id']} is in a second class, "
                f"{label}; keep one of the two"
            )
    found = Listing(file)
    for row, record in enumerate(_records(file, content, "images", "id", "file_name"), 1):
        if record["id"] not in places:
            raise ValueError(
                f"{file}, image {row}: {str(record['file_name'])[:80]!r} has no annotation; add "
                "one, or remove the image"
            )
        found.add(str(record["file_name"]), places[record["id"]], row)
    if content.get("categories"):
        kinds = _records(file, content, "categories", "id", "name")
        found.names = {record["id"]: str(record["name"]) for record in kinds}
    return _some(found)


def columns_of_ones(folder: str, suffix: str = ".jpg") -> Reader:
    """A reader of CSV with a column of each class, 1.0 in that of the image: ISIC-2019.

    Args:
        folder: of the images.
        suffix: that the column `image` leaves out.
    """

    def read(file: Path) -> Listing:
        table = csv_table(file, "image")
        names = [name for name in table.names if name != "image"]
        found = Listing(file, names=dict(enumerate(names)))
        for row, record in table.records:
            ones = [k for k, name in enumerate(names) if record[name] in ("1", "1.0")]
            zeros = sum(record[name] in ("0", "0.0") for name in names)
            if len(ones) != 1 or zeros != len(names) - 1:
                raise ValueError(
                    f"{file}, row {row}: {record['image']} has {len(ones)} classes marked 1.0; "
                    "mark one, and all others 0.0"
                )
            found.add(f"{folder}/{record['image']}{suffix}", ones[0], row)
        return _some(found)

    return read


@dataclass(frozen=True)
class Table:
    """The columns of a CSV file, and its records with the rows they are in, from 2."""

    names: list[str]
    records: list[tuple[int, dict[str, str]]]


def csv_table(file: Path, *needed: str) -> Table:
    """A CSV file whose columns are known.

    Raises:
        ValueError: a column is missing, or a row has too many or too few values.
    """
    rows = list(_text_lines(file))
    names = [name.strip() for name in next(csv.reader([rows[0][1]]))] if rows else []
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"{file}: no column {missing[0]!r} but {', '.join(names[:6]) or 'nothing'}; take the "
            "published file"
        )
    records = []
    for row, line in rows[1:]:
        values = [value.strip() for value in next(csv.reader([line]))]
        if len(values) != len(names):
            raise ValueError(
                f"{file}, row {row}: {len(values)} values for {len(names)} columns; take the "
                "published file"
            )
        records.append((row, dict(zip(names, values, strict=True))))
    return Table(names, records)


def _text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    for row, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            yield row, line.strip()


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is no UTF-8 text (byte {error.start}); take the published file"
        ) from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check its rights") from error


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}); take the published file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no object with images and annotations; take the published one")
    return content


def _records(file: Path, content: Mapping[str, Any], kind: str, *keys: str) -> list[dict[str, Any]]:
    """The records of a kind, each with these keys."""
    records = content.get(kind)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file} has no list {kind!r}; take the published file")
    for row, record in enumerate(records, 1):
        missing = [k for k in keys if not isinstance(record, dict) or k not in record]
        if missing:
            raise ValueError(
                f"{file}, {kind} {row}: no {missing[0]} in {str(record)[:60]!r}; take the "
                "published file"
            )
    return records


def _some(found: Listing) -> Listing:
    if not found.paths:
        raise ValueError(f"{found.file} lists no image; take the published file")
    return found
