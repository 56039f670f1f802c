"""The results of a study as one compressed file, and back as folders that a sweep can continue.

    python -m studies.archives pack runs/digits-table docs/results/digits/runs.jsonl.gz
    python -m studies.archives unpack docs/results/digits/runs.jsonl.gz runs/digits-table

`ssl-selmix compare docs/results/digits` reads the file as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssl_selmix.runs import archive


def main(argv: Sequence[str] | None = None) -> None:
    """Pack a folder of runs, or unpack an archive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path, help="a folder of runs, or an archive")
    parser.add_argument("to", type=Path, help=f"a file NAME{archive.SUFFIX}, or a folder")
    args = parser.parse_args(argv)
    if args.what == "unpack":
        made = archive.unpack(args.source, args.to)
    else:
        made = archive.pack(args.source, args.to)
    print(f"{args.to}: {len(made)} runs")


if __name__ == "__main__":
    main()
