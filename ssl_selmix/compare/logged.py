"""The validation rows of metrics.jsonl: those that can be used, and a note on the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssl_selmix.compare import checks
from ssl_selmix.compare.reading import Run, Stage

SQUARES = ("gain_matrix", "pair_distribution")
PRIORS = ("estimated_prior", "estimated_prior_low", "estimated_prior_high", "true_prior")
Rows = list[dict[str, Any]]


def validations(stage: Stage) -> Rows:
    """The validation rows of a stage's log, in order; half a row at the end is left out."""
    if stage.log is None:
        return []
    return _read(stage.log, len(stage.measured["test"]["per_class_recall"]))[0]


def notes(runs: Sequence[Run]) -> list[str]:
    """Which logs say what cannot be so."""
    found = []
    for stage in (stage for run in runs for stage in run.stages if stage.log is not None):
        assert stage.log is not None
        bad = _read(stage.log, len(stage.measured["test"]["per_class_recall"]))[1]
        if bad:
            found.append(f"{stage.log}: left out {len(bad)} value(s) or row(s), such as {bad[0]}")
    return found


@lru_cache(maxsize=1024)
def _read(log: Path, num_classes: int) -> tuple[Rows, list[str]]:
    rows: Rows = []
    bad: list[str] = []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for i, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if i < len(lines) or "\ufffd" in line:  # the last one may be half written
                bad.append(f"line {i}, which is no JSON")
            continue
        if isinstance(row, dict) and row.get("kind") == "validation":
            try:
                checks.number(row.get("step"), f"step of line {i}")
            except (ValueError, OverflowError) as error:
                bad.append(str(error))
                continue
            rows.append(_usable(row, i, num_classes, bad))
    return rows, bad


def _usable(row: dict[str, Any], line: int, num_classes: int, bad: list[str]) -> dict[str, Any]:
    """The row without the values that cannot be drawn or averaged."""
    found = dict(row)
    for key, value in row.items():
        where = f"{key} of line {line}"
        try:
            if key in checks.NAMED and value is not None:
                found[key] = checks.share(value, where)
            elif key in PRIORS:
                _numbers(value, where, num_classes)
            elif key in SQUARES:
                for part in checks.listing(value, where, num_classes):
                    _numbers(part, where, num_classes)
        except (ValueError, OverflowError) as error:
            bad.append(str(error))
            del found[key]
    return found


def _numbers(value: Any, where: str, length: int) -> None:
    for item in checks.listing(value, where, length):
        checks.number(item, where)
