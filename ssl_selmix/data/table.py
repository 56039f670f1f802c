"""Tables of images: CSV, TSV, JSON, JSONL and parquet files, row by row.

Shapes: R rows.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded

# Names of columns that are found without being told, in lower case, the likeliest first.
PATH = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABEL = ("label", "class", "class_name", "category", "target", "species", "diagnosis", "dx", "y")
PART = ("split", "part", "subset", "set", "fold")
# What the parts are called elsewhere.
PARTS = {
    **dict.fromkeys(("train", "training", "labeled", "labelled", ""), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "holdout"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "pool"), "unlabeled"),
}
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = ",;\t|"
LONGEST = 1 << 20  # characters of a field


@dataclass(frozen=True)
class Columns:
    """Which columns are meant; an empty name is looked for among the usual ones."""

    path: str = ""
    label: Sequence[str] = ()  # several: annotators, whose majority counts
    part: str = ""
    group: str = ""
    weight: str = ""  # never looked for: a patient's weight is none of an image's loss
    votes: bool = False  # whether what every annotator says is kept
    labeled: bool = True  # whether the table must have a column of labels, as to train on


@dataclass
class Rows:
    """What the rows say. Lists of R entries, in the order of the file.

    Attributes:
        paths: as written.
        labels: "" for an image without one, or whose annotators disagree.
        parts: train, validation, test or unlabeled.
        groups: empty if no column was named.
        numbers: the line of the file, or the number of the record, from 1.
        split: whether the table has a column of parts.
        disagreements: rows whose annotators have no majority.
        weights: of the loss of each image, NaN where there is none; empty if no column was named.
        votes: what every annotator says, "" for nothing; empty if `Columns.votes` is false.
        annotators: the names of their columns.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    split: bool = False
    disagreements: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    votes: list[tuple[str, ...]] = field(default_factory=list)
    annotators: tuple[str, ...] = ()


def read(file: Path, columns: Columns) -> Rows:
    """All rows of a table; nothing of an image is looked at.

    Raises:
        ValueError: names the row, the value and the remedy.
    """
    records = _records(file)
    try:
        first_number, first = next(records)
    except StopIteration:
        raise ValueError(f"{file} has no row; give one row for each image") from None
    found = _found(file, list(first), columns)
    rows, texts = Rows(split=bool(found.part), annotators=tuple(found.label)), _Texts(file)
    rows_of = _chain(first_number, first, records)
    for number, record in rows_of:
        path = texts.of(record, found.path, number, once=True)
        if not path:
            raise ValueError(
                f"{file}, row {number}: no {found.path}; name the image's file or remove the row"
            )
        votes = tuple(texts.of(record, name, number) for name in found.label)
        label, agreed = _label(votes)
        part = texts.of(record, found.part, number).lower() if found.part else ""
        if part not in PARTS:
            raise ValueError(
                f"{file}, row {number}: {unknown(f'{found.part}', part, [p for p in PARTS if p])}"
            )
        if not agreed:
            rows.disagreements.append(number)
        rows.paths.append(path)
        rows.labels.append(label)
        rows.parts.append(PARTS[part])
        if found.group:
            group = texts.of(record, found.group, number)
            if not group:
                raise ValueError(
                    f"{file}, row {number}: no {found.group}; every image belongs to a group, "
                    "give those that are alone one of their own"
                )
            rows.groups.append(group)
        if found.weight:
            weight = weight_of(file, record.get(found.weight), found.weight, number)
            if weight != weight and label and PARTS[part] == "train":
                raise ValueError(
                    f"{file}, row {number}: no {found.weight}; give every labeled image to train "
                    "on a weight, 1 for one like the others"
                )
            rows.weights.append(weight)
        if found.votes:
            rows.votes.append(votes)
        rows.numbers.append(number)
    return rows


def weight_of(file: Path, value: Any, column: str, number: int) -> float:
    """A weight as it is written in a table; NaN where there is none.

    Raises:
        ValueError: it is no finite number of 0 or more.
    """
    if value is None or value != value or not str(value).strip():
        return math.nan
    text = str(value).strip()
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"{file}, row {number}: {column} is {text[:60]!r}, and the weight of an image is a "
            "finite number of 0 or more; correct it, 0 leaves the image out of the loss"
        )
    return weight


def _chain(
    number: int, first: Mapping[str, Any], rest: Iterable[tuple[int, Mapping[str, Any]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield number, first
    yield from rest


class _Texts:
    """Values as texts; one object for equal ones, for a million rows repeat few labels."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, str] = {}

    def of(self, record: Mapping[str, Any], column: str, number: int, *, once: bool = False) -> str:
        value = record.get(column)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(
                f"{self._file}, row {number}: {column} is {str(value)[:60]!r}, neither a text nor "
                "a number; give one value"
            )
        if isinstance(value, float):
            if value != value:  # how tables write that there is nothing
                return ""
            if value != int(value):
                raise ValueError(
                    f"{self._file}, row {number}: {column} is {value}, which is no class and no "
                    "path; give a text or a whole number"
                )
            value = int(value)
        text = str(value).strip()
        return text if once else self._known.setdefault(text, text)


def _label(votes: Sequence[str]) -> tuple[str, bool]:
    """The label that most of the votes are for, and whether there is one or no vote at all."""
    given = [vote for vote in votes if vote]
    if not given:
        return "", True
    counts: dict[str, int] = {}
    for vote in given:
        counts[vote] = counts.get(vote, 0) + 1
    most = max(counts.values())
    winners = [vote for vote, count in counts.items() if count == most]
    return (winners[0], True) if len(winners) == 1 else ("", False)


def _found(file: Path, present: Sequence[str], wanted: Columns) -> Columns:
    """The names of the columns in this table.

    Raises:
        ValueError: one that was named or is needed is not there.
    """
    lower: dict[str, str] = {}
    for name in present:
        lower.setdefault(name.strip().lower(), name)

    def one(kind: str, name: str, usual: Sequence[str], *, needed: bool) -> str:
        if name:
            if name not in present:
                raise ValueError(
                    f"{file}: data.{kind}_column: {unknown('column', name, list(present))}"
                )
            return name
        known = [lower[usual_name] for usual_name in usual if usual_name in lower]
        if not known and needed:
            raise ValueError(
                f"{file} has the columns {', '.join(map(repr, present[:8]))} and none of them is "
                f"{' or '.join(usual[:3])}; name it with data.{kind}_column=NAME"
            )
        return known[0] if known else ""

    labels = [one("label", name, LABEL, needed=wanted.labeled) for name in wanted.label or [""]]
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(
            f"{file}: data.label_column names {twice[0]!r} twice; name every annotator once"
        )
    return Columns(
        path=one("path", wanted.path, PATH, needed=True),
        label=[name for name in labels if name],
        part=one("split", wanted.part, PART, needed=False),
        group=one("group", wanted.group, (), needed=False),
        weight=one("weight", wanted.weight, (), needed=False),
        votes=wanted.votes,
    )


def _records(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows with the line or record each began at.

    Raises:
        ValueError: the file cannot be read as what its suffix says.
    """
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{file} is no table by its name; give one of {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise ValueError(f"no file {file}; give the table with data.file=FILE")
    if kind == ".parquet":
        yield from _parquet(file)
        return
    with _opened(file) as text:
        try:
            if kind == ".json":
                yield from _json(file, text)
            elif kind in (".jsonl", ".ndjson"):
                yield from _jsonl(file, text)
            else:
                yield from _csv(file, text)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is no UTF-8 text (byte {error.start}); save it as UTF-8"
            ) from error


def _opened(file: Path) -> IO[str]:
    # A mark of byte order, as spreadsheets write it, is no part of the first name.
    try:
        return file.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check its rights") from error


def _csv(file: Path, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    head = text.readline()
    text.seek(0)
    counts = {d: head.count(d) for d in DELIMITERS}
    delimiter = max(counts, key=lambda d: counts[d]) if any(counts.values()) else ","
    csv.field_size_limit(LONGEST)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{file} has two columns {repeated[0]!r}; rename one")
        begins = reader.line_num + 1
        for values in reader:
            if not any(value.strip() for value in values):
                begins = reader.line_num + 1
                continue
            if len(values) != len(names):
                raise ValueError(
                    f"{file}, row {begins}: {len(values)} values for {len(names)} columns; put "
                    f"values that contain {delimiter!r} or line breaks in quotes"
                )
            yield begins, dict(zip(names, values, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, row {reader.line_num}: no sound CSV ({error}); check the quotes"
        ) from error


def _json(file: Path, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = json.load(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}); give a list of objects") from error
    if isinstance(content, dict) and len(content) == 1:  # {"images": [...]}
        content = next(iter(content.values()))
    if not isinstance(content, list):
        raise ValueError(f"{file} holds no list; give a list of objects, one for each image")
    for number, record in enumerate(content, 1):
        yield number, _object(file, number, record)


def _jsonl(file: Path, text: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{file}, row {number}: no JSON ({error}); give one object a line"
            ) from error
        yield number, _object(file, number, record)


def _object(file: Path, number: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(
            f"{file}, row {number}: {str(record)[:60]!r} is no object; give objects such as "
            '{"path": "a/1.jpg", "label": "a"}'
        )
    return record


def _parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"{file} needs pyarrow; pip install 'ssl_selmix[parquet]', or save the table as CSV"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{file} is no parquet file ({error}); save it again") from error
    number = 0
    for batch in table.iter_batches():
        for record in batch.to_pylist():
            number += 1
            yield number, record


def place(file: str, root: str) -> tuple[Path, Path]:
    """The table, and the folder that its paths start from: its own unless another one is named.

    Raises:
        ValueError: no table is named.
    """
    if not file:
        raise ValueError("--dataset table needs data.file=FILE, a table with a row for each image")
    found = expanded(file)
    return found, expanded(root) if root else found.absolute().parent


def resolved(file: Path, root: Path, rows: Rows) -> list[str]:
    """The rows' paths, joined to the root where they are relative.

    Raises:
        ValueError: a path that leaves the root, is a URL, or is written twice.
    """
    seen: dict[str, int] = {}
    found = []
    for path, number in zip(rows.paths, rows.numbers, strict=True):
        if "://" in path[:12]:
            raise ValueError(
                f"{file}, row {number}: {path[:80]!r} is a URL, and nothing is fetched; download "
                "the images and name their files"
            )
        if "\0" in path:
            raise ValueError(f"{file}, row {number}: the path has a zero byte; correct it")
        own = path.replace("\\", "/") if os.sep == "/" and "\\" in path else path
        whole = os.path.normpath(os.path.join(root, own))
        if not os.path.isabs(own) and not whole.startswith(os.path.join(root, "")):
            raise ValueError(
                f"{file}, row {number}: {path!r} lies outside {root}; set data.root to a folder "
                "that has all images"
            )
        if (first := seen.setdefault(whole, number)) != number:
            raise ValueError(
                f"{file}, row {number}: {path!r} is in row {first} as well; keep one of the two"
            )
        found.append(whole)
    return found
