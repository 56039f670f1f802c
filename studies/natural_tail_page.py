"""Advice on the natural tail and what came of it: answers of advise, and the tables of the page.

    python -m studies.natural_tail_page advice runs/natural-tail FOLDER/advice.jsonl
    python -m studies.natural_tail_page page docs/results/natural-tail docs/results/natural-tail.md

The first asks `ssl-selmix advise` about every first stage of the sweep, which looks at validation
images alone. The second fills the tables between `<!-- table NAME -->` and `<!-- end of table -->`.
Differences are paired by seed, with the intervals and stars of `ssl-selmix compare`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import table
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.compare.methods import Cell
from ssl_selmix.compare.tables import spread
from ssl_selmix.deploy import advise
from studies import pages
from studies.features import Arm, Pairs, Study, differences, named, read

SPLITS = ("tenth", "three-tenths")
STARTS = ("supervised", "cross-entropy", "gda", "selftrain", "fixmatch")
ENDS = ("", "posthoc", "selmix", "selmix+posthoc-after-selmix")
SECOND = (
    ("offsets", "posthoc"),
    ("SelMix", "selmix"),
    ("SelMix, then offsets", "selmix+posthoc-after-selmix"),
    ("same P without mixing", "same-P-without-mixing"),
    ("plain fine-tuning", "plain-fine-tuning"),
)
FIGURES = ("mean_recall", "accuracy")
AIMS = ("h_mean", "mean_recall")  # what advise aims at by itself, and what it says to take instead
FOLLOWED = {"posthoc": "posthoc", "selmix": "selmix", "labels": ""}  # the runs that did as it says


def asked(runs: Path, some: str = "*/*/seed-*") -> Iterator[dict[str, Any]]:
    """What advise says of each first stage of a finished sweep, on validation.

    It is asked by mean recall, and of the labels alone also by its default, the H-mean.
    """
    for results in sorted(runs.glob(f"{some}/results.json")):
        run = results.parent
        split, start, seed = run.parts[-3:]
        if "+" in start:
            continue
        against = None if start == "supervised" else run.parents[1] / "supervised" / seed
        for aim in AIMS if against is None else AIMS[1:]:
            line: dict[str, Any] = {"split": split, "start": start, "seed": int(seed[5:])}
            line["aim"] = aim
            for finding in advise.of_run(run, against, aim).findings:
                kept = {k: v for k, v in finding.figures.items() if k not in ("offsets", "classes")}
                line[finding.topic] = {"verdict": finding.verdict, **kept}
            yield line


def stages(study: Study) -> str:
    """First stages and what follows: mean recall, and that of the smallest third of classes."""
    lines = []
    for split in SPLITS:
        for start in STARTS:
            arms = [_arm(study, split, named(start, end)) for end in ENDS]
            lines.append([split, start, *map(_told, arms), str(len(arms[0]))])
    return table(["labeled", "first stage", "alone", "offsets", "SelMix", "both", "n"], lines)


def _arm(study: Study, split: str, row: str, root: str = "natural-tail") -> Arm:
    return study.get((root, split, row), {})


def _told(arm: Arm) -> str:
    """Mean recall / mean recall of the smallest third of classes, over seeds."""
    both: tuple[list[float], list[float]] = ([], [])
    for cell in arm.values():
        measured = cell.stage.measured["test"]
        rare = np.argsort(_images(cell), kind="stable")[: len(_images(cell)) // 3]
        both[0].append(measured["mean_recall"])
        both[1].append(float(np.array(measured["per_class_recall"])[rare].mean()))
    return " / ".join(map(spread, both)) if arm else "–"


def _images(cell: Cell) -> list[int]:
    """Images of each class in all parts."""
    counts = cell.run.counts or {}
    return [sum(own) for own in zip(*counts.values(), strict=True)]


def pool(study: Study) -> str:
    """Methods that see the pool, less the labels alone."""
    pairs: Pairs = [
        (
            f"{split}: {name}{', offsets' if end else ''}",
            _arm(study, split, named("supervised", end)),
            _arm(study, split, named(name, end)),
        )
        for split in SPLITS
        for end in ("", "posthoc")
        for name in ("selftrain", "fixmatch")
    ]
    return differences(pairs, ("labels alone", "with the pool"), FIGURES)


def second(study: Study) -> str:
    """Every second stage, less the start alone."""
    pairs: Pairs = [
        (
            f"{split}, {start}: {words}",
            _arm(study, split, start),
            _arm(study, split, f"{start}+{end}"),
        )
        for split in SPLITS
        for start in ("supervised", "cross-entropy")
        for words, end in SECOND
    ]
    return differences(pairs, ("no second stage", "this"), FIGURES)


def followed(study: Study, answers: Sequence[Mapping[str, Any]]) -> str:
    """Test images: the run that advise asks for, less the start; and two fixed rules beside it."""
    pairs: Pairs = []
    for split in SPLITS:
        for start in STARTS:
            arms = {end: _arm(study, split, named(start, end)) for end in ("", "posthoc", "selmix")}
            chosen = {
                line["seed"]: arms[FOLLOWED[line["next"]["verdict"]]][line["seed"]]
                for line in answers
                if (line["split"], line["start"], line["aim"]) == (split, start, "mean_recall")
                and line["seed"] in arms["selmix"]
            }
            for words, arm in (
                ("as advised", chosen),
                *((e, arms[e]) for e in ("posthoc", "selmix")),
            ):
                pairs.append((f"{split}, {start}: {words}", arms[""], arm))
    return differences(pairs, ("start", "this"), ("mean_recall",))


def verdicts(answers: Sequence[Mapping[str, Any]]) -> str:
    """How often advise said what, over seeds."""
    lines = []
    for split in SPLITS:
        for start in STARTS:
            row = [split, start]
            for aim in AIMS:
                own = (line for line in answers if (line["split"], line["start"]) == (split, start))
                told = Counter(line["next"]["verdict"] for line in own if line["aim"] == aim)
                row.append(", ".join(f"{word} {n}" for word, n in told.most_common()) or "–")
            lines.append(row)
    return table(["labeled", "first stage", *(f"next, by {aim}" for aim in AIMS)], lines)


def promised(study: Study, answers: Sequence[Mapping[str, Any]]) -> str:
    """The change of mean recall that offsets promise on validation, and the one on test."""
    lines = []
    for split in SPLITS:
        for start in STARTS:
            before, after = (_arm(study, split, named(start, end)) for end in ("", "posthoc"))
            said, came, optimism, inside = [], [], [], 0
            for line in answers:
                seed = line["seed"]
                if (line["split"], line["start"], line["aim"]) != (split, start, "mean_recall"):
                    continue
                if seed not in before or seed not in after:
                    continue
                one, other = (
                    arm[seed].stage.measured["test"]["mean_recall"] for arm in (before, after)
                )
                low, high = line["offsets"]["interval"]
                said.append(line["offsets"]["cross_fitted"] - line["offsets"]["before"])
                came.append(other - one)
                optimism.append(line["images"]["optimism"])
                inside += low <= other - one <= high
            told = [spread(values, signed=True) for values in (said, came)]
            lines.append([split, start, *told, f"{inside} of {len(said)}", spread(optimism)])
    head = ["labeled", "first stage", "promised", "came on test", "inside the interval", "optimism"]
    return table(head, lines)


def groups_cut(study: Study) -> str:
    """Figures of test with groups kept together, and with images drawn one by one."""
    pairs: Pairs = [
        (
            f"{split}: supervised",
            _arm(study, split, "supervised"),
            _arm(study, split, "supervised", "natural-tail-cut"),
        )
        for split in SPLITS
    ]
    return differences(pairs, ("by group", "image by image"), FIGURES)


def coverage(study: Study) -> str:
    """Mean recall under least coverage of 0.95 / K: offsets and SelMix, less the start."""
    pairs: Pairs = [
        (
            f"{split}: {end}",
            _arm(study, split, "supervised"),
            _arm(study, split, f"supervised+{end}"),
        )
        for split in SPLITS
        for end in ("posthoc-coverage", "selmix-coverage", "posthoc-h_mean", "selmix-h_mean")
    ]
    return differences(pairs, ("start", "this"), ("mean_recall", "min_coverage"))


def fill(folder: Path, page: Path) -> None:
    """Fill the page's marked places from the committed results.

    Raises:
        ValueError: it asks for a table that there is none of.
    """
    study = read(folder)
    answers = [json.loads(line) for line in (folder / "advice.jsonl").read_text().splitlines()]
    made = {
        "stages": stages(study),
        "pool": pool(study),
        "second": second(study),
        "coverage": coverage(study),
        "verdicts": verdicts(answers),
        "promised": promised(study, answers),
        "followed": followed(study, answers),
        "groups": groups_cut(study),
    }

    def table_of(name: str) -> str:
        if name not in made:
            raise ValueError(f"no table {name!r}; there are {', '.join(made)}")
        return made[name]

    pages.fill(page, table_of)


def main(argv: Sequence[str] | None = None) -> None:
    """Ask for advice, or fill the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("advice", "page"))
    parser.add_argument("source", type=Path, help="a sweep's folder; committed results")
    parser.add_argument("to", type=Path, help="advice.jsonl; the page")
    args = parser.parse_args(argv)
    if args.what == "advice":
        lines = [json.dumps(line) for line in asked(args.source)]
        write_atomically(args.to, ("\n".join(lines) + "\n").encode())
        print(f"{args.to}: {len(lines)} answers")
    else:
        fill(args.source, args.to)


if __name__ == "__main__":
    main()
