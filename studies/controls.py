"""The controls of SelMix on digits: runs the sweep, prints its tables, fills them into pages.

    python -m studies.controls --jobs 2 --fill docs/results/controls.md

What is finished is not run again. A table goes between two comments of a file, whatever stands
there: `<!-- table SLUG POOL FIGURE... -->` and `<!-- end of table -->`. SLUG is `controls` (against
the start), `offsets` (against offsets alone) or another table of `ssl-selmix compare`, POOL a split
of the sweep, and figures are as `--metrics` takes them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.compare import against, methods, reading, write
from ssl_selmix.compare.tables import Choice

FIGURES = ("mean_recall", "min_recall")
TABLES = ("controls", "offsets")
PLACE = re.compile(r"(<!-- table (\S+) (\S+)((?: \w+)*) -->\n).*?(<!-- end of table -->)", re.S)


def table(folder: Path, slug: str, figures: Sequence[str]) -> str:
    """A table of the runs of one split, as Markdown.

    Raises:
        ValueError: there are no runs, or they have no such table.
    """
    (group,), _ = methods.group(reading.read([folder])[0])
    found = {one.slug: one for one in against.of_group(group, Choice(metrics=tuple(figures)))}
    if slug not in found:
        raise ValueError(f"{folder} has no table {slug!r}; there are {', '.join(found)}")
    return "\n".join(write.table_lines(found[slug])) + "\n"


def filled(text: str, runs: Path) -> str:
    """A page with the tables of these runs in its marked places.

    Raises:
        ValueError: it has no marked place, or one of them asks for what is not there.
    """
    if not PLACE.search(text):
        raise ValueError("no marked place; write <!-- table controls same --> above a table")

    def made(found: re.Match[str]) -> str:
        figures = found[4].split() or FIGURES
        return found[1] + "\n" + table(runs / found[3], found[2], figures) + "\n" + found[5]

    return PLACE.sub(made, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print, fill."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/controls"), help="default: %(default)s"
    )
    parser.add_argument("--jobs", type=int, help="chains at a time; 0: run nothing", default=2)
    parser.add_argument("--fill", type=Path, nargs="*", default=[], help="Markdown files")
    args = parser.parse_args(argv)
    if args.jobs:
        words = ["sweep", "controls", "--jobs", str(args.jobs), "--out", str(args.runs)]
        subprocess.run([sys.executable, "-m", "ssl_selmix.cli", *words], check=True)
    for pool in sorted(path.name for path in args.runs.iterdir() if path.is_dir()):
        for slug in TABLES:
            print(f"{pool}: {slug}\n\n{table(args.runs / pool, slug, FIGURES)}")
    for file in args.fill:
        write_atomically(file, filled(file.read_text("utf-8"), args.runs).encode())
        print(f"filled {file}")


if __name__ == "__main__":
    main()
