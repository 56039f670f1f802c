"""The tables of the study on frozen features, filled into its page from the committed results.

    python -m studies.features docs/results/features docs/results/features.md

A table goes between two comments of the page, whatever stands there: `<!-- table NAME -->` and
`<!-- end of table -->`. Names are those of TABLES. Differences are paired by seed; intervals and
stars are those of `ssl-selmix compare`, with Holm's correction within each table and figure.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.timing import table
from ssl_selmix.compare import reading, write
from ssl_selmix.compare.methods import Cell
from ssl_selmix.compare.tables import Choice, measured, paired_sheet, spread
from studies import mixing, pages

Arm = Mapping[int, Cell]  # by seed
Study = Mapping[tuple[str, str, str], Arm]  # folder of runs, split, name of the row
FIGURES = ("mean_recall", "min_recall")
LABELED = ("supervised", "cross-entropy", "re-sampling", "LDAM-DRW", "gda")
POOLED = ("selftrain", "fixmatch", "csst", "simpro", "acr", "daso", "abc", "cpe")
VIEWED = ("fixmatch", "selftrain", "csst")  # with augmented views and without
ENDS = ("", "posthoc", "selmix", "selmix+posthoc-after-selmix")
SECOND = (
    ("SelMix", "selmix"),
    ("SelMix, then offsets", "selmix+posthoc-after-selmix"),
    ("offsets, then SelMix", "posthoc+selmix-after-posthoc"),
    ("SelMix, then WiSE-FT", "selmix+wise_ft"),
    ("same P without mixing", "same-P-without-mixing"),
    ("uniform pairs", "uniform-pairs"),
    ("greedy pairs", "greedy-pairs"),
    ("plain fine-tuning", "plain-fine-tuning"),
    ("cRT", "crt"),
)
AIMS = {"mean_recall": "mean_recall", "min_recall": "", "g_mean": "g_mean", "h_mean": "h_mean"}
POOLS = ("uniform-300", "uniform-3000", "inverted", "middle", "head-tail")
Pairs = list[tuple[str, Arm, Arm]]


def read(folder: Path) -> Study:
    """The last stage of every run below a folder, or in the archive there."""
    found: dict[tuple[str, str, str], dict[int, Cell]] = defaultdict(dict)
    for run in reading.read([folder])[0]:
        root, split, row, _ = Path(run.name).parts[-4:]
        found[root, split, row][run.seed] = Cell(run, len(run.stages) - 1)
    return found


def named(start: str, end: str) -> str:
    """The folder of a row."""
    return f"{start}+{end}" if end else start


def figures(arm: Arm, names: Sequence[str] = FIGURES) -> str:
    """Mean ± standard deviation of some figures, or – without runs."""
    told = [[cell.stage.measured["test"][name] for cell in arm.values()] for name in names]
    return " / ".join(map(spread, told)) if arm else "–"


def stages(study: Study) -> str:
    """First stages, each alone and with what follows."""
    rows = []
    for start in (*LABELED, *POOLED):
        arms = [study.get(("features", "same", named(start, end)), {}) for end in ENDS]
        rows.append([start, *map(figures, arms), str(len(arms[0]))])
    head = ["first stage", "alone", "offsets", "SelMix", "SelMix, then offsets", "n"]
    return table(head, rows)


def differences(pairs: Pairs, names: Sequence[str], figures: Sequence[str] = FIGURES) -> str:
    """Pairs of rows as lines: both ends, the difference, its interval, and whether it is earned."""
    lines = []
    for name, one, other in pairs:
        seeds = sorted(one.keys() & other.keys())
        for figure in figures:
            ends = [[measured(arm[seed], figure, "test") for seed in seeds] for arm in (one, other)]
            kept = [[value for value in end if value is not None] for end in ends]
            if seeds:
                lines.append((name, figure, kept[0], kept[1]))
    first, second = names
    sheet = paired_sheet("", "", (first, second, "difference"), lines, Choice())
    return "\n".join(write.table_lines(sheet)).strip()


def _same(study: Study, pairs: Sequence[tuple[str, str, str]], root: str = "features") -> Pairs:
    """Pairs of rows of the pool with the labeled tail: words, what it is held against, the row."""
    empty: Arm = {}
    of = {key[2]: arm for key, arm in study.items() if key[:2] == (root, "same")}
    return [(words, of.get(a, empty), of.get(b, empty)) for words, a, b in pairs]


def pool(study: Study, root: str = "features", methods: Sequence[str] = POOLED) -> str:
    """Every method that sees the pool, less the labels alone: by itself, and after offsets."""
    pairs = [(f"{one} less supervised", "supervised", one) for one in methods]
    offsets = [
        (f"{one} less supervised, both with offsets", "supervised+posthoc", f"{one}+posthoc")
        for one in methods
    ]
    return differences(_same(study, [*pairs, *offsets], root), ("labels alone", "with the pool"))


def pool_plain(study: Study) -> str:
    """The same on plain features."""
    return pool(study, "features-plain", VIEWED)


def second(start: str) -> Callable[[Study], str]:
    """Every second stage after a start, less offsets alone."""

    def made(study: Study) -> str:
        pairs = [(words, f"{start}+posthoc", named(start, end)) for words, end in SECOND]
        return differences(_same(study, pairs), ("offsets", "this"))

    return made


def objectives(study: Study) -> str:
    """Offsets and SelMix for several figures: the figure that each aims at, and its difference."""
    aims: list[tuple[str, str, tuple[str, ...]]] = [
        (figure, f"-{word}" if word else "", (figure,)) for figure, word in AIMS.items()
    ]
    aims += [("mean recall under coverage", "-coverage", ("mean_recall", "min_coverage"))]
    lines: list[str] = []
    for words, end, figures in aims:
        pairs = [(words, f"supervised+posthoc{end}", f"supervised+selmix{end}")]
        found = differences(_same(study, pairs), ("offsets", "SelMix"), figures).splitlines()
        lines += found if not lines else found[2:]
    return "\n".join(lines)


def views(study: Study) -> str:
    """The same first stage with augmented views, less on plain features."""
    pairs: Pairs = [
        (
            f"{name}{', offsets' if end else ''}: augmented less plain",
            study.get(("features-plain", "same", named(name, end)), {}),
            study.get(("features", "same", named(name, end)), {}),
        )
        for end in ("", "posthoc")
        for name in ("supervised", *VIEWED)
    ]
    return differences(pairs, ("plain", "augmented"))


def pools(study: Study) -> str:
    """Other pools: each method less the labels alone, which see none of them."""
    pairs: Pairs = [
        (
            f"{split}: {name}",
            study.get(("features", "same", named("supervised", end)), {}),
            study.get(("features-pools", split, named(name, end)), {}),
        )
        for split in POOLS
        for name in ("fixmatch", "simpro")
        for end in ("", "posthoc")
    ]
    told = [(name + (", offsets" if k % 2 else ""), a, b) for k, (name, a, b) in enumerate(pairs)]
    return differences(told, ("labels alone", "with the pool"))


def tau(study: Study) -> str:
    """Methods whose logits are adjusted twice over, with the strength 1 instead, on every pool."""
    rows = []
    for split in ("same", *POOLS):
        for name in ("supervised", "simpro", "acr"):
            usual = "features" if split == "same" else "features-pools"
            other = f"{name}-tau-{2 if name == 'supervised' else 1}"
            if name == "supervised" and split != "same":
                continue  # it sees no pool
            arms = [
                study.get(key, {})
                for end in ("", "posthoc")
                for key in (
                    (usual, split, named(name, end)),
                    ("features-tau", split, named(other, end)),
                )
            ]
            if name == "supervised":
                arms = [arms[1], arms[0], arms[3], arms[2]]
            cells = [figures(arm) + (f" (n = {len(arm)})" if arm else "") for arm in arms]
            rows.append([f"{split}: {name}", *cells])
    head = ["pool, method", "tau 2", "tau 1", "tau 2, offsets", "tau 1, offsets"]
    return table(head, rows)


def tau_pool(study: Study) -> str:
    """With the strength 1: each method less the labels alone."""
    pairs: Pairs = [
        (
            f"{split}: {name}{', offsets' if end else ''}",
            study.get(("features", "same", named("supervised", end)), {}),
            study.get(("features-tau", split, named(f"{name}-tau-1", end)), {}),
        )
        for split in ("same", *POOLS)
        for name in ("simpro", "acr")
        for end in ("", "posthoc")
    ]
    return differences(pairs, ("labels alone", "with the pool"))


TABLES: dict[str, Callable[[Study], str]] = {
    "stages": stages,
    "pool": pool,
    "pool-plain": pool_plain,
    "views": views,
    "second-supervised": second("supervised"),
    "second-fixmatch": second("fixmatch"),
    "objectives": objectives,
    "pools": pools,
    "tau": tau,
    "tau-pool": tau_pool,
}


def table_of(folder: Path) -> Callable[[str], str]:
    """The tables of these results, by name.

    Raises:
        ValueError: from what is returned, of a name that there is no table of.
    """
    study = read(folder)

    def made(name: str) -> str:
        if name.startswith("mixing-"):
            rows = mixing.by_row(json.loads((folder / "mixing.json").read_text()))
            return mixing.tables_of(rows, name.removeprefix("mixing-"))
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are {', '.join(TABLES)}, mixing-length-8")
        return TABLES[name](study)

    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="folder of archives and mixing.json")
    parser.add_argument("page", type=Path, help="Markdown")
    args = parser.parse_args(argv)
    pages.fill(args.page, table_of(args.results))


if __name__ == "__main__":
    main()
