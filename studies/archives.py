"""The results of a study as one compressed file, and back as folders that a sweep can continue.

    python -m studies.archives pack runs/digits-table docs/results/digits/runs.jsonl.gz
    python -m studies.archives unpack docs/results/digits/runs.jsonl.gz runs/digits-table

`ssl-selmix compare docs/results/digits` reads the file as it is. `--results-only` leaves manifests
and logs out, which are nine tenths of the size: tables and intervals need neither.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssl_selmix.runs import archive
from ssl_selmix.runs.folder import CONFIG, RESULTS


def main(argv: Sequence[str] | None = None) -> None:
    """Pack a folder of runs, or unpack an archive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path, help="a folder of runs, or an archive")
    parser.add_argument("to", type=Path, help=f"a file NAME{archive.SUFFIX}, or a folder")
    only = "pack neither manifests nor logs"
    parser.add_argument("--results-only", action="store_true", help=only)
    args = parser.parse_args(argv)
    if args.what == "unpack":
        made = archive.unpack(args.source, args.to)
    elif args.results_only:
        with tempfile.TemporaryDirectory() as place:
            for name in (RESULTS, CONFIG):
                for file in args.source.rglob(name):
                    copy = Path(place) / file.relative_to(args.source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, copy)
            made = archive.pack(Path(place), args.to)
    else:
        made = archive.pack(args.source, args.to)
    print(f"{args.to}: {len(made)} runs")


if __name__ == "__main__":
    main()
