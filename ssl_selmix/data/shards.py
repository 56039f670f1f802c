"""Tar shards of images with labels beside them, as webdataset writes them; nothing is unpacked.

A shard's members a/1.jpg and a/1.cls are one sample: all before the first dot is its key.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_selmix.common.paths import expanded
from ssl_selmix.data.samples import Sample
from ssl_selmix.data.table import LABEL
from ssl_selmix.images.decode import LARGEST_FILE
from ssl_selmix.images.find import is_tools, suffixes

LABELS = ("cls", "label", "class")  # members that have a label, the likeliest first
LONGEST = 1 << 20  # bytes of a label or of key.json
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000


def files(setting: str, patterns: Sequence[str]) -> list[str]:
    """The shards that the patterns mean, absolute, in the order of the patterns and then by name.

    Args:
        setting: that has the patterns, for errors.
        patterns: paths with {000..003} for so many, or with * as in a shell.

    Raises:
        ValueError: one means no file, a place in a network, or a command.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if "://" in pattern or pattern.startswith("pipe:") or "::" in pattern:
            raise ValueError(
                f"{setting}: {pattern!r} is no file here, and nothing is fetched or executed; "
                "download the shards and name their files"
            )
        for one in _ranges(setting, pattern):
            path = str(expanded(one))
            here = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            if not here or not os.path.isfile(here[0]):
                raise ValueError(
                    f"{setting}: no file {one}; write it as in 'shards/{{000..003}}.tar' or "
                    "'shards/*.tar', in quotes"
                )
            found |= dict.fromkeys(map(os.path.abspath, here))
    return list(found)


def _ranges(setting: str, pattern: str) -> Iterator[str]:
    """The pattern with every number of its ranges; as many digits as they are written with."""
    if (told := RANGE.search(pattern)) is None:
        yield pattern
        return
    low, high = told[1], told[2]
    if int(high) < int(low) or int(high) - int(low) >= MOST_SHARDS:
        raise ValueError(
            f"{setting}: {told[0]} in {pattern!r} is no range; write the smaller number first, "
            f"and at most {MOST_SHARDS} shards"
        )
    for number in range(int(low), int(high) + 1):
        whole = pattern[: told.start()] + f"{number:0{len(low)}}" + pattern[told.end() :]
        yield from _ranges(setting, whole)


def check_apart(named: Mapping[str, Sequence[str]]) -> None:
    """Refuse a shard that two settings name.

    Raises:
        ValueError: names it and them.
    """
    seen: dict[str, str] = {}
    for setting, paths in named.items():
        for path in paths:
            if (other := seen.setdefault(path, setting)) != setting:
                raise ValueError(
                    f"{path} is in {other} and in {setting}; an image belongs to one part"
                )


@dataclass
class _Found:
    """The members of one key: of the images, and texts by their suffix."""

    images: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read(paths: Sequence[str], image: str = "", label: str = "") -> list[Sample]:
    """The samples of the shards, in their order; of images only the places are read.

    Args:
        paths: of the shards.
        image: the suffix of the image that is meant, if samples have several.
        label: the suffix of the member, or the key of key.json, that has the label.

    Raises:
        ValueError: names the shard, the member, and the remedy.
    """
    found: list[Sample] = []
    for path in paths:
        keys = _keys(path)
        here = [_sample(path, key, keys[key], image, label) for key in keys if keys[key].images]
        if not here:
            raise ValueError(f"{path} holds no image; write members such as 001.jpg and 001.cls")
        found += here
    return found


def _keys(path: str) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    length = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as shard:  # "r:": no compression, so that places are known
            for member in shard:
                if member.isdir():
                    continue
                _check(path, member, length)
                folder, file = os.path.split(member.name.removeprefix("./"))
                key, _, suffix = file.partition(".")
                if not key or is_tools(file):
                    continue  # hidden files, such as those of a Mac
                one = found.setdefault(f"{folder}/{key}" if folder else key, _Found())
                _take(path, shard, member, suffix.lower(), one)
    except (tarfile.TarError, OSError, EOFError) as error:
        if zipped := _compressed(path):
            raise ValueError(
                f"{path} is compressed ({zipped}), so that no image can be read by itself; "
                "uncompress it"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no whole tar file ({reason}); write it anew") from error
    return found


def _compressed(path: str) -> str:
    with open(path, "rb") as file:
        begin = file.read(6)
    kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    return next((kind for mark, kind in kinds.items() if begin.startswith(mark)), "")


def _check(path: str, member: tarfile.TarInfo, length: int) -> None:
    """Refuse what is no plain file inside the shard.

    Raises:
        ValueError: names the member.
    """
    name = member.name
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        raise ValueError(f"{path}: {name!r} is {kind}; write the shard with whole files alone")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{path}: {name!r} leads out of the shard; write relative names")
    if member.size > LARGEST_FILE:
        raise ValueError(
            f"{path}: {name!r} has {member.size >> 20} MiB and a file in a shard has at most "
            f"{LARGEST_FILE >> 20}"
        )
    if member.offset_data + member.size > length:
        raise ValueError(f"{path} ends in the middle of {name!r}; copy it again")


def _take(
    path: str, shard: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, one: _Found
) -> None:
    if f".{suffix.rpartition('.')[2]}" in suffixes():
        if suffix in one.images:
            raise ValueError(f"{path} has {member.name!r} twice; give every image its own key")
        one.images[suffix] = member
        return
    if suffix != "json" and suffix not in LABELS and member.size > 1024:
        return  # features, masks and the like
    if member.size > LONGEST:
        raise ValueError(
            f"{path}: {member.name!r} has {member.size} bytes and a label at most {LONGEST}"
        )
    file = shard.extractfile(member)
    assert file is not None
    content = file.read()
    try:
        one.texts[suffix] = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if suffix == "json" or suffix in LABELS:
            raise ValueError(
                f"{path}: {member.name!r} is no UTF-8 text (byte {error.start}); save it as UTF-8"
            ) from error


def _sample(path: str, key: str, one: _Found, image: str, label: str) -> Sample:
    wanted = image.lower().removeprefix(".") if image else next(iter(one.images))
    if wanted not in one.images or (not image and len(one.images) > 1):
        here = ", ".join(one.images)
        raise ValueError(
            f"{path}: {key!r} has the images {here}; name one with data.image=SUFFIX, such as "
            f"data.image={next(iter(one.images))}"
        )
    member = one.images[wanted]
    name, told = member.name.removeprefix("./"), _label(path, key, one, label)
    return Sample(path, member.offset_data, member.size, name, told)


def _label(path: str, key: str, one: _Found, wanted: str) -> str:
    """The label of a sample; "" if nothing has one.

    Raises:
        ValueError: key.json is none, or its label is no label.
    """
    for suffix in [wanted] if wanted else LABELS:
        if suffix in one.texts and suffix != "json":
            return one.texts[suffix]
    if "json" not in one.texts:
        return ""
    try:
        record = json.loads(one.texts["json"])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {key}.json is no JSON ({error}); correct it") from error
    if not isinstance(record, dict):
        raise ValueError(f'{path}: {key}.json is no object; write {{"label": "cat"}}')
    value: Any = next((record[k] for k in ([wanted] if wanted else LABEL) if k in record), None)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"{path}: the label in {key}.json is {str(value)[:60]!r}; give a text or a whole number"
        )
    return str(value).strip()
