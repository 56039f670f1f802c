"""The tables of a sweep over first stages and pools, filled into its page from committed results.

    python -m studies.digits docs/results/digits-pools docs/results/digits-pools.md

A table goes between two comments of the page, `<!-- table POOL -->` and `<!-- end of table -->`;
`differences-POOL` holds every first stage against one that sees the labels alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.timing import table
from studies import pages
from studies.features import Pairs, Study, differences, figures, named, read

ENDS = ("", "posthoc", "selmix")
CONTROL = "supervised"


def starts(study: Study, pool: str) -> list[str]:
    """First stages of a pool, the highest mean recall on top."""
    arms = {row: arm for (_, split, row), arm in study.items() if split == pool}
    mean = {
        row: statistics.mean(c.stage.measured["test"]["mean_recall"] for c in arm.values())
        for row, arm in arms.items()
        if "+" not in row
    }
    return sorted(mean, key=lambda row: -mean[row])


def stages(study: Study, pool: str) -> str:
    """First stages of a pool, each alone, with offsets and with SelMix."""
    (root,) = {root for root, split, _ in study if split == pool}
    rows = []
    for start in starts(study, pool):
        arms = [study.get((root, pool, named(start, end)), {}) for end in ENDS]
        rows.append([start, *map(figures, arms), str(len(arms[0]))])
    return table(["first stage", "alone", "offsets", "SelMix", "n"], rows)


def against(study: Study, pool: str) -> str:
    """Every first stage with offsets less the labels alone with offsets, seed by seed."""
    (root,) = {root for root, split, _ in study if split == pool}
    control = study[root, pool, named(CONTROL, "posthoc")]
    pairs: Pairs = [
        (start, control, study.get((root, pool, named(start, "posthoc")), {}))
        for start in starts(study, pool)
        if start != CONTROL
    ]
    return differences(pairs, ("labels alone, offsets", "with the pool, offsets"))


def table_of(folder: Path) -> Callable[[str], str]:
    """The tables of these results, by the pool's name.

    Raises:
        ValueError: from what is returned, of a pool that no run has.
    """
    study = read(folder)
    pools = {split for _, split, _ in study}

    def made(name: str) -> str:
        pool = name.removeprefix("differences-")
        if pool not in pools:
            raise ValueError(f"no pool {pool!r}; there are {', '.join(sorted(pools))}")
        return stages(study, pool) if pool == name else against(study, pool)

    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="folder of archives")
    parser.add_argument("page", type=Path, help="Markdown")
    args = parser.parse_args(argv)
    pages.fill(args.page, table_of(args.results))


if __name__ == "__main__":
    main()
