"""A natural tail: drawings of emoji by sub-category, as a table of images for `--dataset table`.

    mkdir emoji && cd emoji
    for name in google twitter; do
        curl -O https://registry.npmjs.org/emoji-datasource-$name/-/emoji-datasource-$name-16.0.0.tgz
    done
    cd .. && python -m studies.natural_tail emoji emoji/emoji.csv

The packages are iamcal/emoji-data's; Google's drawings are under the Apache License 2.0, Twitter's
under CC BY 4.0. An image is one drawing, its class the Unicode sub-category, its group the subject:
an emoji in all skin tones, sexes and directions, by both vendors, and any other emoji whose file
has the same bytes, as two flags may have. Nobody chose how many a class has.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_selmix.common.atomic import write_atomically

VENDORS = ("google", "twitter")
# SHA-1 of the archives of version 16.0.0, as the registry states it (dist.shasum).
SHA1 = {
    "google": "a80ac3e8106cbd4d8648ce758aa099e8827b6157",
    "twitter": "e2bd39a8acb77e158106f8249dd7b4cd93fa1b14",
}
LEAST = 16  # groups of a class: three to validate on, five to test on, and as many to learn from
TONES = {f"1F3F{digit}" for digit in "BCDEF"}
SIGNS = {"FE0F", "200D", "2640", "2642", "27A1"}  # how it is drawn, joiner, sexes, to the right
SAME = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}  # person, child


class Drawing(NamedTuple):
    """One image: its file below the folder, class, subject and the digest of its bytes."""

    path: str
    label: str
    subject: str
    digest: str


def subject_of(unified: str) -> str:
    """What is drawn, whatever the skin tone, the sex and the direction.

    >>> subject_of("1F469-200D-1F692") == subject_of("1F468-1F3FD-200D-1F692")
    True
    """
    points = {SAME.get(point, point) for point in unified.split("-")}
    return "-".join(sorted(points - TONES - SIGNS or points))


def unpack(archive: Path, vendor: str) -> list[dict[str, Any]]:
    """Unpack the 64-pixel images beside the archive, and return what is known of each emoji.

    Raises:
        ValueError: no such archive, or another one.
    """
    if not archive.is_file():
        raise ValueError(f"no file {archive}; fetch it as {Path(__file__).name} says")
    if hashlib.sha1(archive.read_bytes(), usedforsecurity=False).hexdigest() != SHA1[vendor]:
        raise ValueError(f"{archive} has not the SHA-1 {SHA1[vendor]}; fetch it anew")
    start, found = f"package/img/{vendor}/64/", None
    with tarfile.open(archive) as packed:
        for member in packed:
            name = Path(member.name).name
            if member.name == "package/emoji.json":
                found = json.loads(_bytes(packed, member))
            elif member.isfile() and member.name == start + name:
                file = archive.parent / vendor / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(_bytes(packed, member))
    if found is None or not (archive.parent / vendor).is_dir():
        raise ValueError(f"{archive} has no package/emoji.json and {start}*; fetch it anew")
    return list(found)


def _bytes(packed: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = packed.extractfile(member)
    return b"" if opened is None else opened.read()


def drawings(folder: Path, vendor: str, emoji: Sequence[Mapping[str, Any]]) -> Iterator[Drawing]:
    """The images that a vendor has drawn, each skin tone being one."""
    for one in emoji:
        for drawn in (one, *one.get("skin_variations", {}).values()):
            path = f"{vendor}/{drawn['image']}"
            if drawn.get(f"has_img_{vendor}") and (folder / path).is_file():
                digest = hashlib.sha256((folder / path).read_bytes()).hexdigest()
                yield Drawing(path, one["subcategory"], subject_of(one["unified"]), digest)


def grouped(found: Sequence[Drawing]) -> dict[str, str]:
    """The group of every subject: those that share a file of the same bytes have one."""
    parent = {one.subject: one.subject for one in found}

    def root(subject: str) -> str:
        while parent[subject] != subject:
            subject = parent[subject]
        return subject

    first: dict[str, str] = {}
    for one in found:
        low, high = sorted((root(one.subject), root(first.setdefault(one.digest, one.subject))))
        parent[high] = low
    return {subject: root(subject) for subject in parent}


def rows(found: Sequence[Drawing], least: int) -> list[tuple[str, str, str]]:
    """Path, label and group of the images that are kept, in the order of class and path.

    Of files with the same bytes the first is kept, and none if they are of two classes, for then
    nobody knows the class. Kept are classes of at least `least` groups.
    """
    group = grouped(found)
    classes, groups = defaultdict(set), defaultdict(set)
    for one in found:
        classes[one.digest].add(one.label)
    once: dict[str, Drawing] = {}
    for one in found:
        if len(classes[one.digest]) == 1:
            once.setdefault(one.digest, one)
            groups[one.label].add(group[one.subject])
    many = {label for label, own in groups.items() if len(own) >= least}
    return sorted(
        ((one.path, one.label, group[one.subject]) for one in once.values() if one.label in many),
        key=lambda row: (row[1], row[0]),
    )


def make_table(folder: Path, file: Path, least: int = LEAST) -> str:
    """Write the table of the unpacked drawings; returns what it has, in a line."""
    found: list[Drawing] = []
    for vendor in VENDORS:
        emoji = unpack(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", vendor)
        found += drawings(folder, vendor, emoji)
    kept = rows(found, least)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "subject"))
    writer.writerows(kept)
    write_atomically(file, text.getvalue().encode())
    counts: dict[str, int] = defaultdict(int)
    for _, label, _ in kept:
        counts[label] += 1
    return (
        f"{file}: {len(kept)} of {len(found)} images, {len({row[2] for row in kept})} groups, "
        f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} images; "
        f"SHA-256 {hashlib.sha256(text.getvalue().encode()).hexdigest()[:12]}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("archives", type=Path, help="folder of the two archives")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    parser.add_argument("--least", type=int, default=LEAST, help="groups that a class must have")
    args = parser.parse_args(argv)
    print(make_table(args.archives, args.table, args.least))


if __name__ == "__main__":
    main()
