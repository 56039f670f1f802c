"""The look at a data set as a table on the terminal, JSON and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_selmix.audit.findings import Finding, as_json, counts, findings, look
from ssl_selmix.audit.inventory import PARTS, Inventory, take
from ssl_selmix.common import page
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import console, say
from ssl_selmix.images.find import shown

MOST_CLASSES = 40  # that the terminal shows; the others are in the JSON file
SHOWN = 3  # examples of a finding on the terminal
ON_PAGE = 50  # and on the page
EXAMPLES, FEW = 8, 3  # of a class on the page; of more than 100 classes


def run(dataset: str, settings: Sequence[str], to_json: Path | None, to_html: Path | None) -> int:
    """Look at the data set, and tell.

    Returns:
        0, or 1 if something should be mended before training.

    Raises:
        ValueError: it cannot be listed.
        OSError: a report cannot be written.
    """
    for path in (to_json, to_html):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"no folder {path.absolute().parent} for {path.name}; make it first")
    images = take(dataset, settings)
    seen = look(images)
    found = findings(images, seen)
    made = as_json(images, seen, found)
    _terminal(made, found)
    if to_json is not None:
        write_atomically(to_json, json.dumps(made, indent=1).encode() + b"\n")
        say(f"wrote {to_json}")
    if to_html is not None:
        bad = set(seen.unreadable)
        write_atomically(to_html, _page(images, made, bad).encode("utf-8", "backslashreplace"))
        say(f"wrote {to_html}")
    return int(any(finding.mend for finding in found))


def rows(of_parts: dict[str, dict[str, int]]) -> list[tuple[str, list[int]]]:
    """Each class with its images in each part, the largest of train first, those without last."""
    names = dict.fromkeys(name for of_part in of_parts.values() for name in of_part)
    found = [(name, [of_part.get(name, 0) for of_part in of_parts.values()]) for name in names]
    return sorted(found, key=lambda row: (not row[0], [-count for count in row[1]]))


def _terminal(made: dict[str, Any], found: Sequence[Finding]) -> None:
    of_parts = made["counts"]
    table = Table(title=Text(made["dataset"]), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for part in of_parts:
        table.add_column(part, justify="right")
    every = rows(of_parts)
    half = MOST_CLASSES // 2
    few = every if len(every) <= MOST_CLASSES else [*every[:half], *every[-half:]]
    for i, (name, numbers) in enumerate(few):
        if len(few) < len(every) and i == half:
            table.add_row(f"... {len(every) - len(few)} more", *[""] * len(of_parts))
        table.add_row(Text(shown(name) or "(no class)"), *map(str, numbers))
    table.add_row("all", *(str(sum(of_part.values())) for of_part in of_parts.values()))
    console().print(table)
    for what in ("sizes", "modes"):
        first = list(made[what].items())[:5]
        more = f", and {len(made[what]) - 5} more" if len(made[what]) > 5 else ""
        say(f"{what}: {', '.join(f'{name} ({count})' for name, count in first)}{more}")
    for finding in found:
        count = f" ({len(finding.examples)})" if finding.examples else ""
        say(f"{'mend' if finding.mend else 'note'}{count}: {finding.text}")
        for example in finding.examples[:SHOWN]:
            say(f"    {' | '.join(map(shown, example))}")
        if (rest := len(finding.examples) - SHOWN) > 0:
            say(f"    ... {rest} more, all of them with --json FILE")
    if not any(finding.mend for finding in found):
        say("nothing to mend")


def _page(images: Inventory, made: dict[str, Any], bad: set[int]) -> str:
    template = page.environment("ssl_selmix.audit").get_template("data.html.jinja")
    found = rows(counts(images))
    return str(
        template.render(
            made=made,
            rows=[
                [page.Text(shown(name) or "(no class)"), *(page.Text(str(n)) for n in numbers)]
                for name, numbers in found
            ],
            shown=shown,
            most=ON_PAGE,
            sheet=_sheet(images, bad),
        )
    )


def _sheet(images: Inventory, bad: set[int]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Examples of each class, evenly among those to train on: names and pictures."""
    of_class: dict[str, list[int]] = {}
    first = next(part for part in PARTS if part in images.parts)
    for i, (part, label) in enumerate(zip(images.parts, images.labels, strict=True)):
        if i not in bad and part in (first, "unlabeled"):
            of_class.setdefault(label, []).append(i)
    num = EXAMPLES if len(of_class) <= 100 else FEW
    sheet = []
    for label in sorted(of_class, key=lambda name: (not name, name)):
        here = of_class[label]
        chosen = [here[k * len(here) // num] for k in range(num)] if len(here) > num else here
        sheet.append(
            (label, [(images.names[i], page.picture(images.open(i).image)) for i in chosen])
        )
    return sheet
